"""The link between the client under test and its server: it can be cut, and what passes can be seen or lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Link"]

_CHUNK = 1 << 16

Pass = Callable[[bytes], Awaitable[bool]]
"""Asked about each piece of the stream before it is passed on: whether it is."""


async def _always(piece: bytes) -> bool:
    return True


class Link:
    """`async with Link(server_url) as link:` clients connect to `link.url`."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 4222
        self.sent = bytearray()
        """All that clients have sent since `forget`."""
        self.on_sent: Pass = _always
        self.on_received: Pass = _always
        self._open: set[asyncio.Task[None]] = set()
        self._cut = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._open, return_exceptions=True)

    def forget(self) -> None:
        """Begin anew: nothing seen, all passed on."""
        self.sent.clear()
        self.on_sent = self.on_received = _always

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        self._cut = True
        for task in self._open:
            task.cancel()

    def mend(self) -> None:
        """Let them come back."""
        self._cut = False

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._cut or task is None:
            writer.transport.abort()
            return
        self._open.add(task)
        far_writer = None
        with contextlib.suppress(OSError, asyncio.CancelledError, ExceptionGroup):
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, far_writer, up=True))
                both.create_task(self._carry(far_reader, writer, up=False))
        for end in (writer, far_writer):
            if end is not None:
                end.transport.abort()
        self._open.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        while piece := await reader.read(_CHUNK):
            if up:
                self.sent += piece
            if await (self.on_sent if up else self.on_received)(piece):
                writer.write(piece)
                await writer.drain()
        raise ConnectionResetError  # one side has gone: so does the other
