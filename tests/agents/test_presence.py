"""What is served now: workers that join, leave, and vanish, contracts that differ, a server that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

import modelnet
from modelnet.bus import subjects
from modelnet.bus.embedded import EmbeddedNats
from modelnet.errors import ConnectionFailed
from modelnet.messages import Contract
from modelnet.presence import Presence
from tests.agents.conftest import NUMBER, TEXT
from tests.cli.conftest import ROOT
from tests.network.stage import PATIENCE_S, Network, fast

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def presence_on(network: Network) -> AsyncIterator[Presence]:
    """On a connection of its own."""
    async with modelnet.connect(config=network.config) as net, Presence(net) as presence:
        yield presence


async def until(presence: Presence, fits: Callable[[], bool]) -> None:
    """Wait for a change after which it fits."""
    async with asyncio.timeout(PATIENCE_S), aclosing(presence.changes()) as changes:
        while not fits():
            await anext(changes)


async def test_who_is_there_is_known_when_it_opens(network: Network) -> None:
    here = network.worker("here")
    here.capability("here.a", contract={"input": TEXT, "output": TEXT}, description="A.")(lambda ctx, input: input)
    here.capability("here.b", contract={"input": TEXT, "output": TEXT}, description="B.")(lambda ctx, input: input)
    here.capability("here.below.>", contract={"input": TEXT, "output": TEXT})(lambda ctx, input: input)
    await network.join(here)
    async with presence_on(network) as presence:
        assert [(c.capability, c.description) for c in presence.contracts] == [("here.a", "A."), ("here.b", "B.")]
        assert presence.contract("here.a") == presence.contracts[0]
        assert presence.contract("here.below.x") is None
        assert presence.pinned("here.a") is None
        gone = asyncio.create_task(until(presence, lambda: not presence.contracts))
        await network.stop(here)
        await gone


@asynccontextmanager
async def lone_worker(network: Network, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own, which is killed in the end."""
    env = {**os.environ, "MODELNET_URL": network.config.url, "MODELNET_BEAT_S": "0.2", "LONE_NAME": name}
    command = [sys.executable, "-m", "modelnet.run", "tests.network.lone_worker:app"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_worker_that_is_killed_is_missed(network: Network) -> None:
    async with presence_on(network) as presence, lone_worker(network, "killed") as process:
        await until(presence, lambda: presence.contract("lone.speak") is not None)
        process.kill()
        await until(presence, lambda: presence.contract("lone.speak") is None)


async def test_nobody_is_missed_by_one_who_was_too_busy_to_listen(network: Network) -> None:
    silence_s = network.config.beat_s * (network.config.missed_beats + 3) + 0.5
    async with presence_on(network) as presence, lone_worker(network, "heard") as process:
        await until(presence, lambda: presence.contract("lone.speak") is not None)
        missed = asyncio.create_task(until(presence, lambda: presence.contract("lone.speak") is None))
        beats = await network.client.bus.subscribe(subjects.beat("heard"))
        await beats.next_msg(PATIENCE_S)
        process.send_signal(signal.SIGSTOP)
        time.sleep(silence_s)  # noqa: ASYNC251 - this is what keeps it busy
        process.send_signal(signal.SIGCONT)
        for _ in range(3):
            await beats.next_msg(PATIENCE_S)
        await beats.unsubscribe()
        assert not missed.done()
        missed.cancel()


async def test_of_several_contracts_the_commonest_is_shown_and_asked_for(network: Network) -> None:
    async with presence_on(network) as presence:
        workers = []
        for number, schema in enumerate((TEXT, NUMBER, TEXT)):
            worker = network.worker(f"mixed-{number}")
            worker.capability("mixed.up", contract={"input": schema, "output": {}})(lambda ctx, input: {})
            workers.append(worker)
        await network.join(*workers)
        commonest = Contract(capability="mixed.up", input=TEXT, output={})
        await until(presence, lambda: presence.pinned("mixed.up") == commonest.digest)
        assert presence.contract("mixed.up") == commonest
        for worker in (workers[0], workers[2]):
            await network.stop(worker)
        await until(presence, lambda: presence.pinned("mixed.up") is None)
        found = presence.contract("mixed.up")
        assert found is not None
        assert found.input == NUMBER
        await network.stop(workers[1])


async def test_one_that_is_patient_waits_for_a_network(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    async with Network(fast(server.url)) as network:
        with pytest.raises(ConnectionFailed):
            await Presence(network.client).__aenter__()
        async with Presence(network.client, patient=True) as presence:
            assert presence.contracts == []
            await network.negotiator()
            early = network.worker("early")
            early.capability("early.on", contract={"input": {}, "output": {}})(lambda ctx, input: {})
            await network.join(early)
            await until(presence, lambda: presence.contract("early.on") is not None)
    await server.stop()


async def test_a_server_that_restarts_takes_nobody_away(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    async with Network(fast(server.url)) as network:
        await network.negotiator()
        stays = network.worker("stays")
        stays.capability("stays.on", contract={"input": {}, "output": {}})(lambda ctx, input: {})
        await network.join(stays)
        async with presence_on(network) as presence:
            missed = asyncio.create_task(until(presence, lambda: presence.contract("stays.on") is None))
            await server.stop()
            await server.start()
            late = network.worker("late")
            late.capability("late.on", contract={"input": {}, "output": {}})(lambda ctx, input: {})
            await network.join(late)
            await until(presence, lambda: presence.contract("late.on") is not None)
            assert presence.contract("stays.on") is not None
            assert not missed.done()
            missed.cancel()
    await server.stop()
