"""Several negotiators share the work; one that stops, or dies, loses nothing and repeats no Final."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

import modelnet
from modelnet.bus import subjects
from modelnet.bus.streams import last_sequence
from modelnet.messages import AdoptAttempt, Awarded, Task, Waiting, decode_entry
from modelnet.processes import ChildProcess
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


async def crew(
    network: Network, capability: str, count: int = 3, slots: int = 8, answered: list[int] | None = None
) -> list[modelnet.Worker]:
    """Workers that answer with the number they got, and note it."""
    workers = [network.worker(f"{capability.replace('.', '-')}-{n}", slots=slots) for n in range(count)]
    for worker in workers:

        @worker.capability(capability)
        async def answer(ctx: modelnet.Context, input: Json) -> Json:
            if answered is not None:
                answered.append(input["n"])
            return {"n": input["n"]}

    await network.join(*workers)
    return workers


def awarded_in(entries: list[Msg]) -> set[str]:
    """The tasks whose award is among these journal entries."""
    return {entry.task for entry in (decode_entry(msg.data) for msg in entries) if isinstance(entry, Awarded)}


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _all_leave(bare_network: Network) -> AsyncIterator[None]:
    """Each test has its own negotiators: they would take another's tasks."""
    yield
    await bare_network.clear()


async def finals_of(network: Network, tenant: str) -> Counter[str]:
    """How many Finals the journal holds for each task of a tenant."""
    return Counter(summary.task for summary in await network.client.tasks(tenant=tenant) if summary.final is not None)


async def test_three_negotiators_share_300_tasks(bare_network: Network) -> None:
    network = bare_network
    negotiators = [await network.negotiator() for _ in range(3)]
    answered: list[int] = []
    await crew(network, "share.many", answered=answered)
    async with network.ear(subjects.journal("many", "*", "final")) as ends:
        tasks = await asyncio.gather(
            *(network.client.submit("share.many", {"n": n}, tenant="many") for n in range(300))
        )
        async with asyncio.timeout(PATIENCE_S):
            finals = [await task.result() for task in tasks]
        await ends.until(lambda heard: len({msg.subject for msg in heard}) == 300)
    assert [final.output for final in finals] == [{"n": n} for n in range(300)]
    assert len(await finals_of(network, "many")) == 300
    done_by = Counter(final.negotiator for final in finals)
    assert set(done_by) == {negotiator.id for negotiator in negotiators}, done_by
    assert sorted(answered) == list(range(300)), "one was run twice, or never"


async def test_a_negotiator_that_stops_gives_its_tasks_back_at_once(bare_network: Network) -> None:
    network = bare_network
    first = await network.negotiator()
    worker, gate, begun = network.worker("gatekeeper", slots=1), asyncio.Event(), asyncio.Event()

    @worker.capability("share.stop")
    async def wait(ctx: modelnet.Context, input: Json) -> Json:
        begun.set()
        await gate.wait()
        return {}

    await network.join(worker)
    tasks = [await network.client.submit("share.stop", {"n": n}) for n in range(20)]
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    async with network.ear(subjects.stream_of("default", tasks[-1].id)) as news:
        await news.until(lambda heard: any(isinstance(decode_entry(msg.data), Waiting) for msg in heard))
    second = await network.negotiator()
    stopped_at = asyncio.get_running_loop().time()
    await network.stop(first)
    gate.set()
    async with asyncio.timeout(PATIENCE_S):
        finals = [await task.result() for task in tasks]
    assert asyncio.get_running_loop().time() - stopped_at < network.config.ack_wait_s - 2, "nobody gave them back"
    assert {final.negotiator for final in finals} == {second.id}
    await network.stop(second)


async def test_attempts_of_a_killed_negotiator_are_adopted_by_another(bare_network: Network, tmp_path: Path) -> None:
    network = bare_network
    begun, gate = asyncio.Queue[int](), asyncio.Event()
    worker = network.worker("patient", slots=4)

    @worker.capability("share.kill")
    async def wait(ctx: modelnet.Context, input: Json) -> Json:
        begun.put_nowait(input["n"])
        await gate.wait()
        return {"attempt": ctx.attempt}

    await network.join(worker)
    environment = {"MODELNET_URL": network.config.url, "MODELNET_BEAT_S": "0.2", "MODELNET_ACK_WAIT_S": "2"}
    doomed = ChildProcess(
        "negotiator",
        [sys.executable, "-m", "modelnet.run", "workers.negotiator:app"],
        log_dir=tmp_path,
        ready=b"negotiator_started",
        restart=False,
        env=environment,
    )
    await doomed.start()
    try:
        async with network.ear(subjects.accepted("kill", "*", "status")) as entries:
            tasks = [await network.client.submit("share.kill", {"n": n}, tenant="kill") for n in range(8)]
            async with asyncio.timeout(PATIENCE_S):
                at_work = {await begun.get() for _ in range(4)}
            # An award may overtake its entry, and die with its negotiator: that attempt nobody could adopt.
            await entries.until(lambda heard: {tasks[n].id for n in at_work} <= awarded_in(heard))
        doomed.kill()
        async with network.ear("worker.patient.adopt") as questions:
            heir = await network.negotiator(ack_wait_s=2)
            await questions.until(
                lambda heard: {AdoptAttempt.decode(msg.data).task for msg in heard} >= {tasks[n].id for n in at_work}
            )
        gate.set()
        async with asyncio.timeout(2 * PATIENCE_S):
            finals = [await task.result() for task in tasks]
    finally:
        await doomed.stop()
    assert {final.negotiator for final in finals} == {heir.id}
    assert [final.status for final in finals] == ["completed"] * 8
    waited = {begun.get_nowait() for _ in range(begun.qsize())}
    assert (at_work | waited, at_work & waited) == (set(range(8)), set()), "each of the eight was run once"
    assert {finals[n].attempts for n in at_work} == {1}, "what ran was adopted, not awarded again"
    assert set((await finals_of(network, "kill")).values()) == {1}


async def test_a_task_that_has_ended_is_not_run_again_by_one_who_comes_later(bare_network: Network) -> None:
    """After its crash a server delivers again, as if for the first time, what it had delivered before."""
    network, answered = bare_network, list[int]()
    negotiator = await network.negotiator()
    await crew(network, "share.again", count=1, answered=answered)
    task = Task(capability="share.again", input={"n": 1})
    await network.bus.request(subjects.task(task), task.encode(), timeout=5)
    final = await network.client.task(task.id).result()
    await network.stop(negotiator)
    await network.bus.request(subjects.task(task), task.encode(), timeout=5)
    await network.negotiator()
    async with network.ear("$JS.ACK.TASKS.>") as acks:
        other = Task(capability="share.again", input={"n": 2})
        await network.bus.request(subjects.task(other), other.encode(), timeout=5)
        await network.client.task(other.id).result()
        await acks.until(lambda heard: b"+ACK" in {msg.data for msg in heard})
    assert answered == [1, 2]
    assert await network.client.task(task.id).final() == final


async def test_what_a_dead_negotiator_awarded_counts_no_more(bare_network: Network) -> None:
    """The journal names an award of a negotiator that is gone; the next one gives the task to a new attempt."""
    network = bare_network
    negotiator = await network.negotiator()
    await crew(network, "share.orphan", count=1)
    before = await last_sequence(network.bus, "TASKS")
    await network.stop(negotiator)
    task = await network.client.submit("share.orphan", {"n": 1})
    assert await last_sequence(network.bus, "TASKS") == before + 1
    stale = Awarded(task=task.id, attempt=1, worker="nobody", price=1, negotiator="gone")
    await network.bus.request(subjects.journal(task.tenant, task.id, "status"), stale.encode(), timeout=5)
    heir = await network.negotiator()
    final = await task.result()
    assert (final.attempts, final.attempt, final.negotiator, final.output) == (2, 2, heir.id, {"n": 1})
    trace = await network.client.trace(task.id)
    assert [(a["worker"], a["outcome"]) for a in trace.attempts] == [
        ("nobody", "abandoned"),
        ("share-orphan-0", "output"),
    ]
