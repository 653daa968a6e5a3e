"""Every process is restarted under load, one after another: nothing is lost, nothing fails, no stream has a gap."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from modelnet.messages import Delta, Final, Output, Reset
from modelnet.processes import ChildProcess
from tests.network.rolling_worker import WORDS
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE = 6


def process(network: Network, folder: Path, name: str, app: str, ready: bytes) -> ChildProcess:
    """A process of the network."""
    return ChildProcess(
        name,
        [sys.executable, "-m", "modelnet.run", app],
        log_dir=folder,
        ready=ready,
        restart=False,
        env={
            "MODELNET_URL": network.config.url,
            "MODELNET_LOG_LEVEL": "info",
            "MODELNET_BEAT_S": "0.5",
            "MODELNET_DRAIN_S": "0.15",  # shorter than a task: some are handed on
            "ROLLING_NAME": name,
        },
    )


async def follow(network: Network) -> Final:
    """One task, its stream read as it comes and checked."""
    task = await network.client.submit("roll.speak", {}, deadline_s=60)
    numbers, text = list[int](), ""
    async for event in task.stream():
        if isinstance(event, Reset):
            numbers, text = numbers[: event.to], ""
        elif isinstance(event, Final):
            assert numbers == list(range(1, len(numbers) + 1))
            assert event.output == {"text": text} == {"text": "".join(WORDS)}, event
            return event
        elif event.kind in ("delta", "output", "error"):
            numbers.append(event.number)
            text += event.text if isinstance(event, Delta) else ""
            assert not isinstance(event, Output) or event.output == {"text": text}
    raise AssertionError("a stream without an end")


async def test_a_rolling_restart_loses_nothing_and_fails_nothing(bare_network: Network, tmp_path: Path) -> None:
    network, finals, stop = bare_network, list[Final](), asyncio.Event()

    def fleet() -> list[ChildProcess]:
        found = [
            process(network, tmp_path, f"negotiator-{n}", "workers.negotiator:app", b"negotiator_started")
            for n in range(2)
        ]
        return found + [
            process(network, tmp_path, f"roll-{n}", "tests.network.rolling_worker:app", b"workers_joined")
            for n in range(3)
        ]

    async def load() -> None:
        while not stop.is_set():
            finals.append(await follow(network))

    running = fleet()
    await asyncio.gather(*(one.start() for one in running))
    loading = [asyncio.create_task(load()) for _ in range(AT_ONCE)]
    try:
        for place, fresh in enumerate(fleet()):
            known = len(finals)
            await running[place].stop()
            running[place] = fresh
            await fresh.start()
            async with asyncio.timeout(PATIENCE_S):
                while len(finals) < known + 2 * AT_ONCE:  # the load goes on
                    done, _ = await asyncio.wait(loading, timeout=0.05)
                    assert not done, [job.exception() for job in done]
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*loading)
    finally:
        for job in loading:
            job.cancel()
        await asyncio.gather(*(one.stop() for one in running), return_exceptions=True)
    assert {final.status for final in finals} == {"completed"}
    assert any(final.attempts > 1 for final in finals), "some were handed on"
