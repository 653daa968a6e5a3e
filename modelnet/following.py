"""One reader's way to a task's stream: live messages and what is stored, brought together.

Live messages may be missed: the connection breaks, or the reader is slower than the stream. The numbers of result
events show it, and a journal entry tells the sequence of the one before; what is missing is read from the streams.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import nats.errors
from nats.aio.client import Client as Bus
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import ValidationError

from modelnet.bus import journal, subjects
from modelnet.bus.replay import last_of, read_all
from modelnet.errors import ConnectionFailed, UnknownTask
from modelnet.messages import Awarded, Final, Planned, Waiting, decode_entry, decode_event
from modelnet.reader import Position, Reader, StreamEvent

__all__ = ["Following", "Live"]

MAX_UNREAD = 8192
"""Live messages that wait for a slow reader; what comes above is read from the stream later."""


class Live:
    """A task's live messages, as one subscription hears them."""

    def __init__(self) -> None:
        self.dropped = False
        """Whether messages came that the reader had no room for."""
        self._unread = deque[Msg]()
        self._news = asyncio.Event()
        self._sub: Subscription | None = None

    async def open(self, bus: Bus, subject: str) -> Live:
        """Subscribe."""
        self._bus = bus
        # With a callback: `next_msg` starts two tasks for each message.
        self._sub = await bus.subscribe(subject, cb=self._hear)
        return self

    async def _hear(self, msg: Msg) -> None:
        if len(self._unread) >= MAX_UNREAD:
            self.dropped = True
        else:
            self._unread.append(msg)
        self._news.set()

    async def next(self, timeout_s: float) -> Msg | None:
        """The next message; None if there is none in time. Raises `ConnectionFailed` if there can be none any more."""
        if not self._unread:
            self._news.clear()
            if self._bus.is_closed:
                raise ConnectionFailed("the connection was closed while a task was being followed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
        return self._unread.popleft() if self._unread else None

    async def close(self) -> None:
        """Unsubscribe."""
        if self._sub is not None and self._bus.is_connected:
            with contextlib.suppress(nats.errors.Error):
                await self._sub.unsubscribe()


class Following:
    """Feeds a `Reader`. Both methods return what is now due to be shown."""

    def __init__(self, bus: Bus, tenant: str, task: str, after: Position | None = None) -> None:
        self.reader = Reader(after)
        self.behind = False
        """Whether a journal entry was missed: nothing can be shown before it was read."""
        self._bus, self._tenant, self._task = bus, tenant, task
        self._status = 0
        """Sequence of the last status entry that the reader was given."""

    @property
    def incomplete(self) -> bool:
        """Whether something is missing that the streams should hold."""
        return self.behind or self.reader.missing

    def feed(self, msg: Msg) -> list[StreamEvent]:
        """A live message."""
        try:
            if subjects.ResultAddress.parse(msg.subject).worker:
                return self.reader.event(decode_event(msg.data))
            entry = decode_entry(msg.data)
        except ValidationError:
            return []  # of a newer version, or garbage on a subject of ours: not for this reader
        headers = msg.headers or {}
        if not msg.subject.endswith(".status"):
            return self.reader.entry(entry)
        if int(headers.get("Nats-Sequence", "0")) <= self._status:
            return []
        if int(headers.get("Nats-Last-Sequence", "0")) != self._status:
            self.behind = True
            return []
        self._status = int(headers["Nats-Sequence"])
        return self.reader.entry(entry)

    async def fill(self) -> list[StreamEvent]:
        """All that is stored. Raises `ConnectionFailed`, and `UnknownTask` if the task has left no trace."""
        bus, due = self._bus, list[StreamEvent]()
        entries = await journal.read(bus, self._tenant, self._task)
        if not entries and not self.reader.attempt:
            queued = await last_of(bus, "TASKS", subjects.queued_task(self._tenant, self._task))
            # Between the two reads the task may have ended and left the queue.
            if queued is None and not (entries := await journal.read(bus, self._tenant, self._task)):
                raise UnknownTask(f"no task {self._task!r} of tenant {self._tenant!r}")
        final = None
        for sequence, entry in entries:
            if isinstance(entry, Final):
                final = entry
            elif isinstance(entry, Awarded | Planned | Waiting) and sequence > self._status:
                due += self.reader.entry(entry)
            if entry is None or isinstance(entry, Awarded | Planned | Waiting):
                self._status = max(self._status, sequence)
        self.behind = False
        async for stored in read_all(bus, "RESULTS", f"result.{self._tenant}.{self._task}.*.*"):
            with contextlib.suppress(ValidationError):
                due += self.reader.event(decode_event(stored.body))
        if final is not None:
            due += self.reader.entry(final)
        return due
