"""Those who judge others by their silence are deaf for a while, and lay that on nobody."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

import modelnet
from modelnet.bus import subjects
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.hearing import deaf_times
from modelnet.messages import Delta
from tests.network import lone_worker
from tests.network.stage import Network, fast
from tests.network.test_deaths import lone_process

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


async def test_a_forged_word_closes_no_auction(nats_server: EmbeddedNats, tmp_path: Path) -> None:
    requests: list[str] = []

    async with Network(fast(nats_server.url, bid_window_ms=10_000.0)) as network:
        negotiator, lone = await network.negotiator(), lone_process(network, tmp_path)
        await lone.start()
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
