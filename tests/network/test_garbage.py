"""What nobody should send: on every subject, in the task stream, in the catalogue. It is told, kept, and survived."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import modelnet
from modelnet.bus import journal, subjects
from modelnet.bus.catalogue import Catalogue, contract_key
from modelnet.bus.replay import read_all
from modelnet.bus.streams import CATALOGUE, setup_bus
from modelnet.messages import AdoptAttempt, Award, Beat, Contract, DeadLetter, Task, new_id
from tests.network.stage import Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(network: Network) -> AsyncIterator[modelnet.Worker]:
    found = network.worker("sturdy", slots=4)

    @found.capability("garbage.echo")
    async def echo(ctx: modelnet.Context, input: Json) -> AsyncIterator[str | Json]:
        yield "echo"
        yield {"text": input.get("text")}

    await network.join(found)
    yield found


async def still_works(network: Network) -> None:
    """A task runs as if nothing had been."""
    final = await (await network.client.submit("garbage.echo", {"text": "x"}, deadline_s=5)).result()
    assert final.output == {"text": "x"}
    assert [live.card.worker for live in await network.client.workers()] == ["sturdy"]


def garbage(seed: int) -> list[bytes]:
    """Bodies that are nothing, almost something, or something else."""
    chance = random.Random(seed)
    return [
        b"",
        chance.randbytes(40),
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b'{"version":1}',
        b'{"kind":"bid","auction":"x","worker":"sturdy","price":-1,"p50_ms":0,"p90_ms":1e999}',
        b'{"worker":"sturdy","instance":"?","slots":1}',
        b'{"worker":"a.b","instance":1,"slots":"many","running":[{}]}',
        json.dumps({"tenant": "default", "task": "?" * 99, "attempt": -1}).encode(),
        b"[" * 50_000,
        chance.randbytes(100_000),
    ]


@pytest.mark.parametrize(
    "subject",
    [
        "beat.sturdy",
        "beat.stranger",
        "offer.garbage.echo.sturdy",
        "offer.x",
        "roll",
        "cap.garbage.echo",
        "bid.{negotiator}.auction.sturdy",
        "bid.{negotiator}.{auction}.stranger",
        "done.{negotiator}.{task}.sturdy.1",
        "done.{negotiator}.x",
        "worker.sturdy.award",
        "worker.sturdy.cancel",
        "worker.sturdy.query",
        "worker.stranger.award",
        "result.default.{lane}.{task}.sturdy.1",
        "result.default.{lane}.{task}.status",
        "result.default.{lane}.{task}.cancel",
        "result.default.{lane}.{task}.final",
        "result.default.{lane}.{task}.sturdy.x",
        "audit.default.{task}",
        "dlq.task",
    ],
)
async def test_garbage_on_any_subject_is_survived(network: Network, worker: modelnet.Worker, subject: str) -> None:
    (negotiator,) = network.negotiators
    task = new_id()
    names = {"negotiator": negotiator.id, "auction": new_id(), "task": task, "lane": subjects.lane(task)}
    inbox = network.bus.new_inbox()
    async with network.ear(subject.format(**names)) as ear:
        bodies = garbage(seed=1)
        for body in bodies:
            await network.bus.publish(subject.format(**names), body)
            await network.bus.publish(subject.format(**names), body, reply=inbox)
        await ear.until(lambda heard: len(heard) >= 2 * len(bodies))
    await still_works(network)


async def test_an_order_that_asks_for_no_answer_is_not_obeyed(network: Network, worker: modelnet.Worker) -> None:
    """It would be an attempt that nobody knows to run; and its answer must not fail for want of a subject."""
    (negotiator,) = network.negotiators
    task = new_id()
    award = Award(
        auction=new_id(),
        negotiator=negotiator.id,
        task=task,
        tenant="default",
        attempt=1,
        capability="garbage.echo",
        input={"text": "x"},
        price=0,
        remaining_ms=5000,
    )
    adopt = AdoptAttempt(tenant="default", task=task, attempt=1, negotiator=negotiator.id)
    async with network.ear("worker.sturdy.*") as ear, network.ear(subjects.stream_of("default", task)) as results:
        await network.bus.publish(subjects.award("sturdy"), award.encode())
        await network.bus.publish(subjects.adopt("sturdy"), adopt.encode())
        await ear.until(lambda heard: len(heard) == 2)
        await still_works(network)
        assert not results.heard
    beat = Beat.decode((await network.bus.request(subjects.query("sturdy"), b"{}", timeout=5)).data)
    assert beat.running == ()


async def test_a_drain_without_sense_drains_nobody(
    network: Network, worker: modelnet.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", stops.append)
    async with network.ear(subjects.drain("sturdy")) as ear:
        for body in (b"", b"\xff", b"[]", b"7", b"[" * 50_000, b'{"version":0}'):
            await network.bus.publish(subjects.drain("stranger"), body)
            await network.bus.publish(subjects.drain("sturdy"), body)
        await ear.until(lambda heard: len(heard) == 6)
    await still_works(network)
    assert stops == []


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_no_task_goes_to_the_dead_letters_and_gets_a_final(
    network: Network, worker: modelnet.Worker, seed: int
) -> None:
    body = [b"\x00not json", b'{"id":"x"}', b'{"capability":"garbage.echo","input":7}'][seed]
    task = new_id()
    subject = f"task.1.default.{task}.garbage.echo"
    await network.bus.request(subject, body, timeout=5, headers={"Origin": "test"})
    final = await network.client.task(task).final()
    assert (final.status, final.error and final.error.code) == ("failed", "malformed")
    stored = [stored.body async for stored in read_all(network.bus, "DLQ", "dlq.task")]
    (letter,) = [DeadLetter.decode(found) for found in stored if task.encode() in found]
    assert letter.body == body
    assert letter.headers["Origin"] == "test"
    assert final.error is not None
    assert letter.reason == final.error.message
    await still_works(network)


async def test_a_body_under_another_subject_is_malformed(network: Network, worker: modelnet.Worker) -> None:
    task = Task(capability="garbage.echo", input={})
    other = new_id()
    await network.bus.request(f"task.1.victim.{other}.garbage.echo", task.encode(), timeout=5)
    final = await network.client.task(other, tenant="victim").final()
    assert final.error is not None
    assert final.error.code == "malformed"
    with pytest.raises(modelnet.ModelnetError):
        await network.client.trace(task.id)


async def test_a_body_as_large_as_the_server_takes_is_no_poison(network: Network, worker: modelnet.Worker) -> None:
    for body, code in ((b"x" * 1_000_000, "malformed"), (None, "too_large")):
        task = Task(capability="garbage.echo", input={"text": "x" * 900_000})
        await network.bus.request(subjects.task(task), body or task.encode(), timeout=5)
        final = await network.client.task(task.id).final()
        assert final.error is not None
        assert final.error.code == code
    await still_works(network)


async def test_an_unreadable_entry_in_a_journal_ends_no_task(network: Network, worker: modelnet.Worker) -> None:
    task = Task(capability="garbage.echo", input={"text": "x"})
    for entry in ("status", "cancel", "anything"):
        await network.bus.request(subjects.journal(task.tenant, task.id, entry), b"\xffgarbage", timeout=5)
    await network.bus.request(subjects.task(task), task.encode(), timeout=5)
    final = await network.client.task(task.id).result()
    assert final.output == {"text": "x"}
    assert len(await journal.read(network.bus, task.tenant, task.id)) <= 6


async def test_a_contract_that_is_no_schema_harms_only_its_worker(network: Network, worker: modelnet.Worker) -> None:
    """Nor is one that points elsewhere ever fetched."""
    broken: list[Json] = [{"type": 7}, {"$ref": "http://127.0.0.1:9/schema.json"}, {"$ref": "#/nowhere"}]
    for schema in broken:
        contract = Contract(capability="garbage.echo", input=schema)
        await network.bus.request(f"$KV.{CATALOGUE}.{contract_key(contract)}", contract.encode(), timeout=5)
    await network.bus.request(f"$KV.{CATALOGUE}.contract.x.y", b"\xff", timeout=5)
    await network.bus.request(f"$KV.{CATALOGUE}.worker.garbage", b"{}", timeout=5)
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    await network.negotiator()
    await still_works(network)
    assert len(await Catalogue(network.bus).contracts()) >= 4


async def test_setting_up_again_under_load_disturbs_nobody(network: Network, worker: modelnet.Worker) -> None:
    tasks = [await network.client.submit("garbage.echo", {"text": str(n)}) for n in range(20)]
    await setup_bus(network.bus, ack_wait_s=network.config.ack_wait_s)
    assert [(await task.result()).output for task in tasks] == [{"text": str(n)} for n in range(20)]
