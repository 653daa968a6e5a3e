"""A task as its reader has it: the stream of what happens, and how it ends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from modelnet.bus import subjects
from modelnet.errors import (
    ConnectionFailed,
    MalformedInput,
    TaskCancelled,
    TaskError,
    TaskExpired,
    TaskFailed,
    UnknownTask,
)
from modelnet.following import Following, Live, journal_of
from modelnet.messages import Awarded, Final, Output, Planned, Reset, Waiting
from modelnet.reader import Position, Reader, StreamEvent

if TYPE_CHECKING:
    from modelnet.client import Client

__all__ = ["TaskHandle"]

_POLL_S = 5.0
_GAP_S = 0.05
"""First pause before what is missing is read from the stream; doubled each time that it is not there yet."""
_FILL_TRIES = 7

_BY_STATUS: dict[str, type[TaskError]] = {
    "failed": TaskFailed,
    "expired": TaskExpired,
    "cancelled": TaskCancelled,
}


class TaskHandle:
    """A task on the network, whoever submitted it."""

    def __init__(self, client: Client, tenant: str, task: str, live: Live | None, *, replay: bool) -> None:
        self.id = task
        self.tenant = tenant
        self._client = client
        self._live = live
        self._replay = replay
        self._final: Final | None = None
        self._large: tuple[str, dict[str, Any]] | None = None
        """Name and value of an output that was too large for a message."""
        self._reader = Reader()

    @property
    def text(self) -> str:
        """The text so far of the stream last begun: always right, whatever was reset. `result` begins no stream."""
        return self._reader.text

    async def stream(
        self, *, from_start: bool = True, resume_after: StreamEvent | Position | int | None = None
    ) -> AsyncGenerator[StreamEvent]:
        """Everything from the start, then live, without a gap or a repeat, ending with the Final.

        `resume_after`: the last event that was seen, here or elsewhere, or its place; the stream goes on behind it. A
        bare number is taken to be the first attempt's: if there were more, a `Reset` says what to forget.
        `from_start=False`: only what comes from now on. Raises `UnknownTask` for an id that nobody knows,
        `ConnectionFailed` if the server stays away.
        """
        client = self._client
        following = Following(client.bus, self.tenant, self.id, _position(resume_after))
        self._reader = reader = following.reader
        live, self._live = self._live, None
        replay = self._replay or live is None
        self._replay = True  # a second reader starts over from what is stored
        if live is None:
            live = await client.listener.follow(self.tenant, self.id)
        try:
            if replay:
                for event in await following.fill():
                    if from_start or resume_after is not None or isinstance(event, Final):
                        yield self._seen(await self._whole(event))
            fills, generation, pause = 0, client.reconnects, _GAP_S
            while not reader.done:
                msg = await live.next(pause if following.incomplete else _POLL_S)
                due = following.feed(msg) if msg is not None else []
                if due:
                    pause = _GAP_S
                elif msg is None and following.incomplete:
                    fills += reader.final is not None
                    pause = min(2 * pause, _POLL_S)
                if msg is None or following.behind or live.dropped or generation != client.reconnects:
                    generation, live.dropped = client.reconnects, False
                    with contextlib.suppress(ConnectionFailed, UnknownTask):
                        due += await following.fill()
                if fills > _FILL_TRIES:
                    due += reader.give_up()
                for event in due:
                    yield self._seen(await self._whole(event))
        finally:
            await live.close()

    async def result(self) -> Final:
        """The Final, once it stands. Raises `TaskFailed`, `TaskExpired` or `TaskCancelled` if it is not completed."""
        final = await self.final()
        if final.status != "completed":
            error = final.error
            message = error.message if error and error.message else final.status
            raise _BY_STATUS[final.status](message, code=error.code if error else None)
        return final

    async def final(self) -> Final:
        """The Final, once it stands, whatever its status.

        Raises `UnknownTask` for an id that nobody knows, `ConnectionFailed` if the server stays away, `ObjectLost` if
        its output cannot be had any more.
        """
        if self._final is None:
            self._seen(await self._whole(await self._ending()))
        assert self._final is not None
        return self._final

    async def _ending(self) -> Final:
        """The Final. It says the whole answer, so what comes before it is not even read."""
        client, subject = self._client, subjects.accepted(self.tenant, self.id, "final")
        live, stored, self._live, self._replay = self._live, self._replay, None, True
        if live is None:
            live, stored = await client.listener.follow(self.tenant, self.id), True
        try:
            live.narrow(subject)
            found = await self._stored_ending(known=False) if stored else None
            while found is None:
                msg = await live.next(_POLL_S)
                if msg is not None:
                    with contextlib.suppress(ValidationError):  # of a newer version, or garbage on a subject of ours
                        found = Final.decode(msg.data)
                else:
                    with contextlib.suppress(ConnectionFailed):
                        found = await self._stored_ending(known=True)
            return found
        finally:
            await live.close()

    async def _stored_ending(self, *, known: bool) -> Final | None:
        entries = await journal_of(self._client.bus, self.tenant, self.id, known=known)
        return next((entry for _, entry in entries if isinstance(entry, Final)), None)

    async def cancel(self) -> bool:
        """Ask for the task to be cancelled. False if it had ended already; harmless any number of times."""
        return await self._client.cancel(self.id, tenant=self.tenant)

    async def _whole(self, event: StreamEvent) -> StreamEvent:
        """The event with its output, wherever that lies. Raises `ObjectLost` if it cannot be had any more."""
        if not isinstance(event, Output | Final) or event.output_ref is None:
            return event
        reference = event.output_ref
        if self._large is None or self._large[0] != reference.name:
            self._large = reference.name, await self._client.bodies.fetch(reference)
        return event.model_copy(update={"output": self._large[1]})

    def _seen(self, event: StreamEvent) -> StreamEvent:
        if isinstance(event, Final):
            self._final = event
        return event


def _position(after: StreamEvent | Position | int | None) -> Position | None:
    """What a reader has seen whose last event was this one."""
    if after is None or isinstance(after, Position):
        return after
    if isinstance(after, int):
        return Position(1, after)
    if isinstance(after, Awarded):
        return Position(after.attempt, after.from_number)
    if isinstance(after, Planned | Waiting | Final):
        raise MalformedInput(f"a stream cannot be resumed behind its {after.kind!r} event: it has no number")
    return Position(after.attempt, after.to if isinstance(after, Reset) else after.number)
