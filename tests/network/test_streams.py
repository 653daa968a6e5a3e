"""Readers: live, late, two at once, with a server that restarts under them. All see the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import modelnet
from modelnet.bus import subjects
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.replay import last_of
from modelnet.errors import MalformedInput, TooLarge, UnknownTask
from modelnet.following import Following
from modelnet.messages import Awarded, Delta, Final, Planned, Waiting, decode_event, new_id
from modelnet.reader import StreamEvent
from tests.network.stage import PATIENCE_S, Network, events, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
WORDS = [f"word{n} " for n in range(50)]


class Speaker:
    """A worker that speaks its second half when it is told to."""

    def __init__(self, network: Network, name: str) -> None:
        self.worker = network.worker(name)
        self.half, self.go_on = asyncio.Event(), asyncio.Event()
        self.times = 0

        @self.worker.capability(f"speak.{name}")
        async def speak(ctx: modelnet.Context, input: Json) -> AsyncIterator[str | modelnet.Progress]:
            self.times += 1
            for n, word in enumerate(WORDS):
                if n == len(WORDS) // 2:
                    self.half.set()
                    await self.go_on.wait()
                yield word
                yield modelnet.Progress(note=word)


def numbered(stream: list[StreamEvent]) -> list[int]:
    """Numbers of the events that have one; a Final's is one above the last."""
    return [event.number for event in stream if event.kind in ("delta", "progress", "output", "error")]


def text(stream: list[StreamEvent]) -> str:
    """What the deltas join to."""
    return "".join(event.text for event in stream if isinstance(event, Delta))


async def test_live_late_and_second_readers_see_the_same(network: Network) -> None:
    speaker = Speaker(network, "same")
    await network.join(speaker.worker)
    task = await network.client.submit("speak.same", {})
    live = asyncio.create_task(events(task))
    await until(speaker.half)
    joining = asyncio.create_task(events(network.client.task(task.id)))
    async with modelnet.connect(config=network.config) as elsewhere:
        other = asyncio.create_task(events(elsewhere.task(task.id)))
        speaker.go_on.set()
        streams = [await live, await joining, await other, await events(elsewhere.task(task.id)), await events(task)]
    assert all(stream == streams[0] for stream in streams)
    assert numbered(streams[0]) == list(range(1, 102))
    assert text(streams[0]) == "".join(WORDS)
    final = streams[0][-1]
    assert isinstance(final, Final)
    assert final.output == {"text": "".join(WORDS)}
    assert final.number == 102


async def test_a_stream_that_is_left_early_can_be_read_again(network: Network) -> None:
    speaker = Speaker(network, "early")
    await network.join(speaker.worker)
    speaker.go_on.set()
    task = await network.client.submit("speak.early", {})
    async for event in task.stream():
        if isinstance(event, Delta):
            break
    stream = await events(task)
    assert text(stream) == "".join(WORDS)
    assert task.text == text(stream)


async def test_nobody_knows_an_unknown_task(network: Network) -> None:
    for read in (events(network.client.task("nobody")), network.client.task("nobody").result()):
        with pytest.raises(UnknownTask):
            await asyncio.wait_for(read, 2)
    with pytest.raises(UnknownTask):
        await network.client.trace("nobody")
    with pytest.raises(UnknownTask):
        await events(network.client.task("nobody", tenant="other"))


async def test_submitting_an_id_twice_runs_it_once(network: Network) -> None:
    speaker = Speaker(network, "twice")
    await network.join(speaker.worker)
    id = new_id()
    first = await network.client.submit("speak.twice", {}, id=id)
    await until(speaker.half)
    second = await network.client.submit("speak.twice", {}, id=id)
    speaker.go_on.set()
    assert await first.result() == await second.result()
    third = await network.client.submit("speak.twice", {}, id=id)
    assert (await third.result()).output == {"text": "".join(WORDS)}
    trace = await network.client.trace(id)
    assert speaker.times == 1
    assert [entry.kind for _, entry in trace.journal] == ["awarded", "final"]


async def test_the_same_id_of_two_tenants_is_two_tasks(network: Network) -> None:
    speaker = Speaker(network, "tenants")
    await network.join(speaker.worker)
    speaker.go_on.set()
    id = new_id()
    one = await network.client.submit("speak.tenants", {}, id=id, tenant="one")
    two = await network.client.submit("speak.tenants", {}, id=id, tenant="two")
    assert {(await one.result()).tenant, (await two.result()).tenant} == {"one", "two"}
    assert speaker.times == 2
    assert [summary.task for summary in await network.client.tasks(tenant="one")] == [id]


async def test_tasks_and_trace_tell_what_happened(network: Network) -> None:
    speaker = Speaker(network, "told")
    await network.join(speaker.worker)
    task = await network.client.submit("speak.told", {})
    await until(speaker.half)

    async def summary() -> tuple[str, str]:
        (found,) = [found for found in await network.client.tasks() if found.task == task.id]
        return found.capability, found.status

    assert await summary() == ("speak.told", "running")
    speaker.go_on.set()
    final = await task.result()
    assert await summary() == ("speak.told", "completed")
    assert task.id in {found.task for found in await network.client.tasks(since_s=60)}
    trace = await network.client.trace(task.id)
    (attempt,) = trace.attempts
    assert (attempt["worker"], attempt["price"], attempt["outcome"]) == ("told", final.price, "output")
    assert (attempt["attempt"], attempt["events"]) == (1, 101)
    assert attempt["usage"] == final.to_dict()["usage"]
    times = [at for at, _ in trace.journal]
    assert times == sorted(times)
    assert trace.transcripts[0][1].winner == "told"


@pytest.mark.parametrize(
    ("capability", "input", "options"),
    [
        ("Speak.Upper", {}, {}),
        ("speak..twice", {}, {}),
        ("speak.>", {}, {}),
        ("", {}, {}),
        ("speak.x", ["no object"], {}),
        ("speak.x", {"a": float("inf")}, {}),
        ("speak.x", {"a": "\ud800"}, {}),
        ("speak.x", {"a": object()}, {}),
        ("speak.x", {}, {"budget": -1}),
        ("speak.x", {}, {"deadline_s": 0}),
        ("speak.x", {}, {"deadline_s": 1e9}),
        ("speak.x", {}, {"priority": 10}),
        ("speak.x", {}, {"id": "with.dot"}),
        ("speak.x", {}, {"tenant": "*"}),
        ("speak.x", {}, {"require": {"colour": "red"}}),
        ("speak.x", {}, {"contract": "sha256:short"}),
    ],
)
async def test_what_cannot_be_meant_is_refused_before_it_is_sent(
    network: Network, capability: str, input: Any, options: Json
) -> None:
    async with network.ear("task.>") as sent:
        with pytest.raises(MalformedInput):
            await network.client.submit(capability, input, **options)
        await network.bus.publish("task.end", b"")
        heard = await sent.until(lambda heard: len(heard) >= 1)
    assert [msg.subject for msg in heard] == ["task.end"]


async def test_an_input_above_the_limit_is_refused(network: Network) -> None:
    with pytest.raises(TooLarge):
        await network.client.submit("speak.x", {"text": "x" * network.config.max_object_bytes})


async def test_a_reader_sees_no_gap_and_no_repeat_over_a_restart_of_the_server(
    network: Network, nats_server: EmbeddedNats
) -> None:
    speaker = Speaker(network, "restart")
    await network.join(speaker.worker)
    task = await network.client.submit("speak.restart", {}, deadline_s=60)
    seen: list[StreamEvent] = []
    middle = asyncio.Event()

    async def read() -> None:
        async for event in task.stream():
            seen.append(event)
            if text(seen) == "".join(WORDS[: len(WORDS) // 2]):
                middle.set()

    reading = asyncio.create_task(read())
    await until(speaker.half)
    await until(middle)
    back = asyncio.Event()
    network.on_reconnect = back.set
    nats_server.kill()
    await until(back)
    speaker.go_on.set()
    await asyncio.wait_for(reading, 2 * PATIENCE_S)
    assert numbered(seen) == list(range(1, 102))
    assert text(seen) == "".join(WORDS)
    assert seen[-1].kind == "final"
    assert [event.kind for event in seen].count("awarded") == 1
    assert speaker.times == 1


async def test_a_stream_is_resumed_behind_any_event(network: Network) -> None:
    speaker = Speaker(network, "resume")
    await network.join(speaker.worker)
    speaker.go_on.set()
    task = await network.client.submit("speak.resume", {})
    whole = await events(task)
    for place in (1, 40, len(whole) - 2):
        last = whole[place]
        rest = [event async for event in network.client.task(task.id).stream(resume_after=last)]
        assert rest == whole[place + 1 :]
        assert not isinstance(last, Final | Planned | Waiting | Awarded)
        assert [event async for event in task.stream(resume_after=last.number)] == rest
    assert task.text == "".join(WORDS)
    with pytest.raises(MalformedInput, match="no number"):
        await anext(task.stream(resume_after=whole[-1]))


async def test_a_stream_can_be_joined_live(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker(network, "live")
    await network.join(speaker.worker)
    task = await network.client.submit("speak.live", {})
    await until(speaker.half)
    async with asyncio.timeout(PATIENCE_S):  # until what it has said is stored: 25 words, and a note of each
        while (stored := await last_of(network.bus, "RESULTS", subjects.events_of("*", task.id))) is None or (
            decode_event(stored.body).number < len(WORDS)
        ):
            continue
    caught_up = asyncio.Event()
    fill = Following.fill

    async def filling(self: Following) -> list[StreamEvent]:
        try:
            return await fill(self)
        finally:
            caught_up.set()

    monkeypatch.setattr(Following, "fill", filling)
    joined = network.client.task(task.id).stream(from_start=False)
    first = asyncio.ensure_future(anext(joined))
    await until(caught_up)
    speaker.go_on.set()
    news = [await asyncio.wait_for(first, PATIENCE_S), *[event async for event in joined]]
    said = text(news)
    assert said
    assert "".join(WORDS[len(WORDS) // 2 - 1 :]).endswith(said)
    assert isinstance(news[-1], Final)
