"""Cancels: at every point of a task's life, and how soon they reach the handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import modelnet
from modelnet.bus import subjects
from modelnet.errors import TaskCancelled, UnknownTask
from modelnet.messages import Award, CancelAttempt, Waiting, new_id
from tests.network.stage import Network, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


class Sleeper:
    """A worker whose one slot is taken until the attempt is cancelled."""

    def __init__(self, network: Network) -> None:
        self.worker = network.worker("sleeper", slots=1, backlog=0)
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()
        self.times = 0

        @self.worker.capability("cancel.sleep")
        async def sleep(ctx: modelnet.Context, input: Json) -> AsyncIterator[str]:
            self.times += 1
            self.begun.set()
            yield "begun"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        @self.worker.capability("cancel.quick")
        async def quick(ctx: modelnet.Context, input: Json) -> Json:
            return {"done": True}


@pytest_asyncio.fixture(loop_scope="module")
async def sleeper(network: Network) -> AsyncIterator[Sleeper]:
    found = Sleeper(network)
    await network.join(found.worker)
    yield found
    await network.stop(found.worker)


async def test_a_cancel_reaches_the_handler_and_the_reader_at_once(network: Network, sleeper: Sleeper) -> None:
    task = await network.client.submit("cancel.sleep", {})
    await until(sleeper.begun)
    started = asyncio.get_running_loop().time()
    assert await task.cancel()
    await until(sleeper.cancelled)
    reached = asyncio.get_running_loop().time() - started
    with pytest.raises(TaskCancelled):
        await task.result()
    final = await task.final()
    assert (final.status, final.output, final.error and final.error.code) == ("cancelled", None, "cancelled")
    assert reached < 0.5, "the target is 0.1 s on an idle machine"
    after = await network.client.submit("cancel.quick", {}, deadline_s=5)
    assert (await after.result()).output == {"done": True}, "its slot is free again"


async def test_a_waiting_task_can_be_cancelled_and_never_runs(network: Network, sleeper: Sleeper) -> None:
    running = await network.client.submit("cancel.sleep", {})
    await until(sleeper.begun)
    waiting = await network.client.submit("cancel.sleep", {})
    async for event in waiting.stream():
        if isinstance(event, Waiting):
            assert await network.client.cancel(waiting.id)
    assert (await waiting.final()).status == "cancelled"
    assert await running.cancel()
    assert (await running.final()).status == "cancelled"
    quick = await network.client.submit("cancel.quick", {}, deadline_s=5)
    await quick.result()
    assert sleeper.times == 1


async def test_cancelling_again_or_after_the_end_is_harmless_and_says_so(network: Network, sleeper: Sleeper) -> None:
    task = await network.client.submit("cancel.sleep", {})
    await until(sleeper.begun)
    assert any(await asyncio.gather(task.cancel(), task.cancel(), task.cancel()))
    assert (await task.final()).status == "cancelled"
    assert await task.cancel() is False
    done = await network.client.submit("cancel.quick", {})
    final = await done.result()
    assert await done.cancel() is False
    assert await network.client.task(done.id).final() == final


async def test_cancelling_what_nobody_knows_says_so(network: Network, sleeper: Sleeper) -> None:
    with pytest.raises(UnknownTask):
        await network.client.cancel("no-such-task")


async def test_a_cancel_that_is_not_in_the_journal_cancels_nothing(network: Network, sleeper: Sleeper) -> None:
    task = await network.client.submit("cancel.sleep", {})
    await until(sleeper.begun)
    for headers in (None, {"Nats-Sequence": "all"}):
        await network.bus.publish(
            subjects.accepted(task.tenant, task.id, "cancel"), b'{"kind":"cancel"}', headers=headers
        )
    await network.bus.flush()
    (summary,) = [found for found in await network.client.tasks() if found.task == task.id]
    assert summary.status == "running"
    assert not sleeper.cancelled.is_set()
    assert await task.cancel()
    assert (await task.final()).status == "cancelled"


async def test_the_child_of_a_cancelled_task_ends_with_it(network: Network, sleeper: Sleeper) -> None:
    parent, called = network.worker("parent"), asyncio.Event()

    @parent.capability("cancel.parent")
    async def call(ctx: modelnet.Context, input: Json) -> Json:
        called.set()
        return await ctx.call("cancel.sleep", {})

    await network.join(parent)
    task = await network.client.submit("cancel.parent", {})
    await until(called)
    await until(sleeper.begun)
    assert await task.cancel()
    await until(sleeper.cancelled)
    assert (await task.final()).status == "cancelled"
    await network.stop(parent)


async def test_a_cancel_right_behind_its_award_frees_the_slot(network: Network, sleeper: Sleeper) -> None:
    """It comes before the attempt has begun."""
    award = Award(
        auction=new_id(), negotiator="gone", task=new_id(), tenant="t", attempt=1, capability="cancel.sleep",
        input={}, price=1, remaining_ms=60_000,
    )  # fmt: skip
    cancel = CancelAttempt(tenant="t", task=award.task, attempt=1)
    async with network.ear("reply.to.award") as replies:
        await network.bus.publish(subjects.award("sleeper"), award.encode(), reply="reply.to.award")
        await network.bus.publish(subjects.cancel_attempt("sleeper"), cancel.encode())
        await replies.until(lambda heard: len(heard) == 1)
    quick = await network.client.submit("cancel.quick", {}, deadline_s=5)
    assert (await quick.result()).output == {"done": True}


async def test_a_task_that_no_negotiator_has_taken_yet_is_cancelled_by_the_first(network: Network) -> None:
    """The server keeps the cancel; whoever takes the task finds it."""
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    queued = await network.client.submit("cancel.sleep", {})
    assert await queued.cancel()
    (summary,) = [found for found in await network.client.tasks() if found.task == queued.id]
    assert summary.status == "queued"
    await network.negotiator()
    final = await queued.final()
    assert (final.status, final.worker) == ("cancelled", None)


async def test_a_client_that_disappears_takes_its_tasks_with_it(network: Network, sleeper: Sleeper) -> None:
    gone, stays = await modelnet.connect(config=network.config), await modelnet.connect(config=network.config)
    doomed = await gone.submit("cancel.sleep", {}, cancel_on_disconnect=True)
    kept = await stays.submit("cancel.sleep", {}, cancel_on_disconnect=True)
    left = await gone.submit("cancel.sleep", {}, deadline_s=60)
    await until(sleeper.begun)
    await gone.close()
    final = await network.client.task(doomed.id).final()
    assert (final.status, final.error and final.error.code) == ("cancelled", "client_gone")
    await until(sleeper.cancelled)
    statuses = {summary.task: summary.status for summary in await network.client.tasks()}
    assert {statuses[kept.id], statuses[left.id]} <= {"running", "waiting", "queued"}
    for task in (kept, network.client.task(left.id)):
        assert await task.cancel()
        assert (await task.final()).status == "cancelled"
    await stays.close()


async def test_child_work_ends_with_its_parent(network: Network, sleeper: Sleeper) -> None:
    parent = network.worker("parent")

    @parent.capability("cancel.parent")
    async def call(ctx: modelnet.Context, input: Json) -> Json:
        return await ctx.call("cancel.sleep", {})

    await network.join(parent)
    task = await network.client.submit("cancel.parent", {})
    await until(sleeper.begun)
    assert await task.cancel()
    await until(sleeper.cancelled)
    await network.stop(parent)
