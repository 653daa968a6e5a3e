"""The workers, as this negotiator hears them: who is there, what they have in hand, and who is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from nats.aio.client import Client

from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.hearing import deaf_times
from modelnet.market import Directory
from modelnet.market import commands as cmd
from modelnet.messages import Beat, CancelAttempt

from .archive import Archive
from .hand import Hand, Held
from .vacancies import Vacancies

__all__ = ["Watch"]

log = structlog.get_logger("negotiator")

LOOK_S = 0.25
"""How often it looks who is lost: so much later than it could be is the next attempt, at worst."""


class Watch:
    """Hears beats, and their absence."""

    def __init__(
        self,
        nc: Client,
        hand: Hand,
        directory: Directory,
        catalogue: Catalogue,
        archive: Archive,
        vacancies: Vacancies,
        *,
        beat_s: float,
        missed_done: Callable[[Held, str, int, str | None], Coroutine[Any, Any, None]],
        relist: Callable[[], Awaitable[None]],
        run: Callable[[Held, list[cmd.Command]], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """`missed_done` finds out how an attempt ended that its worker has no more; `relist` reads the contracts."""
        self._nc, self._hand, self._directory = nc, hand, directory
        self._catalogue, self._archive, self._vacancies = catalogue, archive, vacancies
        self._beat_s = beat_s
        self._missed_done, self._relist, self._run, self._spawn = missed_done, relist, run, spawn
        self._meeting: dict[str, asyncio.Task[None]] = {}

    async def keep(self) -> None:
        """Look who is lost, for ever."""
        async for deaf_s in deaf_times(self._nc, LOOK_S):
            if deaf_s:
                self._directory.excuse(deaf_s)
            for worker in self._directory.lost(time.monotonic()):
                log.warning("worker_lost", worker=worker)
                try:
                    await self._lost(worker)
                except Exception as error:  # a connection that breaks now must not end the watch
                    log.warning("watch_failed", worker=worker, error=repr(error))

    async def hear(self, beat: Beat) -> None:
        """A worker's beat."""
        now = time.monotonic()
        if beat.leaving:
            if (meeting := self._meeting.get(beat.worker)) is not None:
                meeting.cancel()  # else it would be taken for alive once it is looked up
            self._directory.forget(beat.worker)
            await self._lost(beat.worker)
            return
        restarted = self._directory.restarted(beat)
        if self._directory.unknown(beat):
            self._spawn(self._introduce(beat))  # others' beats do not wait for the catalogue
        else:
            await self._note(beat)
        in_hand = {(r.tenant, r.task, r.attempt) for r in beat.running}
        for tenant, task, attempt in in_hand:
            stale = self._hand.get(tenant, task)
            if stale is not None and attempt < stale.undertaking.attempt:  # a zombie: it missed its cancel
                cancel = CancelAttempt(tenant=tenant, task=task, attempt=attempt)
                await self._nc.publish(subjects.cancel_attempt(beat.worker), cancel.encode())
        for held in self._hand.all():
            if held.undertaking.running is None:
                continue
            worker, attempt, since = held.undertaking.running
            if worker != beat.worker or (*held.key, attempt) in in_hand or now - since < self._beat_s:
                continue
            # Twice, as its Done may have been on its way the first time; not if the process that had it is no more.
            if (held.suspect == attempt or restarted) and held.undertaking.at_work:
                self._spawn(self._missed_done(held, *held.undertaking.at_work))
            held.suspect = attempt

    async def _introduce(self, beat: Beat) -> None:
        await self.meet(beat.worker)
        await self._note(beat)

    async def _note(self, beat: Beat) -> None:
        self._directory.hear(beat, time.monotonic())
        if beat.free:
            await self._vacancies.said(beat.worker, beat.free)

    async def meet(self, worker: str) -> None:
        """Look up a worker that was heard for the first time."""
        meeting = self._meeting.get(worker)
        if meeting is None:
            meeting = self._meeting[worker] = self._spawn(self._look_up(worker))
            meeting.add_done_callback(lambda _: self._meeting.pop(worker))
        await asyncio.wait([meeting])

    async def _look_up(self, worker: str) -> None:
        try:
            card = await self._catalogue.card(worker)
            if card is None:
                return
            if any(self._directory.contract(c.contract) is None for c in card.capabilities):
                await self._relist()
        except Exception as error:  # its next beat is another occasion
            log.warning("worker_not_met", worker=worker, error=repr(error))
            return
        self._directory.learn_card(card, time.monotonic())
        self._archive.meet(worker)
        log.info("worker_met", worker=worker, capabilities=[c.pattern for c in card.capabilities])

    async def _lost(self, worker: str) -> None:
        """A worker is gone. What it finished before counts."""
        for held in self._hand.all():
            at_work = held.undertaking.at_work
            if at_work is not None and at_work[0] == worker:
                self._spawn(self._missed_done(held, *at_work))
            else:
                await self._run(held, held.undertaking.on_worker_lost(worker, time.monotonic()))
