"""A market with more workers than are asked: forty of them, most of which hear of no single task."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import modelnet
from modelnet.market.exploration import BOUND_ASKED
from modelnet.messages import Transcript
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

WORKERS, TASKS = 40, 30


async def until_settled(network: Network) -> None:
    """In its first beats a negotiator asks all, and workers that it has not met yet it cannot choose from."""
    async with network.ear("worker.*.cfp") as requests, asyncio.timeout(PATIENCE_S):
        while not requests.heard:
            await (await network.client.submit("many.work", {"together": False})).result()


async def test_forty_workers_are_not_all_asked(network: Network) -> None:
    together = asyncio.Barrier(WORKERS)
    workers = [network.worker(f"many-{n}", slots=1, backlog=0) for n in range(WORKERS)]
    for n, worker in enumerate(workers):

        @worker.capability("many.work", price=10 * n)
        async def work(ctx: modelnet.Context, input: Json) -> Json:
            if input["together"]:
                await together.wait()
            return {"worker": ctx.worker}

    await network.join(*workers)
    await until_settled(network)
    async with (
        network.ear("cap.many.work") as broadcasts,
        network.ear("worker.*.cfp") as requests,
        network.ear("audit.>") as audits,
    ):
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(TASKS):
                await (await network.client.submit("many.work", {"together": False})).result()
        await audits.until(lambda heard: len(heard) >= TASKS)
        transcripts = [Transcript.decode(msg.data) for msg in audits.heard]
        assert not broadcasts.heard
        assert len(requests.heard) == BOUND_ASKED * TASKS
        assert {transcript.asked for transcript in transcripts} == {BOUND_ASKED}
        assert {transcript.closed_by for transcript in transcripts} == {"all_answered"}
        asked = Counter(msg.subject.split(".")[1] for msg in requests.heard)
        assert min(asked[worker.id] for worker in workers[:10]) == TASKS, "the best are always asked"
        assert len(asked) > BOUND_ASKED, "of the others some are"
        # As many tasks as slots, and none ends before all have begun: each worker is found.
        tasks = [await network.client.submit("many.work", {"together": True}) for _ in range(WORKERS)]
        async with asyncio.timeout(2 * PATIENCE_S):
            finals = [await task.result() for task in tasks]
    assert {final.worker for final in finals} == {worker.id for worker in workers}
