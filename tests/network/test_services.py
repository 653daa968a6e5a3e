"""The network in NATS's own terms: who answers the services API, and with what."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import nats.errors
import pytest
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

import modelnet
from modelnet.bus import subjects
from modelnet.bus.services import endpoint_name
from tests.network.stage import PATIENCE_S, Network, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ask(network: Network, subject: str) -> dict[str, Any]:
    """The one answer there is to a question."""
    reply = await network.bus.request(subject, b"", timeout=5)
    found: dict[str, Any] = json.loads(reply.data)
    return found


async def join(network: Network, worker: modelnet.Worker) -> None:
    """Let a worker join, and hear its beat: nats-py's flush can overtake subscriptions, what is published cannot."""
    async with network.ear(subjects.beat(worker.name)) as beats:
        await network.join(worker)
        await beats.until(bool)


async def everybody(network: Network, verb: str) -> list[dict[str, Any]]:
    """All answers to a question to all: those that come before the answer to one asked later, by the last to start."""
    inbox = network.bus.new_inbox()
    async with network.ear(inbox) as ear:
        await network.bus.publish(f"$SRV.{verb}", b"", reply=inbox)
        parties = len(network.workers) + len(network.negotiators)
        return [json.loads(msg.data) for msg in await ear.until(lambda heard: len(heard) >= parties)]


def speaker(network: Network, name: str) -> tuple[modelnet.Worker, asyncio.Event, asyncio.Event]:
    """A worker that says when it has begun, and goes on when it may."""
    worker = network.worker(name, slots=3, backlog=1, labels={"region": "eu"}, software="test 1")
    begun, may_end = asyncio.Event(), asyncio.Event()

    @worker.capability(f"{name}.say", price=7, model="m1", quality=0.5)
    async def say(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        """Something."""
        begun.set()
        await may_end.wait()
        if input.get("wrong"):
            raise modelnet.Reject("no such thing", code="wrong")
        return {"text": "said"}

    @worker.capability(f"{name}.>")
    async def rest(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        return {}

    return worker, begun, may_end


async def test_a_worker_shows_its_capabilities_and_what_they_cost(network: Network) -> None:
    worker, *_ = speaker(network, "shown")
    await join(network, worker)
    info = ServiceInfo.from_dict(await ask(network, "$SRV.INFO.modelnet-worker.shown"))
    assert (info.name, info.id) == ("modelnet-worker", "shown")
    assert info.metadata["protocol"] == "modelnet/1"
    assert (info.metadata["slots"], info.metadata["backlog"], info.metadata["label.region"]) == ("3", "1", "eu")
    said, rest = info.endpoints
    card = await network.client.catalogue.card("shown")
    assert card is not None
    assert (said.name, said.subject) == ("shown-say", "cap.shown.say")
    assert said.metadata == {
        "capability": "shown.say",
        "contract": card.capabilities[0].contract,
        "description": "Something.",
        "price": "7",
        "quality": "0.5",
        "model": "m1",
        "message": "BidRequest",
    }
    assert (rest.name, rest.subject) == ("shown-all", "cap.shown.>")
    await network.stop(worker)


async def test_everybody_answers_a_ping(network: Network) -> None:
    worker, *_ = speaker(network, "pinged")
    await join(network, worker)
    found = [ServicePing.from_dict(one) for one in await everybody(network, "PING")]
    assert {(one.name, one.id) for one in found} == {
        ("modelnet-worker", "pinged"),
        ("modelnet-negotiator", network.negotiators[0].id),
    }
    await network.stop(worker)


async def test_the_statistics_are_of_what_was_done(network: Network) -> None:
    worker, begun, may_end = speaker(network, "counted")
    await join(network, worker)
    may_end.set()
    before = ServiceStats.from_dict(await ask(network, "$SRV.STATS.modelnet-negotiator")).endpoints[0]
    for wrong in (False, False, True):
        task = await network.client.submit("counted.say", {"wrong": wrong})
        await task.final()
    may_end.clear()
    begun.clear()
    running = await network.client.submit("counted.say", {})
    await until(begun)
    stats = ServiceStats.from_dict(await ask(network, "$SRV.STATS.modelnet-worker.counted"))
    said, rest = stats.endpoints
    assert (said.num_requests, said.num_errors, said.last_error) == (4, 1, "wrong: no such thing")
    assert said.average_processing_time == said.processing_time // 4 > 0
    assert said.data == {"bids": 4, "free": 3, "in_hand": 1}
    assert (rest.num_requests, rest.average_processing_time) == (0, 0)
    await running.cancel()
    await running.final()
    async with network.ear(subjects.beat("counted")) as beats:
        await beats.next(lambda msg: not json.loads(msg.data)["running"])
    said = ServiceStats.from_dict(await ask(network, "$SRV.STATS.modelnet-worker.counted")).endpoints[0]
    assert (said.num_errors, said.data["cancelled"]) == (1, 1)
    after = ServiceStats.from_dict(await ask(network, "$SRV.STATS.modelnet-negotiator")).endpoints[0]
    assert after.num_requests - before.num_requests == 4
    assert (after.num_errors - before.num_errors, after.data["completed"], after.data["cancelled"]) == (1, 2, 1)
    await network.stop(worker)


async def test_a_worker_that_drains_is_not_found_any_more(network: Network) -> None:
    worker, begun, may_end = speaker(network, "drained")
    await join(network, worker)
    task = await network.client.submit("drained.say", {})
    await until(begun)
    leaving = asyncio.create_task(network.stop(worker))
    async with network.ear(subjects.beat("drained")) as beats:
        await beats.next(lambda msg: json.loads(msg.data)["draining"])
    with pytest.raises(nats.errors.NoRespondersError):
        await ask(network, "$SRV.PING.modelnet-worker.drained")
    may_end.set()
    assert (await task.final()).status == "completed"
    await leaving


async def test_the_ledger_answers_too_though_its_store_is_away(network: Network) -> None:
    ledger = await network.ledger_worker()
    async with asyncio.timeout(PATIENCE_S):
        while True:  # nothing else tells that its subscriptions have arrived
            with contextlib.suppress(nats.errors.NoRespondersError):
                info = ServiceInfo.from_dict(await ask(network, "$SRV.INFO.modelnet-ledger"))
                break
    assert [one.subject for one in info.endpoints] == ["journal.*.*.*.final"]
    await network.stop(ledger)
    with pytest.raises(nats.errors.NoRespondersError):
        await ask(network, "$SRV.INFO.modelnet-ledger")


async def test_a_plain_request_on_an_endpoint_is_no_task_and_harms_nobody(network: Network) -> None:
    worker, _, may_end = speaker(network, "asked")
    await join(network, worker)
    may_end.set()
    with pytest.raises(nats.errors.TimeoutError):
        await network.bus.request("cap.asked.say", b"hello", timeout=0.2)
    assert (await (await network.client.submit("asked.say", {})).final()).status == "completed"
    await network.stop(worker)


async def test_names_of_endpoints() -> None:
    assert endpoint_name("normalize.date.de") == "normalize-date-de"
    assert endpoint_name("normalize.>") == "normalize-all"
    assert endpoint_name("a.b-c", ["a-b-c"]) == "a-b-c-2"
