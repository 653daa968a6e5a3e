"""Tasks that nobody can take now: who waits, in which order they run, and that nobody waits in vain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import modelnet
from modelnet.bus import subjects
from modelnet.handle import TaskHandle
from modelnet.messages import Awarded, Beat, BidRequest, Refusal, Waiting, decode_bid_reply
from tests.network.stage import PATIENCE_S, Network, events

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


class Desk:
    """A worker whose tasks end when the test says so. Unless told otherwise it lets none wait for its slots."""

    def __init__(
        self, network: Network, name: str, *, slots: int = 1, backlog: int = 0, capability: str = "", **options: Any
    ) -> None:
        self.worker = network.worker(name, slots=slots, backlog=backlog, **options)
        self.begun: list[Any] = []
        self.most = 0
        self._open = asyncio.Semaphore(0)
        self._news = asyncio.Condition()
        self._inside = 0

        @self.worker.capability(capability or f"desk.{name}")
        async def serve(ctx: modelnet.Context, input: Json) -> Json:
            self._inside += 1
            self.most = max(self.most, self._inside)
            async with self._news:
                self.begun.append(input.get("n"))
                self._news.notify_all()
            try:
                await self._open.acquire()
            finally:
                self._inside -= 1
            return {"n": input.get("n")}

    def let(self, count: int) -> None:
        """Let this many tasks end."""
        for _ in range(count):
            self._open.release()

    async def until_begun(self, count: int) -> None:
        """Wait until this many have begun."""
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: len(self.begun) >= count), PATIENCE_S)


async def until_waiting(network: Network, *tasks: TaskHandle) -> None:
    """Wait until the readers of these tasks have been told that they wait."""
    for task in tasks:
        async with asyncio.timeout(PATIENCE_S):
            async for event in network.client.task(task.id).stream():
                if isinstance(event, Waiting):
                    break


async def test_tasks_wait_for_a_free_slot_and_run_by_priority_then_age(network: Network) -> None:
    desk = Desk(network, "order")
    await network.join(desk.worker)

    async def submit(n: Any, priority: int = 5) -> TaskHandle:
        return await network.client.submit("desk.order", {"n": n}, priority=priority)

    tasks = [await submit("first")]
    await desk.until_begun(1)
    for n, priority in (("a", 5), ("low", 0), ("b", 5), ("high", 9), ("c", 5)):
        tasks.append(await submit(n, priority))
        await until_waiting(network, tasks[-1])
    desk.let(len(tasks))
    for task in tasks:
        await task.result()
    assert desk.begun == ["first", "high", "a", "b", "c", "low"]
    assert desk.most == 1


async def test_slots_are_never_exceeded_by_a_burst(network: Network) -> None:
    small, large = Desk(network, "small", slots=2, backlog=3), Desk(network, "large", slots=5, backlog=1)
    for desk in (small, large):
        desk.worker.capability("desk.burst")(desk.worker._capabilities[f"desk.{desk.worker.name}"].handler)
    await network.join(small.worker, large.worker)
    tasks = await asyncio.gather(*(network.client.submit("desk.burst", {"n": n}) for n in range(200)))
    await small.until_begun(2)
    await large.until_begun(5)
    await until_waiting(network, next(t for n, t in enumerate(tasks) if n not in {*small.begun, *large.begun}))
    for desk in (small, large):
        desk.let(200)
    async with asyncio.timeout(PATIENCE_S):
        finals = [await task.result() for task in tasks]
    assert [final.output for final in finals] == [{"n": n} for n in range(200)]
    assert sorted([*small.begun, *large.begun]) == list(range(200)), "one was begun twice, or never"
    assert small.most <= 2
    assert large.most <= 5


async def test_a_known_capability_without_a_worker_waits_for_one(network: Network) -> None:
    early = Desk(network, "absent")
    await network.join(early.worker)
    await network.stop(early.worker)
    task = await network.client.submit("desk.absent", {"n": 1})
    await until_waiting(network, task)
    late = Desk(network, "absent")
    late.let(1)
    await network.join(late.worker)
    stream = await events(task)
    assert [event.kind for event in stream] == ["waiting", "awarded", "output", "final"]
    assert isinstance(stream[0], Waiting)
    assert stream[0].reason == "no_worker"
    assert late.begun == [1]


async def test_nobody_starves_behind_tasks_that_want_another_worker(network: Network) -> None:
    """One slot, and waiting in front of it tasks that no living worker may take."""
    desk = Desk(network, "queue")
    await network.join(desk.worker)
    elsewhere = [
        await network.client.submit("desk.queue", {"n": "never"}, require={"worker": "nobody"}, deadline_s=60)
        for _ in range(3)
    ]
    await until_waiting(network, *elsewhere)
    busy = await network.client.submit("desk.queue", {"n": 0})
    await desk.until_begun(1)
    waiting = [await network.client.submit("desk.queue", {"n": n}) for n in (1, 2, 3)]
    await until_waiting(network, *waiting)
    desk.let(4)
    async with asyncio.timeout(PATIENCE_S):
        for task in (busy, *waiting):
            await task.result()
    assert sorted(desk.begun) == [0, 1, 2, 3]
    for task in elsewhere:
        assert await task.cancel()
        assert (await task.final()).status == "cancelled"


async def test_more_tasks_than_fit_the_line_all_run(network: Network) -> None:
    """What does not fit goes back to the stream and comes again."""
    desk = Desk(network, "crowded", slots=4)
    await network.join(desk.worker)
    tasks = await asyncio.gather(*(network.client.submit("desk.crowded", {"n": n}) for n in range(100)))
    await desk.until_begun(4)
    desk.let(100)
    async with asyncio.timeout(PATIENCE_S):
        for task in tasks:
            await task.result()
    assert sorted(desk.begun) == list(range(100))


@pytest.mark.parametrize("why", ["busy", "no_worker"])
async def test_the_deadline_counts_while_a_task_waits(network: Network, why: str) -> None:
    desk = Desk(network, f"deadline-{why}")
    capability = f"desk.deadline-{why}"
    await network.join(desk.worker)
    if why == "busy":
        first = await network.client.submit(capability, {})
        await desk.until_begun(1)
    else:
        await network.stop(desk.worker)
    late = await network.client.submit(capability, {"n": "late"}, deadline_s=0.8)
    final = await late.final()
    assert (final.status, final.error and final.error.code) == ("expired", "expired")
    assert final.error is not None
    assert why.replace("_", " ") in final.error.message
    assert 700 < final.timings.total_ms < 5000
    assert "late" not in desk.begun
    if why == "busy":
        desk.let(1)
        assert (await first.result()).status == "completed"


async def test_an_unknown_capability_is_told_at_once(network: Network) -> None:
    loop = asyncio.get_running_loop()
    task = await network.client.submit("nobody.ever.heard.of.this", {}, deadline_s=60)
    started = loop.time()
    final = await task.final()
    assert (final.status, final.error and final.error.code) == ("failed", "unknown_capability")
    assert loop.time() - started < 2
    assert final.attempts == 0


async def test_an_input_that_breaks_every_contract_is_told_at_once(network: Network) -> None:
    worker = network.worker("strict")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

    @worker.capability("desk.strict", contract={"input": schema})
    async def strict(ctx: modelnet.Context, input: Json) -> Json:
        return {"n": input["n"]}

    await network.join(worker)
    async with network.ear(subjects.capability("desk.strict")) as requests:
        for wrong in ({}, {"n": "one"}):
            final = await (await network.client.submit("desk.strict", wrong)).final()
            assert (final.status, final.error and final.error.code) == ("failed", "contract_violation")
            assert final.error is not None
            assert "n" in final.error.message
        right = await network.client.submit("desk.strict", {"n": 1})
        assert (await right.result()).output == {"n": 1}
        await requests.until(lambda heard: len(heard) == 1)
        assert BidRequest.decode(requests.heard[0].data).capability == "desk.strict"


async def test_a_worker_that_leaves_finishes_what_it_runs_and_takes_no_more(network: Network) -> None:
    desk = Desk(network, "leaving")
    await network.join(desk.worker)
    running = await network.client.submit("desk.leaving", {"n": 1})
    await desk.until_begun(1)
    async with network.ear(subjects.beat(desk.worker.id)) as beats:
        leaving = asyncio.create_task(network.stop(desk.worker))
        await beats.next(lambda msg: b'"draining":true' in msg.data)
    later = await network.client.submit("desk.leaving", {"n": 2})
    await until_waiting(network, later)
    desk.let(1)
    assert (await running.result()).output == {"n": 1}
    await leaving
    assert desk.begun == [1]
    assert await later.cancel()
    assert (await later.final()).status == "cancelled"


async def until_awarded(network: Network, *tasks: TaskHandle) -> None:
    """Wait until each of these is in a worker's hands."""
    for task in tasks:
        async with asyncio.timeout(PATIENCE_S):
            async for event in network.client.task(task.id).stream():
                if isinstance(event, Awarded):
                    break


async def test_what_waits_at_a_worker_is_in_its_hands_and_begins_in_order(network: Network) -> None:
    desk = Desk(network, "backlog", backlog=2)
    await network.join(desk.worker)
    tasks = list[TaskHandle]()
    for n in range(3):
        tasks.append(await network.client.submit("desk.backlog", {"n": n}))
        await until_awarded(network, tasks[-1])
    tasks.append(await network.client.submit("desk.backlog", {"n": 3}))
    await until_waiting(network, tasks[-1])
    assert desk.begun == [0]
    async with network.ear(subjects.beat(desk.worker.id)) as beats:
        beat = Beat.decode((await beats.next()).data)
    assert ([one.task for one in beat.running], beat.free, beat.queued) == ([task.id for task in tasks[:3]], 0, 2)
    desk.let(4)
    finals = [await task.result() for task in tasks]
    assert desk.begun == [0, 1, 2, 3]
    assert desk.most == 1
    assert [final.attempts for final in finals] == [1] * 4


async def test_what_waits_at_a_worker_can_be_cancelled_and_expires(network: Network) -> None:
    desk = Desk(network, "overdue", backlog=2)
    await network.join(desk.worker)
    first = await network.client.submit("desk.overdue", {"n": "first"})
    await desk.until_begun(1)
    unwanted = await network.client.submit("desk.overdue", {"n": "unwanted"})
    late = await network.client.submit("desk.overdue", {"n": "late"}, deadline_s=1.0)
    await until_awarded(network, unwanted, late)
    assert await unwanted.cancel()
    assert (await unwanted.final()).status == "cancelled"
    assert (await late.final()).status == "expired"
    after = await network.client.submit("desk.overdue", {"n": "after"})
    await until_awarded(network, after)
    desk.let(2)
    for task in (first, after):
        await task.result()
    assert desk.begun == ["first", "after"]


async def test_a_worker_that_leaves_hands_on_what_waits_there(network: Network) -> None:
    old = Desk(network, "old", backlog=2, capability="desk.handed-on")
    new = Desk(network, "new", slots=2, capability="desk.handed-on")
    await network.join(old.worker)
    tasks = [await network.client.submit("desk.handed-on", {"n": n}) for n in range(3)]
    await until_awarded(network, *tasks)
    await network.join(new.worker)
    leaving = asyncio.create_task(network.stop(old.worker))
    await new.until_begun(2)
    assert len(old.begun) == 1, "it goes on with what it has begun"
    old.let(1)
    new.let(2)
    finals = [await task.result() for task in tasks]
    await leaving
    assert sorted([*old.begun, *new.begun]) == [0, 1, 2]
    assert sorted((final.worker, final.attempts) for final in finals) == [("new", 2), ("new", 2), ("old", 1)]


async def test_a_worker_that_asks_for_scarcity_asks_more_of_what_must_wait(network: Network) -> None:
    worker, gate = network.worker("scarce", slots=1, backlog=1, scarcity=True), asyncio.Semaphore(0)

    @worker.capability("desk.scarce", price=100, estimate=lambda features: (100, 200))
    async def serve(ctx: modelnet.Context, input: Json) -> Json:
        await gate.acquire()
        return {}

    await network.join(worker)
    async with network.ear("bid.>") as bids:
        tasks = list[TaskHandle]()
        for _ in range(2):
            tasks.append(await network.client.submit("desk.scarce", {}))
            await until_awarded(network, tasks[-1])
        tasks.append(await network.client.submit("desk.scarce", {}))
        await until_waiting(network, tasks[-1])
        gate.release()
        await until_awarded(network, tasks[-1])
        gate.release()
        gate.release()
        for task in tasks:
            await task.result()
        refused = [one.reason for msg in bids.heard if isinstance(one := decode_bid_reply(msg.data), Refusal)]
    assert set(refused) == {"busy"}
    # Of the auctions that somebody won: one whose answer came late was held again.
    auctions = [one for task in tasks for _, one in (await network.client.trace(task.id)).transcripts]
    assert [one.bids[0].price for one in auctions if one.winner] == [100, 100, 104]
