"""Tasks that are made of parts, where it hurts: floods, large bodies, deaths, money; nothing of them is left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

import modelnet
from modelnet.bus import journal, subjects
from modelnet.bus.replay import read_all
from modelnet.errors import ConnectionFailed, UnknownTask
from modelnet.handle import TaskHandle
from modelnet.messages import Awarded, Beat, Final, Planned, Task, Timings, new_id, part_id
from tests.network.stage import PATIENCE_S, Network, events, until
from tests.network.test_strategies import Answer, Json, offered, says, worker
from workers.negotiator.reception import Reception
from workers.negotiator.watch import Watch

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = "x" * 400_000


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def clean(network: Network) -> AsyncIterator[None]:
    """One negotiator, and nobody else, is left of the test before."""
    yield
    for party in network.workers:
        await network.stop(party)
    if not network.negotiators:
        await network.negotiator()


class Gate:
    """Workers of an owner each, whose answer waits until the gate is open."""

    def __init__(self) -> None:
        self.runs = Counter[str]()
        self.at_work = Counter[str]()
        self.open = asyncio.Event()
        self._news = asyncio.Event()

    def behind(self, name: str) -> Answer:
        async def answer(input: Json) -> Json:
            self.runs[name] += 1
            self.at_work[name] += 1
            self._news.set()
            try:
                await self.open.wait()
            finally:
                self.at_work[name] -= 1
                self._news.set()
            return {"text": "agreed"}

        return answer

    async def until(self, at_work: int) -> None:
        """Wait until so many are at work."""
        async with asyncio.timeout(PATIENCE_S):
            while sum(self.at_work.values()) != at_work:
                self._news.clear()
                await self._news.wait()


async def final_of(task: TaskHandle) -> Final:
    async with asyncio.timeout(PATIENCE_S):
        return await task.final()


async def ends(network: Network, parts: tuple[str, ...], tenant: str | None = None) -> list[str]:
    """How the parts have ended."""
    return [(await final_of(network.client.task(part, tenant=tenant))).status for part in parts]


# ---------------------------------------------------------------------- room


@pytest.mark.parametrize("strategy", ["race", "panel", "cascade"])
async def test_more_of_them_than_a_negotiator_holds_do_not_starve_their_parts(network: Network, strategy: str) -> None:
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    small = await network.negotiator(max_in_flight=4)  # three of a tenant's at most
    capability = f"room.{strategy}"
    for name in ("a", "b"):
        await worker(network, f"{strategy}-{name}", capability, says("same"), slots=4)
    await offered(network, capability, 2)
    tasks = [await network.client.submit(capability, {}, strategy=strategy, deadline_s=30) for _ in range(6)]
    finals = [await final_of(task) for task in tasks]
    assert {(final.status, bool(final.parts)) for final in finals} == {("completed", True)}
    async with asyncio.timeout(PATIENCE_S):
        while small._reception._intake.held:  # losers, until their cancels stand
            await network.bus.flush()
    await network.stop(small)


async def test_how_many_are_held_is_bounded(network: Network) -> None:
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    small = await network.negotiator(max_in_flight=4)
    gate = Gate()
    for name in ("g1", "g2"):
        await worker(network, name, "room.bound", gate.behind(name), slots=20)
    tasks = [await network.client.submit("room.bound", {}, strategy="panel", deadline_s=30) for _ in range(9)]
    async with asyncio.timeout(PATIENCE_S):
        while sum(gate.at_work.values()) < 2:
            await network.bus.flush()
    held = [held for held in small._hand.all() if held.is_composite]
    assert 1 <= len(held) <= 3  # three quarters of four are one tenant's share
    gate.open.set()
    assert {(await final_of(task)).status for task in tasks} == {"completed"}
    await network.stop(small)


# ---------------------------------------------------------------------- large bodies


async def test_large_answers_are_voted_on_and_passed_on_where_they_are(network: Network) -> None:
    for name, text in (("l1", LARGE), ("l2", LARGE[:-1]), ("l3", LARGE)):
        await worker(network, name, "large.panel", says(text))
    task = await network.client.submit("large.panel", {"text": LARGE}, strategy="panel")
    assert (await task.result()).output == {"text": LARGE}
    stored = [entry for _, entry in await journal.read(network.bus, task.tenant, task.id)]
    (final,) = [entry for entry in stored if isinstance(entry, Final)]
    assert final.output is None
    assert final.output_ref is not None
    assert final.worker != "l2"


async def test_a_checker_sees_large_values_whole(network: Network) -> None:
    seen: list[Json] = []

    async def check(input: Json) -> Json:
        seen.append(input)
        return {"passed": True}

    await worker(network, "writer", "large.cascade", says(LARGE))
    await worker(network, "reader", "large.check", check)
    how = {"kind": "cascade", "check": "large.check"}
    task = await network.client.submit("large.cascade", {"text": LARGE}, strategy=how)
    await task.result()
    assert seen == [{"capability": "large.cascade", "input": {"text": LARGE}, "output": {"text": LARGE}}]


async def test_a_check_that_is_too_large_for_the_bus_fails_the_task(network: Network) -> None:
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    small = await network.negotiator(max_object_bytes=600_000)
    await worker(network, "writer2", "large.toolarge", says(LARGE))
    await worker(network, "reader2", "large.toolarge-check", says("", passed=True))
    how = {"kind": "cascade", "check": "large.toolarge-check"}
    task = await network.client.submit("large.toolarge", {"text": LARGE}, strategy=how)
    final = await final_of(task)
    assert final.error is not None
    assert final.error.code == "too_large"
    await network.stop(small)


# ---------------------------------------------------------------------- deaths and ends


async def running_panel(network: Network, name: str, **options: Any) -> tuple[Gate, TaskHandle]:
    """A panel of three that are all at work."""
    gate = Gate()
    for number in (1, 2, 3):
        await worker(network, f"{name}-{number}", f"panel.{name}", gate.behind(f"{name}-{number}"))
    client = options.pop("client", network.client)
    task = await client.submit(f"panel.{name}", {}, strategy="panel", deadline_s=60, **options)
    await gate.until(3)
    return gate, task


async def test_parts_whose_cancel_died_with_a_negotiator_are_cancelled_by_the_next(network: Network) -> None:
    gate, task = await running_panel(network, "orphans")
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    parts = tuple(part_id(task.id, number) for number in (1, 2, 3))
    zero = Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0)
    final = Final(
        task=task.id,
        tenant=task.tenant,
        capability="panel.orphans",
        status="expired",
        parts=parts,
        negotiator="dead",
        timings=zero,
    )
    entries = await journal.read(network.bus, task.tenant, task.id)
    assert await journal.append(network.bus, task.tenant, task.id, "final", final, entries[-1][0])
    await network.negotiator()
    assert await ends(network, parts) == ["cancelled"] * 3
    await gate.until(0)


async def test_one_that_is_cancelled_while_nobody_has_it_leaves_no_parts(network: Network) -> None:
    gate, task = await running_panel(network, "nobody")
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    assert await task.cancel()
    await network.negotiator()
    assert (await final_of(task)).status == "cancelled"
    await gate.until(0)


async def test_a_task_is_acknowledged_once_its_parts_are_cancelled(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, task = await running_panel(network, "acked")
    (negotiator,) = network.negotiators
    real, asked = negotiator._parts._client.cancel, asyncio.Event()

    async def away(id: str, *, tenant: str | None = None) -> bool:
        asked.set()
        raise ConnectionFailed("the streams are away")

    monkeypatch.setattr(negotiator._parts._client, "cancel", away)
    await task.cancel()
    assert (await final_of(task)).status == "cancelled"
    await until(asked)
    assert [one async for one in read_all(network.bus, "TASKS", subjects.queued_task(task.tenant, task.id))]
    monkeypatch.setattr(negotiator._parts._client, "cancel", real)
    await gate.until(0)
    async with asyncio.timeout(PATIENCE_S):
        while [one async for one in read_all(network.bus, "TASKS", subjects.queued_task(task.tenant, task.id))]:
            await network.bus.flush()


async def test_a_client_that_disappears_takes_the_parts_with_it(network: Network) -> None:
    gone = await modelnet.connect(config=network.config)
    gate, task = await running_panel(network, "client", client=gone, cancel_on_disconnect=True)
    await gone.close()
    final = await final_of(network.client.task(task.id))
    assert (final.status, final.error and final.error.code) == ("cancelled", "client_gone")
    assert await ends(network, final.parts) == ["cancelled"] * 3
    await gate.until(0)


async def test_whoever_takes_it_over_publishes_nothing_again(network: Network) -> None:
    """The stream knows a message's id for two minutes only: after that a part would be there twice."""
    gate, task = await running_panel(network, "again")
    (negotiator,) = network.negotiators
    async with network.ear("task.>") as ear:
        await network.stop(negotiator)
        await network.negotiator()
        gate.open.set()
        final = await final_of(task)
        assert not [msg for msg in ear.heard if msg.subject.endswith(".panel.again")]
    assert (final.status, len(final.parts)) == ("completed", 3)
    assert set(gate.runs.values()) == {1}


async def test_a_panel_waits_until_it_is_known_who_is_there(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negotiator that has just begun has heard nobody: that is no reason for one answer instead of three."""
    meet, take, seen = Watch.meet, Reception._on_task, asyncio.Event()

    async def take_and_tell(self: Reception, msg: Msg) -> None:
        await take(self, msg)
        seen.set()

    async def meet_late(self: Watch, worker: str) -> None:
        await until(seen)
        await meet(self, worker)

    monkeypatch.setattr(Reception, "_on_task", take_and_tell)
    monkeypatch.setattr(Watch, "meet", meet_late)
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    for name in ("early1", "early2", "early3"):
        await worker(network, name, "panel.early", says("same"))
    task = await network.client.submit("panel.early", {}, strategy="panel")
    await network.negotiator(beat_s=0.5)
    final = await final_of(task)
    assert len(final.parts) == 3
    plan = next(event for event in await events(task) if isinstance(event, Planned))
    assert plan.width == 3


async def test_a_cascade_passes_over_a_worker_that_dies(network: Network) -> None:
    gate = Gate()
    await worker(network, "frail", "cascade.frail", gate.behind("frail"), price=1)
    await worker(network, "firm", "cascade.frail", says("firm"), price=50)
    await offered(network, "cascade.frail", 2)
    task = await network.client.submit("cascade.frail", {}, strategy="cascade", deadline_s=120)
    await gate.until(1)
    leaves = Beat(worker="frail", instance="any", slots=1, leaving=True)
    await network.bus.publish(subjects.beat("frail"), leaves.encode())
    final = await final_of(task)
    assert final.worker == "firm"
    await gate.until(0)


async def test_a_cascade_has_no_rung_for_nobody(network: Network) -> None:
    """It waits, as any task does, for a worker to come."""
    await worker(network, "first", "cascade.nobody", says("x"))
    (first,) = network.workers
    await network.stop(first)
    task = await network.client.submit("cascade.nobody", {}, strategy="cascade", deadline_s=30)
    async for event in task.stream():
        if event.kind == "waiting":
            break
    await worker(network, "second", "cascade.nobody", says("y"))
    assert (await final_of(task)).output == {"text": "y"}


async def test_a_plan_that_nobody_made_ends_no_negotiator(network: Network) -> None:
    await worker(network, "honest", "cascade.forged", says("x"))
    for given in ({"strategy": "cascade", "width": 9}, {"strategy": "race", "width": 1}):
        task = Task(capability="cascade.forged", input={}, strategy={"kind": "panel"}, deadline_s=20)
        plan = Planned(task=task.id, why="forged", negotiator="mallory", **given)
        await journal.append(network.bus, task.tenant, task.id, "status", plan, 0)
        handle = await network.client.publish(task)
        assert (await final_of(handle)).status == ("failed" if given["strategy"] == "cascade" else "completed")


async def test_parts_are_tasks_for_whoever_looks(network: Network) -> None:
    for name in ("s1", "s2"):
        await worker(network, name, "panel.seen", says("same"))
    tenant = f"t{new_id()[-12:]}"
    task = await network.client.submit("panel.seen", {}, strategy="panel", id="k" * 64, tenant=tenant)
    final = await final_of(task)
    listed = {one.task: one.status for one in await network.client.tasks(tenant=tenant)}
    assert listed == {task.id: "completed", final.parts[0]: "completed", final.parts[1]: "completed"}
    trace = await network.client.trace(task.id, tenant=tenant)
    assert [part.task for part in trace.parts] == list(final.parts)
    async with asyncio.timeout(PATIENCE_S):  # transcripts are stored a moment after the award
        while len(found := await recorded(network, task)) < 2:
            await network.bus.flush()
    assert {transcript.task for _, transcript in found} == set(final.parts)
    assert not [event for event in await events(task) if isinstance(event, Awarded)]


async def recorded(network: Network, task: TaskHandle) -> list[Any]:
    try:
        return await network.client.transcripts(task.id, tenant=task.tenant)
    except UnknownTask:
        return []
