"""The live picture: one watcher for all who look, while anybody does, and a stream of frames for each.

A frame is what changed since the version that a viewer has. It is made when the last one has gone out: whoever reads
slowly gets fewer frames, nothing waits for it, and nobody else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from pydantic_core import to_json

from modelnet.watch import Watcher
from workers.gateway.lobby import Lobby

from .audience import Audience

__all__ = ["Picture"]

_LINGER_S = 30.0
"""A watcher goes on for so long when nobody looks any more: a page that is loaded again finds its history."""

_KEEP_ALIVE_S = 5.0
"""A viewer hears something this often, changed or not: it can tell silence from loss."""


class Picture:
    """The gateway's watcher, and its viewers."""

    def __init__(self, lobby: Lobby) -> None:
        self._lobby = lobby
        self._stack: contextlib.AsyncExitStack | None = None
        self._watcher: Watcher | None = None
        self._viewers = 0
        self._lock = asyncio.Lock()
        self._leaving: asyncio.Task[None] | None = None
        self._made: dict[tuple[int, Audience], tuple[int, bytes]] = {}
        self._made_at = 0

    @property
    def watching(self) -> bool:
        """Whether there is a watcher now."""
        return self._watcher is not None

    async def close(self) -> None:
        """Look no more."""
        if self._leaving is not None:
            self._leaving.cancel()
        async with self._lock:
            await self._stop()

    async def frames(self, audience: Audience) -> AsyncIterator[bytes]:
        """Server-sent events, for as long as they are read: first everything, then what changes."""
        async with self._looking() as watcher:
            seen, head, said = 0, b"", 0.0
            while not self._lobby.closing.is_set():
                frame = watcher.view.frame(seen)
                now = time.monotonic()
                told = to_json(frame["head"])
                if _news(frame) or told != head or now - said > _KEEP_ALIVE_S:
                    yield b"event: frame\ndata: " + self._encoded(watcher, seen, audience) + b"\n\n"
                    head, said = told, now
                seen = int(frame["version"])
                async with watcher.ticked:
                    await watcher.ticked.wait()
        yield b"event: closing\ndata: {}\n\n"

    def _encoded(self, watcher: Watcher, since: int, audience: Audience) -> bytes:
        """A frame as JSON, made once for all who are as far and may see the same."""
        version = watcher.view.version
        if version != self._made_at:
            self._made.clear()
            self._made_at = version
        key = since, audience
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = version, to_json(audience.frame(watcher.view.frame(since)))
        return found[1]

    @contextlib.asynccontextmanager
    async def _looking(self) -> AsyncIterator[Watcher]:
        self._viewers += 1
        try:
            async with self._lock:
                if self._watcher is None:
                    self._stack = contextlib.AsyncExitStack()
                    watcher = Watcher(self._lobby.net.bus, self._lobby.config)
                    self._watcher = await self._stack.enter_async_context(watcher)
            yield self._watcher
        finally:
            self._viewers -= 1
            if not self._viewers:
                if self._leaving is not None:
                    self._leaving.cancel()
                self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        await asyncio.sleep(_LINGER_S)
        async with self._lock:
            if not self._viewers:
                await self._stop()

    async def _stop(self) -> None:
        stack, self._stack, self._watcher = self._stack, None, None
        if stack is not None:
            await stack.aclose()


def _news(frame: dict[str, object]) -> bool:
    """Whether any row changed."""
    if frame["whole"] or frame["ledger"]:
        return True
    tables = (frame[name] for name in ("workers", "pulses", "auctions", "tasks"))
    return any(isinstance(table, dict) and any(table.values()) for table in tables)
