"""Those who judge others by their silence are deaf for a while, and lay that on nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

import modelnet
from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.hearing import deaf_times
from modelnet.messages import Beat, Delta, WorkerCard
from tests.network import lone_worker
from tests.network.stage import Network, fast
from tests.network.test_deaths import lone_process
from workers.negotiator import Negotiator

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_negotiator_that_was_frozen_awaits_the_answers_to_what_it_asked(
    nats_server: EmbeddedNats, tmp_path: Path
) -> None:
    """Bids and a Confirm lie in its socket as it wakes, and their time is over."""
    asked: list[str] = []

    async def freeze(msg: Msg) -> None:
        asked.append(msg.subject)
        time.sleep(1.0)  # noqa: ASYNC251 - nobody in this process hears anything meanwhile

    async with Network(fast(nats_server.url, bid_window_ms=200.0, award_timeout_ms=400.0)) as network:
        await network.negotiator()
        lone = lone_process(network, tmp_path)
        await lone.start()
        try:
            for subject in (subjects.capability("lone.speak"), subjects.award("lone")):
                await network.client.bus.subscribe(subject, cb=freeze)
            task = await network.client.submit("lone.speak", {}, deadline_s=30)
            text = ""
            async for event in task.stream():
                text += event.text if isinstance(event, Delta) else ""
                if text == "".join(lone_worker.WORDS):
                    break
            await task.cancel()
            final = await task.final()
        finally:
            await lone.stop()
    assert (final.status, final.attempts) == ("cancelled", 1)
    assert asked == [subjects.capability("lone.speak"), subjects.award("lone")]


@pytest.mark.parametrize("lost", [("award",), ("award", "adopt")])
async def test_a_worker_whose_confirm_is_lost_is_asked_and_keeps_its_task(
    nats_server: EmbeddedNats, lost: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should it say nothing then either, another gets it."""
    async with Network(fast(nats_server.url, award_timeout_ms=200.0)) as network:
        workers = {name: network.worker(name) for name in ("cheap", "dear")}
        over = network.ear((subjects.cancel_attempt if "adopt" in lost else subjects.adopt)("cheap"))

        for name, worker in workers.items():

            @worker.capability("unheard.speak", price=10 if name == "cheap" else 20)
            async def speak(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
                if ctx.worker == "cheap":
                    await over.until(bool)
                return {"by": ctx.worker}

        reply = workers["cheap"]._reply

        async def lose(msg: Msg, reason: Any) -> None:
            if msg.subject.rsplit(".", 1)[1] not in lost:
                await reply(msg, reason)

        monkeypatch.setattr(workers["cheap"], "_reply", lose)
        await network.negotiator()
        await network.join(*workers.values())
        async with over:
            final = await (await network.client.submit("unheard.speak", {}, budget=1_000)).final()
    expected = ("cheap", 1) if lost == ("award",) else ("dear", 2)
    assert (final.status, final.worker, final.attempts) == ("completed", *expected)


async def test_two_words_that_are_read_at_once_are_one_question(
    nats_server: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a lost connection: the second does not end the wait for what the first has asked."""
    hear, words = Negotiator._on_award_reply, list[Msg]()

    async def late(self: Negotiator, msg: Msg) -> None:
        if not msg.data and not msg.headers and len(words) < 2:
            words.append(msg)
            if len(words) == 2:
                for word in words:
                    await hear(self, word)
        else:
            await hear(self, msg)

    monkeypatch.setattr(Negotiator, "_on_award_reply", late)
    async with Network(fast(nats_server.url, award_timeout_ms=100.0)) as network:
        worker = network.worker("once")
        asked = network.ear(subjects.adopt("once"))

        @worker.capability("unheard.once")
        async def speak(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
            await asked.until(bool)
            return {}

        reply = worker._reply

        async def lose(msg: Msg, reason: Any) -> None:
            if not msg.subject.endswith(".award"):
                await reply(msg, reason)

        monkeypatch.setattr(worker, "_reply", lose)
        await network.negotiator()
        await network.join(worker)
        async with asked:
            final = await (await network.client.submit("unheard.once", {})).final()
    assert len(words) == 2
    assert (final.status, final.attempts) == ("completed", 1)


async def test_beats_are_heard_while_the_catalogue_is_away(
    nats_server: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, waits = Catalogue.card, asyncio.Event()

    async def slow(self: Catalogue, worker: str) -> WorkerCard | None:
        if worker != "stranger":
            return await look_up(self, worker)
        await waits.wait()
        return None

    monkeypatch.setattr(Catalogue, "card", slow)
    async with Network(fast(nats_server.url)) as network:
        negotiator, worker = await network.negotiator(), network.worker("known")

        @worker.capability("heard.speak")
        async def speak(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
            return {}

        await network.join(worker)
        await (await network.client.submit("heard.speak", {})).final()
        async with network.ear(subjects.beat("known")) as ear:
            stranger = Beat(worker="stranger", instance="new", slots=1)
            await network.bus.publish(subjects.beat("stranger"), stranger.encode())
            lost_after = network.config.missed_beats + 4  # and more: it looks four times a second
            await ear.until(lambda beats: len(beats) > lost_after)
        assert negotiator._directory.serves("known", "heard.speak")
        waits.set()


async def test_one_that_leaves_while_it_is_looked_up_is_not_there(
    nats_server: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, begun, ended = Catalogue.card, asyncio.Event(), asyncio.Event()

    async def slow(self: Catalogue, worker: str) -> WorkerCard | None:
        if worker != "brief":
            return await look_up(self, worker)
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    monkeypatch.setattr(Catalogue, "card", slow)
    async with Network(fast(nats_server.url)) as network, asyncio.timeout(20):
        negotiator, beat = await network.negotiator(), Beat(worker="brief", instance="new", slots=1)
        await network.bus.publish(subjects.beat("brief"), beat.encode())
        await begun.wait()
        await network.bus.publish(subjects.beat("brief"), beat.model_copy(update={"leaving": True}).encode())
        await ended.wait()
    assert not negotiator._directory.live()


async def test_a_forged_word_closes_no_auction(nats_server: EmbeddedNats, tmp_path: Path) -> None:
    requests: list[str] = []

    async with Network(fast(nats_server.url, bid_window_ms=10_000.0)) as network:
        negotiator, lone = await network.negotiator(), lone_process(network, tmp_path)
        async with network.ear(subjects.beat("lone")) as beats:
            await lone.start()
            while not negotiator._directory.serves("lone", "lone.speak"):  # its first beat may not be out yet
                await beats.next()
        pid = lone.pid
        assert pid is not None

        async def forge(msg: Msg) -> None:
            requests.append(msg.reply)
            await network.client.bus.publish(f"{msg.reply}.{negotiator.id}")
            await network.client.bus.flush()
            os.kill(pid, signal.SIGCONT)  # only now anybody bids

        try:
            await network.client.bus.subscribe(subjects.capability("lone.speak"), cb=forge)
            os.kill(pid, signal.SIGSTOP)
            task = await network.client.submit("lone.speak", {}, deadline_s=30)
            async for event in task.stream():
                if isinstance(event, Delta):
                    break
            await task.cancel()
            await task.final()
        finally:
            os.kill(pid, signal.SIGCONT)
            await lone.stop()
    assert len(requests) == 1


async def test_it_is_deaf_while_its_connection_is_away_and_while_it_is_busy(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    async with modelnet.connect(server.url) as net:
        deaf = deaf_times(net.bus, 0.01)
        await anext(deaf)
        busy_s = 0.5
        time.sleep(busy_s)  # noqa: ASYNC251 - this is what keeps it busy
        assert await anext(deaf) >= busy_s - 0.01
        await server.stop()
        while net.bus.is_connected:
            await anext(deaf)
        assert await anext(deaf) >= 0.01
    await deaf.aclose()
