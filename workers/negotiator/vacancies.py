"""Free slots, and who of the waiting tasks may try for them: with other negotiators about, each takes its turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import subjects
from modelnet.market import Directory, State, Turns
from modelnet.market import commands as cmd
from modelnet.messages import Claim, Offer

from .hand import Hand, Held

__all__ = ["Vacancies"]

log = structlog.get_logger("negotiator")

TYPICAL_S = 1.0
"""What a task takes, where that is not known."""

_UNDECIDED = (State.AUCTIONING, State.DEPOSITING, State.AWARDING)


class Vacancies:
    """Calls tasks out of the line when a worker has room."""

    def __init__(
        self,
        nc: Client,
        hand: Hand,
        directory: Directory,
        *,
        negotiator: str,
        run: Callable[[Held, list[cmd.Command]], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """`run` carries out what an undertaking asks for."""
        self._nc, self._hand, self._directory = nc, hand, directory
        self._negotiator = negotiator
        self._run, self._spawn = run, spawn
        self._turns = Turns(negotiator)

    async def open(self) -> None:
        """Hear what other negotiators award."""
        await self._nc.subscribe(subjects.claim("*", "*"), cb=self._on_claim)

    async def _on_claim(self, msg: Msg) -> None:
        _, negotiator, worker = msg.subject.split(".")
        if negotiator == self._negotiator:
            return
        try:
            claim = Claim.decode(msg.data)
        except ValidationError:
            log.warning("claim_malformed", negotiator=negotiator)
            return
        now = time.monotonic()
        self._turns.hear(negotiator, now)
        self._directory.hear_claim(worker, claim, now)

    async def offered(self, offer: Offer) -> None:
        """A worker's capacity has changed."""
        self._directory.hear_offer(offer, time.monotonic())
        await self.said(offer.worker, offer.free, offer.number, offer.p50_ms / 1e3)

    async def said(self, worker: str, free: int, number: int | None = None, task_s: float = TYPICAL_S) -> None:
        """A worker has told how many awards it can take; `number`: of its offer."""
        if not self._hand.waiting:
            return
        now = time.monotonic()
        wait_s = self._turns.wait_s(worker, number, task_s, now)
        if wait_s:
            self._spawn(self._fill_later(worker, free, now, wait_s))
        else:
            await self._fill(worker, free)

    async def freed(self, worker: str) -> None:
        """An attempt has ended. If that made room in a full worker, its offer will tell the other negotiators too."""
        now = time.monotonic()
        wait_s = self._turns.wait_s(worker, None, TYPICAL_S, now)
        if wait_s:
            self._spawn(self._fill_later(worker, 1, now, wait_s))
        else:
            await self._call(worker, 1)

    async def decided(self, held: Held) -> None:
        """If the auction of a task that was called out of the line is over, and another worker won: there is room."""
        if held.undertaking.state in _UNDECIDED:
            return
        worker = self._hand.decided(held)
        at_work = held.undertaking.at_work
        if held.undertaking.state is not State.WAITING and (at_work is None or at_work[0] != worker):
            await self.freed(worker)

    async def _fill_later(self, worker: str, free: int, said_at: float, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        await self._fill(worker, free - self._directory.claims.since(worker, said_at, time.monotonic()))

    async def _fill(self, worker: str, free: int) -> None:
        """As many may try as awards can be taken, with those that were called for them already."""
        called = self._hand.called_for(worker)
        if free > called:
            await self._call(worker, free - called)

    async def _call(self, worker: str, count: int) -> None:
        """Let up to `count` waiting tasks that this worker could take try again."""

        def could_take(held: Held) -> bool:
            candidate = self._directory.candidate(worker, held.task, held.accepts)
            return candidate is not None and worker not in held.undertaking.failed

        for held in self._hand.call(worker, partial(self._directory.serves, worker), could_take, count):
            await self._run(held, held.undertaking.wake(time.monotonic(), worker))
