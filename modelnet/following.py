"""One reader's way to a task's stream: live messages and what is stored, brought together.

Live messages may be missed: the connection breaks, or the reader is slower than the stream. The numbers of result
events show it, and a journal entry tells the sequence of the one before; what is missing is read from the streams.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import ValidationError

from modelnet.bus import journal, subjects
from modelnet.bus.connection import Connection, unsubscribe
from modelnet.bus.replay import last_of, read_all
from modelnet.errors import ConnectionFailed, UnknownTask
from modelnet.messages import Awarded, Final, JournalEntry, Planned, Waiting, decode_entry, decode_event, new_id
from modelnet.reader import Position, Reader, StreamEvent

__all__ = ["Following", "Listener", "Live", "journal_of"]

MAX_UNREAD = 8192
"""Live messages that wait for a slow reader; what comes above is read from the stream later."""


MAX_TENANTS = 64
"""Tenants whose streams a client goes on hearing while it follows none of their tasks."""


async def journal_of(
    bus: Connection, tenant: str, task: str, *, known: bool
) -> tuple[tuple[int, JournalEntry | None], ...]:
    """A task's journal, with sequences. Raises `ConnectionFailed`, and `UnknownTask` if it has left no trace, unless
    it is `known`."""
    entries = await journal.read(bus, tenant, task)
    if not entries and not known and await last_of(bus, "TASKS", subjects.queued_task(tenant, task)) is None:
        # Between the two reads the task may have ended and left the queue.
        entries = await journal.read(bus, tenant, task)
        if not entries:
            raise UnknownTask(f"no task {task!r} of tenant {tenant!r}")
    return entries


class Live:
    """A task's live messages, for one reader."""

    def __init__(self, bus: Connection, leave: Callable[[Live], Awaitable[None]]) -> None:
        """`leave` ends it."""
        self.dropped = False
        """Whether messages came that the reader had no room for."""
        self._bus, self._leave = bus, leave
        self._unread = deque[Msg]()
        self._news = asyncio.Event()
        self._only: str | None = None

    def narrow(self, subject: str) -> None:
        """From now on nothing is wanted but what comes on this subject."""
        self._only = subject
        self._unread = deque(msg for msg in self._unread if msg.subject == subject)

    def hear(self, msg: Msg) -> None:
        """A message that came."""
        if self._only is not None and msg.subject != self._only:
            return
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
            timer = asyncio.get_running_loop().call_later(timeout_s, self._news.set)
            try:
                await self._news.wait()
            finally:
                timer.cancel()
        return self._unread.popleft() if self._unread else None

    async def close(self) -> None:
        """Hear no more."""
        await self._leave(self)


class Listener:
    """What a client hears of the tasks that it follows.

    All whose ids it has made lie on one lane: one subscription hears them, however many they are. With one for each the
    server, and every other that it is in a cluster with, would have to be told of each task twice. One whose id was
    made elsewhere is heard with a subscription of its own.
    """

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._lane = subjects.lane(new_id())
        self._followed: dict[tuple[str, str], list[Live]] = {}
        """By tenant and task: readers of tasks on the lane."""
        self._subs: dict[str, Subscription] = {}
        """By tenant."""
        self._subscribing = asyncio.Lock()

    def new_id(self) -> str:
        """A fresh id for a task, on the lane."""
        return new_id()[: -len(self._lane)] + self._lane

    async def follow(self, tenant: str, task: str) -> Live:
        """Hear what is said of a task from now on."""
        if subjects.lane(task) != self._lane:
            return await self._follow_alone(tenant, task)
        live, key = Live(self._bus, lambda live: self._leave(key, live)), (tenant, task)
        self._followed.setdefault(key, []).append(live)
        if tenant not in self._subs:
            try:
                await self._subscribe(tenant)
            except BaseException:
                await live.close()
                raise
        return live

    async def _follow_alone(self, tenant: str, task: str) -> Live:
        async def leave(_: Live) -> None:
            await unsubscribe(sub)

        async def hear(msg: Msg) -> None:
            live.hear(msg)

        live = Live(self._bus, leave)
        # With a callback: `next_msg` starts two tasks for each message.
        sub = await self._bus.hear(subjects.stream_of(tenant, task), hear)
        return live

    async def _subscribe(self, tenant: str) -> None:
        async with self._subscribing:
            if tenant in self._subs:
                return
            if len(self._subs) >= MAX_TENANTS:
                heard = {tenant for tenant, _ in self._followed}
                for idle in [tenant for tenant in self._subs if tenant not in heard]:
                    await unsubscribe(self._subs.pop(idle))
            self._subs[tenant] = await self._bus.hear(subjects.streams_on(tenant, self._lane), self._hear)

    async def _hear(self, msg: Msg) -> None:
        _, tenant, _, task, *_ = msg.subject.split(".", 4)
        for live in self._followed.get((tenant, task), ()):
            live.hear(msg)

    async def _leave(self, key: tuple[str, str], live: Live) -> None:
        readers = self._followed.get(key, [])
        if live in readers:
            readers.remove(live)
        if not readers:
            self._followed.pop(key, None)


class Following:
    """Feeds a `Reader`. Both methods return what is now due to be shown."""

    def __init__(self, bus: Connection, tenant: str, task: str, after: Position | None = None) -> None:
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
        entries = await journal_of(bus, self._tenant, self._task, known=bool(self.reader.attempt))
        final = None
        for sequence, entry in entries:
            if isinstance(entry, Final):
                final = entry
            elif isinstance(entry, Awarded | Planned | Waiting) and sequence > self._status:
                due += self.reader.entry(entry)
            if entry is None or isinstance(entry, Awarded | Planned | Waiting):
                self._status = max(self._status, sequence)
        self.behind = False
        async for stored in read_all(bus, "RESULTS", subjects.events_of(self._tenant, self._task)):
            with contextlib.suppress(ValidationError):
                due += self.reader.event(decode_event(stored.body))
        if final is not None:
            due += self.reader.entry(final)
        return due
