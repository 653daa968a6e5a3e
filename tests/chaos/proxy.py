"""A TCP proxy between a party and its server that makes the link slow, thin, silent, cut or stuttering, at run time.

It carries whole NATS frames, so a message can be dropped or repeated without breaking the protocol, and whoever watches
sees each frame before it is passed on: that is how a process is killed at an exact point of a task's life. For a
protocol that is not NATS it carries bytes as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable
from typing import Literal

from tests.chaos.frames import Frame, FrameParser

__all__ = ["Direction", "Proxy", "Verdict", "Watch"]

Direction = Literal["up", "down"]
"""From the party to the server, and back."""

_CHUNK = 65536
_PATIENCE_S = 1.0
"""A connection whose party is gone may still have this long for what is under way."""

_THIN_CHUNK = 1024
"""Bytes written at once on a link with a bounded rate."""


class Verdict(enum.Enum):
    """What becomes of a frame."""

    PASS = "pass"
    DROP = "drop"
    PASS_AND_END = "pass_and_end"
    """It is the last frame that this connection carries in its direction."""
    DROP_AND_END = "drop_and_end"
    """Neither it nor anything behind it is carried."""


Watch = Callable[[Direction, Frame], Verdict]


def _pass(direction: Direction, frame: Frame) -> Verdict:
    return Verdict.PASS


class Proxy:
    """Listens on a free loopback port and connects each caller to `target`. Its attributes may change at any time."""

    def __init__(self, target: int, *, frames: bool = True, watch: Watch = _pass) -> None:
        """`target`: a port on this machine. `frames`: whether NATS is spoken. `watch`: asked about each frame."""
        self.target = target
        self.watch = watch
        self.delay_s = 0.0
        """What each byte waits, in either direction."""
        self.bytes_per_s: float | None = None
        """How much the link carries, each way; None: as much as it can."""
        self.repeat_every: int | None = None
        """Each n-th message travels twice; None: none does."""
        self._frames = frames
        self._sessions: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._messages = 0

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End every connection and listen no more."""
        self._server.close()
        sessions = list(self._sessions)
        self.cut()
        await asyncio.gather(*sessions)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._sessions)

    async def idle(self) -> None:
        """Wait until every connection has ended, when its party has."""
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=_PATIENCE_S)

    def cut(self) -> None:
        """End every connection at once, and each new one as soon as it is made."""
        self._is_cut = True
        for session in list(self._sessions):
            session.cancel()

    def hold(self) -> None:
        """Carry nothing, end nothing: both sides believe in a connection that is silent."""
        self._flowing.clear()

    def mend(self) -> None:
        """A good link again; what was held travels on."""
        self._is_cut = False
        self.delay_s, self.bytes_per_s, self.repeat_every = 0.0, None, None
        self._flowing.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        session = asyncio.current_task()
        assert session is not None
        self._sessions.add(session)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump("up", reader, far_writer))
                both.create_task(self._pump("down", far_reader, writer))
        except asyncio.CancelledError:
            pass  # by `cut`: the session is over, and so is this task
        finally:
            writer.transport.abort()
            far_writer.transport.abort()
            self._sessions.discard(session)

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction of one connection until it ends."""
        under_way: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(maxsize=256)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._deliver(under_way, writer))
            await self._accept(direction, reader, under_way)

    async def _accept(
        self, direction: Direction, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes] | None]
    ) -> None:
        parser, clock, ended = FrameParser(), asyncio.get_running_loop().time, False
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                if ended:
                    continue
                if self._frames:
                    data, ended = self._judge(direction, parser.feed(data))
                if data:
                    await under_way.put((clock() + self.delay_s, data))
        await under_way.put(None)

    def _judge(self, direction: Direction, frames: list[Frame]) -> tuple[bytes, bool]:
        """What is carried of these frames, and whether nothing more is."""
        passed = bytearray()
        for frame in frames:
            verdict = self.watch(direction, frame)
            if verdict in (Verdict.PASS, Verdict.PASS_AND_END):
                passed += frame.raw
                if frame.is_message and self.repeat_every is not None:
                    self._messages += 1
                    if self._messages % self.repeat_every == 0:
                        passed += frame.raw
            if verdict in (Verdict.PASS_AND_END, Verdict.DROP_AND_END):
                return bytes(passed), True
        return bytes(passed), False

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes] | None], writer: asyncio.StreamWriter
    ) -> None:
        clock = asyncio.get_running_loop().time
        broken = False
        while (item := await under_way.get()) is not None:
            due, data = item
            if broken:
                continue  # the reading side learns it by itself
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            try:
                while data:
                    await self._flowing.wait()
                    piece = data if self.bytes_per_s is None else data[:_THIN_CHUNK]
                    writer.write(piece)
                    await writer.drain()
                    data = data[len(piece) :]
                    if self.bytes_per_s is not None:
                        await asyncio.sleep(len(piece) / self.bytes_per_s)
            except (ConnectionError, RuntimeError):
                broken = True
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()
