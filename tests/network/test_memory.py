"""Nothing is kept of a task that has ended: no container of a negotiator or a worker grows with the work done."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Any

import pytest

import modelnet
from modelnet.bus import subjects
from modelnet.market import Line
from modelnet.messages import Task
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


def sizes(party: object) -> dict[str, int]:
    """How much each container of an object holds."""
    found = vars(party).items()
    return {name: len(value) for name, value in found if isinstance(value, Sized) and not isinstance(value, str)}


async def until_quiet(network: Network, *parties: object) -> None:
    """Wait, a beat at a time, until no party holds anything of a task."""
    of_tasks = {
        "_held",
        "_by_auction",
        "_by_tenant",
        "waiting",
        "_called",
        "_unfunded",
        "_fetching",
        "_writes",
        "_awards",
        "_records",
        "_attempts",
        "_jobs",
    }
    async with network.ear("beat.*") as beats, asyncio.timeout(PATIENCE_S):
        while any(size for party in parties for name, size in sizes(party).items() if name in of_tasks):
            await beats.next()


async def mixed_load(network: Network, rounds: int) -> None:
    """Every way a task can end: completed, failed, expired, cancelled, unknown, malformed, waited for, in parts."""
    client, tasks = network.client, []
    for n in range(rounds):
        tasks += [
            await client.submit("memory.echo", {"n": n}),
            await client.submit("memory.fail", {}),
            await client.submit("memory.sleep", {}, deadline_s=0.3),
            await client.submit("memory.echo", {}, require={"worker": "nobody"}, deadline_s=0.3),
            await client.submit("memory.echo", {}, budget=0),
            await client.submit("memory.unknown", {}),
            await client.submit("memory.echo", {"n": n}, strategy="panel"),
            await client.submit("memory.echo", {"n": n}, strategy="race"),
            await client.submit("memory.echo", {"n": n}, strategy="spot"),
            await client.submit("memory.echo", {}, strategy={"kind": "cascade", "check": "memory.unknown"}),
            await client.submit("memory.sleep", {}, strategy="panel", deadline_s=0.3),
        ]
        cancelled = await client.submit("memory.sleep", {})
        await cancelled.cancel()
        wrong = Task(capability="memory.echo", input={})
        await network.bus.request(subjects.task(wrong), b"garbage", timeout=5)
        raced = await client.submit("memory.sleep", {}, strategy="race")
        await raced.cancel()
        tasks += [cancelled, raced, client.task(wrong.id)]
    async with asyncio.timeout(PATIENCE_S):
        statuses = {(await task.final()).status for task in tasks}
    assert statuses == {"completed", "failed", "expired", "cancelled"}


async def test_no_container_grows_with_the_work_done(network: Network) -> None:
    (negotiator,) = network.negotiators
    workers = [network.worker(f"thrifty-{n}", owner=f"owner-{n}", slots=8) for n in range(2)]
    for worker in workers:

        @worker.capability("memory.echo", price=1)
        async def echo(ctx: modelnet.Context, input: Json) -> Json:
            return input

        @worker.capability("memory.fail")
        async def fail(ctx: modelnet.Context, input: Json) -> Json:
            raise ValueError("always")

        @worker.capability("memory.sleep")
        async def sleep(ctx: modelnet.Context, input: Json) -> Json:
            await asyncio.Event().wait()
            return {}

    await network.join(*workers)
    await mixed_load(network, 2)
    rooms = negotiator._hand, negotiator._receipts, negotiator._reception, negotiator._parts, negotiator._inquiry
    parties = negotiator, *rooms, *workers
    await until_quiet(network, *parties)
    before = [sizes(party) for party in parties]
    await mixed_load(network, 15)
    await until_quiet(network, *parties)
    running = before[0].pop("_tasks")
    async with network.ear("beat.*") as beats, asyncio.timeout(PATIENCE_S):
        while len(negotiator._tasks) > running:  # an outcome may be on its way to the reputation book still
            await beats.next()
    after = [sizes(party) for party in parties]
    assert after[0].pop("_tasks") <= running
    # One for each worker and capability that a task was done for: which of them the first tasks went to is chance.
    assert before[0].pop("_track") <= after[0].pop("_track") <= 2 * 3
    assert after == before
    assert negotiator._reception._intake.held == 0
    waiting = negotiator._hand.waiting
    assert isinstance(waiting, Line)
    assert sizes(waiting) == {"_queues": 0}
