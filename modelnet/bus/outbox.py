"""What a worker publishes of its attempts, kept until the result stream is known to hold it.

Events go out without an acknowledgement each, the last one of an attempt with one. On a connection that was not lost
since the attempt's first event, that acknowledgement covers all before it. After a lost one the outbox compares what
it kept with what is stored and publishes the difference: readers know repeats by their numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import nats.errors
from nats.aio.msg import Msg

from modelnet.errors import ConnectionFailed

from .connection import Connection
from .journal import stored_sequence
from .replay import read_all

__all__ = ["Outbox", "Trail"]

RETRY_S = 2.0


@dataclass(slots=True, eq=False)
class Trail:
    """The events of one attempt, in order."""

    subject: str
    connection: int
    """The connection on which all of it is known to have gone out."""
    bodies: list[bytes] = field(default_factory=list)
    token: str = ""
    """Set once the last event is among them."""
    sent_at: float = 0.0
    acked: bool = False


class Outbox:
    """The open trails of a worker."""

    def __init__(self, nc: Connection) -> None:
        self._nc = nc
        self._inbox = nc.new_inbox()
        self._trails: set[Trail] = set()
        self._closed: dict[str, Trail] = {}
        self._connection = 0
        self._token = 0
        self.empty = asyncio.Event()
        """Set while nothing is owed to the stream."""
        self.empty.set()

    async def start(self) -> None:
        """Listen for acknowledgements."""
        await self._nc.hear(f"{self._inbox}.*", self._on_ack)

    def open(self, subject: str) -> Trail:
        """Begin an attempt whose events are published on `subject`."""
        trail = Trail(subject, self._connection)
        self._trails.add(trail)
        self.empty.clear()
        return trail

    async def send(self, trail: Trail, body: bytes) -> None:
        """Publish an event, now or once the server is back."""
        trail.bodies.append(body)
        with contextlib.suppress(nats.errors.OutboundBufferLimitError):  # the server is away, and too much waits for it
            await self._nc.publish(trail.subject, body)

    async def close(self, trail: Trail, body: bytes) -> None:
        """Publish the last event; it is repeated until the stream has it, but nobody waits for that.

        What was said before stands when it does: after a lost connection it is mended first.
        """
        while trail.connection != self._connection:
            with contextlib.suppress(ConnectionFailed):
                await self.mend()
                continue
            await asyncio.sleep(RETRY_S)
        self._token += 1
        trail.token = str(self._token)
        trail.bodies.append(body)
        self._closed[trail.token] = trail
        await self._publish_last(trail)

    def drop(self, trail: Trail) -> None:
        """Nobody wants the rest of this attempt."""
        self._trails.discard(trail)
        self._closed.pop(trail.token, None)
        if not self._trails:
            self.empty.set()

    async def repeat(self) -> None:
        """Publish again what should have been acknowledged by now."""
        now = time.monotonic()
        for trail in list(self._closed.values()):
            if not trail.acked and now - trail.sent_at > RETRY_S:
                await self._publish_last(trail)

    def reconnected(self) -> None:
        """What was sent before may be lost: `mend` is due."""
        self._connection += 1

    async def mend(self) -> None:
        """Publish what the stream lacks of trails that began on an earlier connection.

        Raises `ConnectionFailed` if the stream cannot be read; then call it again.
        """
        connection = self._connection
        for trail in list(self._trails):
            if trail.connection == connection:
                continue
            kept = list(trail.bodies)
            stored = {found.body async for found in read_all(self._nc, "RESULTS", trail.subject)}
            for body in kept:
                if body in stored:
                    continue
                if trail.token and body is trail.bodies[-1]:
                    await self._publish_last(trail)
                else:
                    await self._nc.publish(trail.subject, body)
            trail.connection = connection
            if trail.acked:
                self.drop(trail)

    async def _publish_last(self, trail: Trail) -> None:
        trail.sent_at = time.monotonic()
        if not self._nc.is_connected:
            return
        # No Msg-Id: a stream restored without its last seconds must take the event again.
        await self._nc.publish(trail.subject, trail.bodies[-1], reply=f"{self._inbox}.{trail.token}")

    async def _on_ack(self, msg: Msg) -> None:
        trail = self._closed.get(msg.subject.rsplit(".", 1)[1])
        if trail is not None and stored_sequence(msg):
            trail.acked = True
            if trail.connection == self._connection:
                self.drop(trail)
