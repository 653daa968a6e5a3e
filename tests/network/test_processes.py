"""Children of `modelnet up`: asked to begin again, whether they listen or not."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from modelnet.processes import ChildProcess
from tests.network.stage import PATIENCE_S

WILLING = "import os, signal; print('up', flush=True); os.write({fd}, b'x'); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WILLING


@asynccontextmanager
async def running(program: str, folder: Path) -> AsyncIterator[tuple[ChildProcess, asyncio.StreamReader]]:
    """A child that is up, and where each of its processes says that it is."""
    reading, writing = os.pipe()
    begun = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(begun), os.fdopen(reading, "rb"))
    command = [sys.executable, "-c", program.format(fd=writing)]
    child = ChildProcess("child", command, log_dir=folder, ready=b"up", pass_fds=[writing])
    try:
        await child.start()
        await begun.readexactly(1)
        yield child, begun
    finally:
        await child.stop(grace_s=0.2)
        os.close(writing)
        transport.close()


@pytest.mark.parametrize("program", [DEAF, WILLING])
async def test_a_child_begins_again_also_if_it_does_not_end(tmp_path: Path, program: str) -> None:
    async with running(program, tmp_path) as (child, begun):
        first = child.pid
        child.restart(grace_s=0.2)
        await asyncio.wait_for(begun.readexactly(1), PATIENCE_S)
        assert child.pid not in (None, first)
        assert child.restarts == 0  # it was asked for


async def test_one_that_ended_in_time_does_not_cost_its_successor_its_life(tmp_path: Path) -> None:
    async with running(WILLING, tmp_path) as (child, begun):
        child.restart(grace_s=0.2)
        await asyncio.wait_for(begun.readexactly(1), PATIENCE_S)
        with pytest.raises(TimeoutError):  # a third process would say so
            await asyncio.wait_for(begun.readexactly(1), 0.5)
