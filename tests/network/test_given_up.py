"""Tasks that break whoever tries them: a few tries, then a Final, and the whole task in the dead-letter stream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

import modelnet
from modelnet.bus import journal
from modelnet.bus.deadletters import Buried, CannotRetry, DeadLetters, UnknownLetter
from modelnet.messages import Final, Task
from modelnet.processes import ChildProcess
from tests.network.stage import PATIENCE_S, Network, until
from tests.network.test_deaths import lone_process
from workers.negotiator.reception import Reception

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


async def letter_of(network: Network, task: modelnet.TaskHandle) -> Buried:
    """The dead letter that holds this task, the whole of it."""
    found = [buried async for buried in DeadLetters(network.bus).all() if f'"{task.id}"'.encode() in buried.letter.body]
    (buried,) = found
    assert Task.decode(buried.letter.body).id == task.id
    return buried


async def test_a_task_that_kills_its_workers_is_poison_and_stops_killing(network: Network, tmp_path: Path) -> None:
    victims: list[ChildProcess] = []
    for n in range(4):
        victim = lone_process(network, tmp_path / str(n), name=f"victim-{n}")
        await victim.start()
        victims.append(victim)
    try:
        task = await network.client.submit("lone.die", {}, deadline_s=60)
        final = await task.final()
        assert (final.status, final.error and final.error.code, final.attempts) == ("failed", "poison", 3)
        alive = [victim for victim in victims if victim.pid is not None and _runs(victim.pid)]
        assert len(alive) == 1
        buried = await letter_of(network, task)
        assert "3 workers vanished" in buried.letter.reason
    finally:
        for victim in victims:
            await victim.stop()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_task_that_breaks_every_handler_can_be_tried_again(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, broken, ended_first = network.worker("fragile"), True, list[bool]()
    bury = journal.bury

    async def bury_and_look(nc: Client, msg: Msg, reason: str) -> None:
        ended_first.append(any(isinstance(entry, Final) for _, entry in await journal.read(nc, task.tenant, task.id)))
        await bury(nc, msg, reason)

    monkeypatch.setattr(journal, "bury", bury_and_look)

    @worker.capability("fragile.do")
    async def do(ctx: modelnet.Context, input: Json) -> Json:
        if broken:
            raise ValueError("broken")
        return input

    await network.join(worker)
    task = await network.client.submit("fragile.do", {"n": 1})
    final = await task.final()
    assert (final.status, final.error and final.error.code) == ("failed", "worker_error")
    assert ended_first == [False], "one who died between the two would have lost the letter"
    buried = await letter_of(network, task)
    assert "ValueError: broken" in buried.letter.reason
    broken = False
    again = await DeadLetters(network.bus).retry(buried)
    assert again.id != task.id, "under the old id its Final would be the answer"
    assert (await network.client.task(again.id).result()).output == {"n": 1}
    with pytest.raises(UnknownLetter):
        await DeadLetters(network.bus).get(buried.number)
    assert await task.final() == final


async def test_a_task_that_cannot_be_taken_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    take = Reception._take

    async def stumble(self: Reception, msg: Any, task: Task, entries: Any) -> None:
        if task.input.get("stumble"):
            tried.append(task.id)
            raise RuntimeError("stumbled")
        await take(self, msg, task, entries)

    monkeypatch.setattr(Reception, "_take", stumble)
    monkeypatch.setattr("workers.negotiator.reception.RETURN_S", 0.05)
    worker = network.worker("steady")

    @worker.capability("steady.do")
    async def do(ctx: modelnet.Context, input: Json) -> Json:
        return input

    await network.join(worker)
    task = await network.client.submit("steady.do", {"stumble": True})
    final = await task.final()
    assert (final.status, final.error and final.error.code) == ("failed", "internal")
    assert tried == [task.id] * 3
    assert (await letter_of(network, task)).letter.reason == "RuntimeError: stumbled"
    assert (await (await network.client.submit("steady.do", {"n": 1})).result()).output == {"n": 1}
    (negotiator,) = network.negotiators
    assert not negotiator._reception._stumbles


async def test_what_is_no_task_cannot_be_retried(network: Network) -> None:
    letters = DeadLetters(network.bus)
    task = Task(capability="steady.do", input={})
    await network.bus.request(f"task.1.default.{task.id}.steady.do", b"{}", timeout=5)
    final = await network.client.task(task.id).final()
    assert final.error is not None
    assert final.error.code == "malformed"
    (buried,) = [found async for found in letters.all() if task.id in found.letter.subject]
    with pytest.raises(CannotRetry, match="no task"):
        await letters.retry(buried)
    await letters.drop(buried.number)
    with pytest.raises(UnknownLetter):
        await letters.drop(buried.number)


async def test_a_negotiator_that_ends_between_the_letter_and_the_final_loses_neither(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = network.negotiators
    kept, worker, bury = asyncio.Event(), network.worker("broken"), journal.bury

    @worker.capability("broken.do")
    async def do(ctx: modelnet.Context, input: Json) -> Json:
        raise ValueError("broken")

    async def bury_and_stay(nc: Client, msg: Msg, reason: str) -> None:
        await bury(nc, msg, reason)
        if not kept.is_set():
            kept.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(journal, "bury", bury_and_stay)
    await network.join(worker)
    task = await network.client.submit("broken.do", {}, deadline_s=60)
    await until(kept)
    await network.stop(first)
    heir = await network.negotiator()
    async with asyncio.timeout(PATIENCE_S):
        final = await task.final()
    assert (final.status, final.negotiator) == ("failed", heir.id)
    letters = [found async for found in DeadLetters(network.bus).all() if task.id.encode() in found.letter.body]
    assert letters
    assert all(Task.decode(found.letter.body).id == task.id for found in letters)
