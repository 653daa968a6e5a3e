"""Workers that die or fall silent: the task goes on with another, and what the first still says changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import modelnet
from modelnet.bus import journal, subjects
from modelnet.messages import Awarded, Delta, Done, Final, Output, Reset, digest_of
from modelnet.processes import ChildProcess
from modelnet.reader import StreamEvent
from tests.network import lone_worker
from tests.network.stage import PATIENCE_S, Network, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


def lone_process(network: Network, folder: Path, name: str = "lone", *, beat_s: float = 0.2) -> ChildProcess:
    """The worker of `lone_worker.py` as a process of its own."""
    folder.mkdir(exist_ok=True)
    return ChildProcess(
        name,
        [sys.executable, "-m", "modelnet.run", "tests.network.lone_worker:app"],
        log_dir=folder,
        ready=b"workers_joined",
        restart=False,
        env={
            "MODELNET_URL": network.config.url,
            "MODELNET_BEAT_S": str(beat_s),
            "MODELNET_LOG_LEVEL": "info",
            "LONE_NAME": name,
        },
    )


def relay(network: Network) -> modelnet.Worker:
    """Counts on to ten, for more money."""
    worker = network.worker("relay")

    @worker.capability("lone.count", price=500, continues=True)
    async def count(ctx: modelnet.Context, input: Json) -> AsyncIterator[str]:
        assert ctx.resume is not None
        for number in range(len(ctx.resume.text.split()) + 1, 11):
            yield f"{number} "

    return worker


def rescuer(network: Network) -> modelnet.Worker:
    """Speaks the same capability to its end, for more money."""
    worker = network.worker("rescuer")

    @worker.capability("lone.speak", price=500)
    async def speak(ctx: modelnet.Context, input: Json) -> AsyncIterator[str]:
        for word in ("ein ", "anderer ", "Satz"):
            yield word

    return worker


class Reading:
    """A reader in the background."""

    def __init__(self, task: modelnet.TaskHandle) -> None:
        self.seen: list[StreamEvent] = []
        self._task, self._news = task, asyncio.Condition()
        self._job = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self._task.stream():
            async with self._news:
                self.seen.append(event)
                self._news.notify_all()

    @property
    def text(self) -> str:
        """The deltas since the last reset."""
        text = ""
        for event in self.seen:
            text = "" if isinstance(event, Reset) else text + (event.text if isinstance(event, Delta) else "")
        return text

    async def until_text(self, text: str) -> None:
        """Wait until this much was read."""
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: self.text == text), PATIENCE_S)

    async def end(self) -> Final:
        """Wait for the end."""
        await asyncio.wait_for(self._job, PATIENCE_S)
        last = self.seen[-1]
        assert isinstance(last, Final)
        return last


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_task_outlives_its_worker(network: Network, tmp_path: Path, how: signal.Signals) -> None:
    lone, other = lone_process(network, tmp_path), rescuer(network)
    await lone.start()
    pid = lone.pid
    assert pid is not None
    try:
        task = await network.client.submit("lone.speak", {}, deadline_s=30)
        reading = Reading(task)
        await reading.until_text("".join(lone_worker.WORDS))
        await network.join(other)
        os.kill(pid, how)
        final = await reading.end()
        assert (final.status, final.worker, final.attempts, final.attempt) == ("completed", "rescuer", 2, 2)
        kinds = [event.kind for event in reading.seen]
        assert kinds.count("awarded") == 2
        assert kinds.count("reset") == 1
        assert reading.text == task.text == "ein anderer Satz"
        assert final.output == {"text": "ein anderer Satz"}
        after = reading.seen[kinds.index("reset") :]
        assert [e.number for e in after if isinstance(e, Delta | Output)] == list(range(1, len(after) - 1))
        trace = await network.client.trace(task.id)
        assert [(a["worker"], a["outcome"]) for a in trace.attempts] == [("lone", "abandoned"), ("rescuer", "output")]
        if how is signal.SIGSTOP:  # the zombie wakes, finds its cancel, and may say what it likes
            async with network.ear("beat.lone") as beats:
                os.kill(pid, signal.SIGCONT)
                await beats.next(lambda msg: b'"running":[]' in msg.data)
            assert await network.client.task(task.id).final() == final
    finally:
        if lone.pid is not None:
            os.kill(lone.pid, signal.SIGCONT)
        await lone.stop()
        await network.stop(other)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_text_goes_on_where_its_worker_stopped(network: Network, tmp_path: Path, how: signal.Signals) -> None:
    lone, other = lone_process(network, tmp_path), relay(network)
    whole = "".join(f"{number} " for number in range(1, 11))
    await lone.start()
    pid = lone.pid
    assert pid is not None
    try:
        task = await network.client.submit("lone.count", {}, deadline_s=30)
        reading = Reading(task)
        await reading.until_text("1 2 3 4 5 ")
        await network.join(other)
        os.kill(pid, how)
        final = await reading.end()
        assert (final.status, final.worker, final.attempts, final.output) == ("completed", "relay", 2, {"text": whole})
        assert reading.text == task.text == whole
        assert "reset" not in [event.kind for event in reading.seen]
        numbers = [event.number for event in reading.seen if isinstance(event, Delta | Output)]
        assert numbers == list(range(1, len(numbers) + 1))
        late = Reading(network.client.task(task.id))
        assert await late.end() == final
        assert late.text == whole
    finally:
        if lone.pid is not None:
            os.kill(lone.pid, signal.SIGCONT)
        await lone.stop()
        await network.stop(other)


async def test_a_restarted_workers_first_beat_tells_what_is_gone(network: Network, tmp_path: Path) -> None:
    """No other beat comes, and the negotiator would wait minutes for the missing ones."""
    (usual,) = network.negotiators
    await network.stop(usual)
    patient = await network.negotiator(missed_beats=1000)
    lone, other = lone_process(network, tmp_path, beat_s=600), relay(network)
    await lone.start()
    try:
        task = await network.client.submit("lone.count", {}, deadline_s=60)
        reading = Reading(task)
        await reading.until_text("1 2 3 4 5 ")
        await network.join(other)
        assert lone.pid is not None
        os.kill(lone.pid, signal.SIGKILL)
        await lone.stop()
        await lone.start()
        final = await reading.end()
        assert (final.worker, final.attempts) == ("relay", 2)
        assert reading.text == "".join(f"{number} " for number in range(1, 11))
    finally:
        await lone.stop()
        await network.stop(other)
        await network.stop(patient)
        await network.negotiator()


async def test_the_late_words_of_a_zombie_change_nothing(network: Network) -> None:
    """An attempt that was given up goes on talking, in plain messages: deltas, an output, and a Done."""
    worker, gate, begun = network.worker("second"), asyncio.Event(), asyncio.Event()

    @worker.capability("zombie.speak")
    async def speak(ctx: modelnet.Context, input: Json) -> AsyncIterator[str]:
        yield "right "
        begun.set()
        await gate.wait()
        yield "words"

    await network.join(worker)
    task = await network.client.submit("zombie.speak", {})
    reading = Reading(task)
    await until(begun)
    await reading.until_text("right ")
    ((_, awarded),) = await journal.read(network.bus, task.tenant, task.id)
    assert isinstance(awarded, Awarded)
    for zombie, attempt in (("zombie", 1), ("second", 2), ("zombie", 9)):
        subject = subjects.result(task.tenant, task.id, zombie, attempt)
        wrong: dict[str, Any] = {"task": task.id, "attempt": attempt, "worker": zombie}
        await network.bus.publish(subject, Delta(**wrong, number=2, text="wrong").encode())
        output = {"text": "wrong"}
        last = Output(**wrong, number=3, output=output, digest=digest_of(output))
        await network.bus.publish(subject, last.encode())
        done = Done(**wrong, tenant=task.tenant, number=3, output=output, digest=last.digest)
        await network.bus.publish(subjects.done(awarded.negotiator, task.id, zombie, attempt), done.encode())
        # In another's name: the subject says who speaks.
        honest = Done(**{**wrong, "worker": "second", "attempt": 1}, tenant=task.tenant, number=3, output=output)
        await network.bus.publish(subjects.done(awarded.negotiator, task.id, zombie, attempt), honest.encode())
    await network.bus.flush()
    gate.set()
    final = await reading.end()
    assert (final.output, final.worker, final.attempt) == ({"text": "right words"}, "second", 1)
    assert reading.text == "right words"
    assert [event.kind for event in reading.seen] == ["awarded", "delta", "delta", "output", "final"]
    late = Reading(network.client.task(task.id))
    assert await late.end() == final
    assert late.text == "right words"


async def test_an_attempt_that_fails_goes_to_others_and_then_the_task_fails(network: Network) -> None:
    tried: list[str] = []
    workers = [network.worker(f"failing-{n}", slots=2) for n in range(4)]
    for worker in workers:

        @worker.capability("fail.always")
        async def fail(ctx: modelnet.Context, input: Json) -> Json:
            tried.append(ctx.worker)
            raise ValueError("always")

        @worker.capability("fail.reject")
        async def reject(ctx: modelnet.Context, input: Json) -> Json:
            tried.append(ctx.worker)
            raise modelnet.Reject("the task is wrong", code="bad_prompt")

    await network.join(*workers)
    final = await (await network.client.submit("fail.always", {})).final()
    assert (final.status, final.error and final.error.code) == ("failed", "worker_error")
    assert final.attempts == len(tried) == len(set(tried))
    tried.clear()
    final = await (await network.client.submit("fail.reject", {})).final()
    assert (final.status, final.error and final.error.code, final.attempts) == ("failed", "bad_prompt", 1)
    assert len(tried) == 1


def freeze(seconds: float) -> None:
    """Stand still, as a process does that is starved or stopped: nothing on this loop runs."""
    time.sleep(seconds)


async def test_a_negotiator_that_was_frozen_blames_nobody_for_what_it_missed(network: Network) -> None:
    worker, begun, gate = network.worker("innocent"), asyncio.Event(), asyncio.Event()

    @worker.capability("innocent.work")
    async def work(ctx: modelnet.Context, input: Json) -> Json:
        begun.set()
        await gate.wait()
        return {}

    await network.join(worker)
    task = await network.client.submit("innocent.work", {})
    await until(begun)
    async with network.ear("beat.innocent") as beats:
        freeze(network.config.beat_s * network.config.missed_beats + 1.5)
        known = len(beats.heard)
        await beats.until(lambda heard: len(heard) >= known + 8)
    gate.set()
    final = await task.result()
    assert (final.attempts, final.worker) == (1, "innocent")


async def test_an_output_that_is_not_what_its_digest_says_is_not_accepted(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = network.worker("liar")

    @liar.capability("liar.speak")
    async def speak(ctx: modelnet.Context, input: Json) -> Json:
        return {"said": "this"}

    await network.join(liar)
    real = liar._bus.publish

    async def publish(subject: str, payload: bytes = b"", *args: Any, **kwargs: Any) -> None:
        changed = payload.replace(b'"this"', b'"that"') if subject.startswith("done.") else payload
        await real(subject, changed, *args, **kwargs)

    monkeypatch.setattr(liar._bus, "publish", publish)
    final = await (await network.client.submit("liar.speak", {}, deadline_s=15)).final()
    assert (final.status, final.output, final.error and final.error.code) == ("failed", None, "bad_output")


async def test_a_done_that_was_lost_is_found_in_the_stream(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's notice never comes; its last event is stored, and its beats say that it runs nothing."""
    worker = network.worker("mute")

    @worker.capability("mute.speak")
    async def speak(ctx: modelnet.Context, input: Json) -> Json:
        return {"said": True}

    await network.join(worker)
    real = worker._bus.publish

    async def publish(subject: str, *args: Any, **kwargs: Any) -> None:
        if not subject.startswith("done."):
            await real(subject, *args, **kwargs)

    monkeypatch.setattr(worker._bus, "publish", publish)
    final = await (await network.client.submit("mute.speak", {}, deadline_s=15)).result()
    assert (final.output, final.attempts) == ({"said": True}, 1)
