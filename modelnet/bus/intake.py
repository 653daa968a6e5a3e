"""Taking tasks off the stream: pulls on every class and bucket, bounded, high classes first, buckets in turn.

On nats-py, not FastStream: a pull subscriber there waits for a whole batch before it asks for the next, or with several
workers takes more than it works on (ag2ai/faststream#2563).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from nats.aio.msg import Msg

from .connection import Connection
from .streams import TASK_CONSUMERS, task_consumer
from .subjects import CLASSES

__all__ = ["Delivery", "TaskIntake"]

_PLAIN = 9
"""Parts of the reply subject where the server names no domain."""
_BATCH = 16
_EXPIRES_S = 20.0
_CLASS_SHARE = (0.75, 1.0, 1.25)
"""Each class may still take tasks while fewer than this share of the bound is held: room is kept for higher ones."""

_TURNS = (2, 2, 2, 2, 1, 1, 0)
"""Order in which classes get free room when all want it."""


class Delivery(NamedTuple):
    """How a message has come off its stream. (nats-py's `metadata` makes dates of the same, ten times as slowly.)"""

    times: int
    """How often it was delivered, this time included."""
    sequence: int
    """Its place in the stream."""
    queued_at: float
    """When the server stored it, in seconds since the epoch by the server's clock."""

    @classmethod
    def of(cls, msg: Msg) -> Delivery:
        """That of a message from a consumer."""
        # $JS.ACK.[domain.account.]stream.consumer.times.sequence.consumer's sequence.ns.pending[.random]
        parts = msg.reply.split(".")
        times, sequence, _, stored_ns = parts[4:8] if len(parts) == _PLAIN else parts[6:10]
        return cls(int(times), int(sequence), int(stored_ns) / 1e9)


@dataclass(slots=True)
class _Pull:
    """One consumer's side of the intake."""

    priority_class: int
    bucket: int
    requested: int = 0
    asked_at: float = 0.0


class TaskIntake:
    """Delivers each task message to `on_task`. Its taker calls `release` once it has acknowledged or given it back."""

    def __init__(self, nc: Connection, on_task: Callable[[Msg], Awaitable[None]], *, limit: int) -> None:
        self._nc = nc
        self._on_task = on_task
        self._limit = limit
        self._held = 0
        self._inbox = nc.new_inbox()
        self._pulls = {(c, b): _Pull(c, b) for c, b in TASK_CONSUMERS}
        self._turns = [deque(self._pulls[c, b] for c2, b in TASK_CONSUMERS if c2 == c) for c in range(CLASSES)]
        self._open = False

    @property
    def held(self) -> int:
        """Tasks taken and not yet released."""
        return self._held

    async def start(self) -> None:
        """Subscribe and ask for the first tasks."""
        self._open = True
        self._sub = await self._nc.hear(f"{self._inbox}.*.*", self._on_message)
        await self.refill()

    async def stop(self) -> None:
        """Take no more tasks; what the server has sent already goes back to it."""
        self._open = False
        if self._nc.is_connected:
            await self._sub.drain()

    async def reset(self) -> None:
        """After a reconnect the server has forgotten what was asked for: ask again."""
        for pull in self._pulls.values():
            pull.requested = 0
        await self.refill()

    async def release(self) -> None:
        """One task fewer is held."""
        self._held -= 1
        if self._held + 1 >= self._limit * min(_CLASS_SHARE):  # else no class was at its bound
            await self.refill()

    async def refill(self) -> None:
        """Ask on every consumer that has room and no request worth waiting for."""
        if not self._open or not self._nc.is_connected:
            return
        now = time.monotonic()
        for priority_class in dict.fromkeys(_TURNS):
            if self._held >= self._limit * _CLASS_SHARE[priority_class]:
                continue
            turns = self._turns[priority_class]
            for _ in range(len(turns)):
                pull = turns[0]
                turns.rotate(-1)
                overdue = now - pull.asked_at > _EXPIRES_S + 2
                if pull.requested <= _BATCH // 2 or overdue:
                    await self._ask(pull, now)

    async def _ask(self, pull: _Pull, now: float) -> None:
        count = _BATCH - pull.requested if now - pull.asked_at <= _EXPIRES_S + 2 else _BATCH
        pull.requested, pull.asked_at = _BATCH, now
        name = task_consumer(pull.priority_class, pull.bucket)
        body = json.dumps({"batch": count, "expires": int(_EXPIRES_S * 1e9)}).encode()
        reply = f"{self._inbox}.{pull.priority_class}.{pull.bucket}"
        await self._nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.TASKS.{name}", body, reply=reply)

    async def _on_message(self, msg: Msg) -> None:
        # A task arrives under its own subject, a status under the inbox's.
        if not msg.subject.startswith("task."):
            _, priority_class, bucket = msg.subject.rsplit(".", 2)
            pull = self._pulls[int(priority_class), int(bucket)]
            headers = msg.headers or {}
            unfilled = int(headers.get("Nats-Pending-Messages") or _BATCH)
            pull.requested = max(pull.requested - unfilled, 0)
            if headers.get("Status") == "408":
                await self.refill()
            return  # any other status (503, 409) is asked again by the next tick, not in a loop
        _, priority_class, bucket, _ = msg.subject.split(".", 3)
        if not self._open:
            await self._nc.publish(msg.reply, b"-NAK")
            return
        pull = self._pulls[int(priority_class), int(bucket)]
        self._held += 1
        pull.requested = max(pull.requested - 1, 0)
        try:
            await self._on_task(msg)
        finally:
            if pull.requested <= _BATCH // 2:
                await self.refill()
