"""A bus that takes nothing more: publishers are told at once, negotiators raise no storm, and all goes on after."""

from __future__ import annotations

import json
from typing import Any

import pytest

import modelnet
from modelnet.bus import subjects
from modelnet.bus.streams import STREAMS, setup_bus
from modelnet.errors import BusFull
from tests.network.stage import Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


async def bound(network: Network, stream: str, messages: int) -> None:
    """Let a stream hold no more than this many messages."""
    config = {"name": stream, "storage": "file", "allow_direct": True, "retention": "limits", **STREAMS[stream]}
    body = json.dumps(config | {"max_msgs": messages}).encode()
    reply = await network.bus.request(f"$JS.API.STREAM.UPDATE.{stream}", body, timeout=5)
    assert "error" not in json.loads(reply.data), reply.data


async def echo(network: Network, capability: str) -> modelnet.Worker:
    """A worker that returns what it gets."""
    worker = network.worker(capability.replace(".", "-"))

    @worker.capability(capability)
    async def answer(ctx: modelnet.Context, input: Json) -> Json:
        return input

    await network.join(worker)
    return worker


async def test_a_full_task_stream_is_told_at_once_and_takes_tasks_again(network: Network) -> None:
    worker = await echo(network, "full.tasks")
    await network.stop(worker)
    waiting = await network.client.submit("full.tasks", {"n": 1})
    await bound(network, "TASKS", 1)
    with pytest.raises(BusFull):
        await network.client.submit("full.tasks", {"n": 2})
    await echo(network, "full.tasks")
    assert (await waiting.result()).output == {"n": 1}
    await setup_bus(network.bus)
    assert (await (await network.client.submit("full.tasks", {"n": 3})).result()).output == {"n": 3}


async def test_a_full_journal_delays_its_tasks_and_raises_no_storm(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.negotiator.receipts.JOURNAL_TIMEOUT_S", 0.5)
    await echo(network, "full.journal")
    first = await (await network.client.submit("full.journal", {"n": 1})).result()
    assert first.output == {"n": 1}
    await bound(network, "JOURNAL", 1)
    async with network.ear("journal.>") as writes, network.ear("beat.full-journal") as beats:
        task = await network.client.submit("full.journal", {"n": 2})
        await writes.until(lambda heard: len(heard) >= 1)
        so_far = len(beats.heard)
        await beats.until(lambda heard: len(heard) >= so_far + 12)
        assert 2 <= len(writes.heard) <= 5, "the tick tries again, once a second"
        await setup_bus(network.bus)
        assert (await task.result()).output == {"n": 2}
        await writes.until(
            lambda heard: (
                {msg.subject for msg in heard}
                == {subjects.journal("default", task.id, "status"), subjects.journal("default", task.id, "final")}
            )
        )
