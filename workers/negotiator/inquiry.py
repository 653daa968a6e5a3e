"""Finding out what became of attempts, from the streams and from their workers, for as long as that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, TypeVar

import structlog
from nats.aio.client import Client

from modelnet.bus import journal
from modelnet.bus.takeover import ask_worker, read_streamed
from modelnet.errors import ModelnetError
from modelnet.market.commands import Streamed
from modelnet.messages import AdoptAttempt, Done

from .hand import Hand, Held

__all__ = ["Inquiry"]

T = TypeVar("T")

log = structlog.get_logger("negotiator")

RETRY_S = 1.0


class Inquiry:
    """Asks again while the streams are away and the task is in hand."""

    def __init__(self, nc: Client, hand: Hand, *, negotiator: str, timeout_s: float) -> None:
        """`timeout_s`: how long a worker may take to answer."""
        self._nc, self._hand = nc, hand
        self._negotiator, self._timeout_s = negotiator, timeout_s

    async def until_done(self, held: Held, what: str, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do something that needs the streams, as often as it takes; None if the task is out of hand meanwhile."""
        while True:
            try:
                return await work()
            except ModelnetError as error:
                log.warning("streams_away", task=held.task.id, wanted=what, error=str(error))
            await asyncio.sleep(RETRY_S)
            if not self._hand.holds(held):
                return None

    async def end_of(self, held: Held, worker: str, attempt: int, auction: str | None) -> Done | None:
        """How an attempt ended, if the result stream holds its last event."""
        task = held.task
        last = partial(journal.ending, self._nc, task.tenant, task.id, worker, attempt, auction)
        event = await self.until_done(held, "last_event", last)
        return Done.of(event, task.tenant) if event is not None else None

    async def recall(
        self, held: Held, worker: str, attempt: int, auction: str | None
    ) -> Done | Literal["running", "unknown", "silent"] | None:
        """An attempt that another negotiator gave away: how it ended, or whether its worker still runs it.

        None if the task is out of hand meanwhile. If it runs, its end will be told to this negotiator.
        """
        task, by = held.task, self._negotiator
        if (done := await self.end_of(held, worker, attempt, auction)) is not None or not self._hand.holds(held):
            return done
        question = AdoptAttempt(tenant=task.tenant, task=task.id, attempt=attempt, auction=auction, negotiator=by)
        answer = await ask_worker(self._nc, worker, question, timeout_s=self._timeout_s)
        if answer != "running":  # it may have ended between the two questions
            done = await self.end_of(held, worker, attempt, auction)
        if not self._hand.holds(held):
            return None
        if done is None:
            log.info("attempt_recalled", task=task.id, worker=worker, attempt=attempt, answer=answer)
        return done or answer

    async def streamed(self, held: Held) -> Streamed | None:
        """What readers have of the attempts so far; None if the task is out of hand."""
        read = partial(read_streamed, self._nc, held.task.tenant, held.task.id)
        return await self.until_done(held, "stream", read)
