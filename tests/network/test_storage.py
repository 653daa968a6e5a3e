"""A bus that answers and stores nothing: refused clearly, not ready, and well again without a hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import modelnet
from modelnet.bus.connection import close
from modelnet.bus.embedded import EmbeddedNats, HeldPort, find_program
from modelnet.bus.storage import check_storage
from modelnet.bus.streams import PROBED, probe_subject, setup_bus, stream_config
from modelnet.errors import BusFull, ConnectionFailed
from modelnet.guard import StorageGuard
from modelnet.network import Network as Machine
from modelnet.network import WorkerProcess
from modelnet.processes import ChildProcess
from tests.network.stage import Network, fast, until

Json = dict[str, Any]
FLOOR = 8 << 20


class Disk:
    """A small file system of its own, and a file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Let others write until so many bytes are left."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while (free := self.free - leave) > 0:
                    file.write(bytes(min(free, 1 << 20)))
            except OSError:
                assert leave == 0

    def empty(self) -> None:
        """Let others remove what they wrote."""
        self._filler.unlink()

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(self.path).free


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """256 MiB, in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(path)]
    try:
        done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount program")
    if done.returncode != 0:
        pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@asynccontextmanager
async def guarded(disk: Disk) -> AsyncIterator[tuple[Network, StorageGuard]]:
    """A network whose server's streams are on the disk, and its guard, which does not run yet."""
    server = EmbeddedNats(disk.path / "nats", log_dir=disk.path.parent, monitored=True)
    await server.start()
    try:
        async with Network(fast(server.url)) as network:
            await network.negotiator()
            guard = StorageGuard(server, network.config, floor_bytes=FLOOR)
            yield network, guard
            if guard._nc is not None:  # which `run` would close
                await close(guard._nc)
    finally:
        await server.stop()


async def echo(network: Network, *, gate: asyncio.Event | None = None) -> None:
    """A worker that returns what it gets, once the gate is open."""
    worker = network.worker("echo")

    @worker.capability("echo")
    async def answer(ctx: modelnet.Context, input: Json) -> Json:
        if gate is not None:
            await gate.wait()
        return input

    await network.join(worker)


async def refused(network: Network, n: int) -> BusFull | ConnectionFailed:
    """The error of a task that is not taken."""
    with pytest.raises((BusFull, ConnectionFailed)) as caught:
        await network.client.submit("echo", {"n": n}, id=f"refused-{n}")
    error = caught.value
    assert isinstance(error, BusFull | ConnectionFailed)
    return error


async def becomes(network: Network, wanted: str) -> None:
    """Wait until the bus is in this state: the code of the error, or `ready`. Looked at each time a worker beats."""
    async with asyncio.timeout(20), network.ear("beat.>") as beats:
        while True:
            try:
                await check_storage(network.bus, timeout_s=0.5)
                found = "ready"
            except (BusFull, ConnectionFailed) as error:
                found = error.wire_code
            if found == wanted:
                return
            await beats.next()


async def test_low_space_refuses_new_tasks_at_once_and_ends_those_accepted(disk: Disk) -> None:
    async with guarded(disk) as (network, guard):
        gate = asyncio.Event()
        await echo(network, gate=gate)
        accepted = [await network.client.submit("echo", {"n": n}, deadline_s=60) for n in range(20)]
        disk.fill(leave=FLOOR // 2)
        await guard.look()
        assert [guard.state] == ["braked"]
        started = time.perf_counter()
        error = await refused(network, 1)
        assert (type(error), error.wire_code) == (BusFull, "bus_full")
        assert time.perf_counter() - started < 1
        with pytest.raises(BusFull):
            await check_storage(network.bus)
        gate.set()
        assert [(await task.result()).output for task in accepted] == [{"n": n} for n in range(20)]
        disk.empty()
        await guard.look()
        assert guard.state == "open"
        await check_storage(network.bus)
        assert (await (await network.client.submit("echo", {"n": 3})).result()).output == {"n": 3}


async def test_a_full_disk_is_found_out_and_mended_by_itself(disk: Disk) -> None:
    async with guarded(disk) as (network, guard):
        gate = asyncio.Event()
        await echo(network, gate=gate)
        accepted = [await network.client.submit("echo", {"n": n}, deadline_s=100) for n in range(20)]
        disk.fill()
        with contextlib.suppress(ConnectionFailed):
            for n in range(100):  # the last page of the stream's file has a little room yet
                await network.client.submit("echo", {"n": n, "text": "x" * 1000}, follow=False)
        started = time.perf_counter()
        assert (await refused(network, 1)).wire_code == "not_stored"
        assert time.perf_counter() - started < 4
        with pytest.raises(ConnectionFailed) as unready:
            await check_storage(network.bus)
        assert unready.value.wire_code == "not_stored"

        back = asyncio.Event()
        network.on_reconnect = back.set
        await guard.look()
        assert [guard.state] == ["closed"]
        await until(back)
        await becomes(network, "bus_full")
        started = time.perf_counter()
        error = await refused(network, 2)
        assert (type(error), error.wire_code) == (BusFull, "bus_full")
        assert time.perf_counter() - started < 1

        disk.empty()
        await guard.look()
        assert guard.state == "open"
        gate.set()
        await becomes(network, "ready")
        finals = [await task.final() for task in accepted]
        assert [(final.output, final.error) for final in finals] == [({"n": n}, None) for n in range(20)]
        assert (await (await network.client.submit("echo", {"n": 3})).result()).output == {"n": 3}


async def test_a_server_that_hangs_is_replaced_and_one_that_starts_is_not(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelnet.guard._TIMEOUT_S", 0.3)
    async with guarded(disk) as (network, guard):
        await echo(network)
        pid = guard._server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        for _ in range(5):  # it has never answered: it may be recovering its streams
            await guard.look()
        os.kill(pid, signal.SIGCONT)
        await guard.look()
        assert guard._server.pid == guard._answered == pid
        back = asyncio.Event()
        network.on_reconnect = back.set
        os.kill(pid, signal.SIGSTOP)
        for _ in range(3):
            await guard.look()
        await until(back)
        await becomes(network, "ready")
        assert guard._server.pid not in (None, pid)


async def test_up_goes_on_by_itself_after_a_full_disk(disk: Disk) -> None:
    upper = WorkerProcess("examples/upper.py")
    async with Machine(data=disk.path, workers=[upper], config=fast("", redis_url="", data=disk.path)) as machine:
        async with Network(fast(machine.url)) as network:

            async def submit(n: int) -> str:
                task = await network.client.submit("text.upper", {"text": "x" * 1000}, id=f"t{n}", follow=False)
                return task.id

            accepted = [await submit(n) for n in range(20)]
            disk.fill()
            await becomes(network, "bus_full")
            assert isinstance(await refused(network, 1), BusFull)
            disk.empty()
            await becomes(network, "ready")
            accepted.append(await submit(21))
            finals = [await network.client.task(task).final() for task in accepted]
            assert {final.status for final in finals} == {"completed"}
            async with asyncio.timeout(20), network.ear("beat.>") as beats:
                while not all(child.pid for child in machine.processes):
                    await beats.next()
        assert [child.restarts for child in machine.processes if child.name != "redis"] == [0, 0, 0, 0]


@asynccontextmanager
async def plain_server(folder: Path, port: int, *options: str) -> AsyncIterator[None]:
    """A nats-server as others start it."""
    command = [find_program("nats-server"), "-a", "127.0.0.1", "-p", str(port), *options]
    server = ChildProcess("nats", command, log_dir=folder, ready=b"Server is ready")
    await server.start()
    try:
        yield
    finally:
        await server.stop()


async def test_without_jetstream_tasks_are_refused_and_with_it_all_goes_on(tmp_path: Path) -> None:
    back, stored = asyncio.Event(), ["-js", "-sd", str(tmp_path / "data")]
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(HeldPort()).number
        async with plain_server(tmp_path, port, *stored):
            network = await stack.enter_async_context(Network(fast(f"nats://127.0.0.1:{port}")))
            network.on_reconnect = back.set
            await network.negotiator()
            gate = asyncio.Event()
            await echo(network, gate=gate)
            accepted = [await network.client.submit("echo", {"n": n}, deadline_s=60) for n in range(20)]
        async with plain_server(tmp_path, port):
            await until(back)
            await becomes(network, "no_jetstream")
            started = time.perf_counter()
            assert (await refused(network, 1)).wire_code == "no_jetstream"
            assert time.perf_counter() - started < 1
            gate.set()
            back.clear()
        await stack.enter_async_context(plain_server(tmp_path, port, *stored))
        await until(back)
        await becomes(network, "ready")
        assert [(await task.result()).output for task in accepted] == [{"n": n} for n in range(20)]
        assert (await (await network.client.submit("echo", {"n": 3})).result()).output == {"n": 3}


async def test_a_server_with_too_little_storage_says_so_and_refuses(tmp_path: Path) -> None:
    config = tmp_path / "small.conf"
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(HeldPort()).number
        stored = f"jetstream {{ store_dir: {tmp_path}/data, max_file_store: 1MB }}"
        config.write_text(f"listen: 127.0.0.1:{port}\n{stored}\n")
        await stack.enter_async_context(plain_server(tmp_path, port, "-c", str(config)))
        network = await stack.enter_async_context(Network(fast(f"nats://127.0.0.1:{port}")))
        with pytest.raises(ConnectionFailed, match="max_file_store") as caught:
            await setup_bus(network.bus)
        assert caught.value.wire_code == "no_space"
        assert (await refused(network, 1)).wire_code == "no_server"


async def test_a_server_restarted_with_less_storage_than_is_used_refuses_at_once(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path, monitored=True)
    await server.start()
    try:
        async with Network(fast(server.url)) as network:
            back = asyncio.Event()
            network.on_reconnect = back.set
            await network.negotiator()
            await echo(network)
            await (await network.client.submit("echo", {"n": 1})).result()
            server.limit_storage(1)
            server.restart()
            await until(back)
            await becomes(network, "bus_full")
            assert isinstance(await refused(network, 2), BusFull)
            server.limit_storage(None)
            server.reload()
            await becomes(network, "ready")
            assert (await (await network.client.submit("echo", {"n": 3})).result()).output == {"n": 3}
    finally:
        await server.stop()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_probe_leaves_nothing_and_is_no_task(network: Network) -> None:
    async with network.ear("dlq.>") as buried:
        await asyncio.gather(*(check_storage(network.bus) for _ in range(10)))
        for stream in PROBED:
            reply = await network.bus.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
            info = json.loads(reply.data)
            assert probe_subject(stream) in info["config"]["subjects"] == stream_config(stream)["subjects"]
            assert info["state"]["messages"] == 0
        await echo(network)
        assert (await (await network.client.submit("echo", {"n": 1})).result()).output == {"n": 1}
        assert not buried.heard
