"""Connections that end, whatever state they are in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import EmbeddedNats
from tests.network.stage import PATIENCE_S, fast, until


async def test_closing_ends_a_reconnect_that_swallows_its_cancellation(tmp_path: Path) -> None:
    """As `asyncio.wait_for` does before Python 3.12, when the attempt fails at that very moment."""
    server = EmbeddedNats(tmp_path)
    await server.start()
    nc = await connect(fast(server.url), "test")
    tried, swallowed = asyncio.Event(), asyncio.Event()

    async def fail(*_: Any) -> None:
        tried.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if swallowed.is_set():
                raise
            swallowed.set()
            raise ConnectionRefusedError from None

    nc._connect_to_server = fail
    await server.stop()
    await until(tried)
    async with asyncio.timeout(PATIENCE_S):
        await close(nc)
    assert swallowed.is_set()
    assert nc._reconnection_task.done()
    assert nc.is_closed
