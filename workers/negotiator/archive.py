"""What this negotiator knows of workers, kept in common with all others in the reputation book."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import Callable, Iterable
from itertools import count, islice
from typing import TYPE_CHECKING

import structlog

from modelnet.bus.clock import ServerClock
from modelnet.errors import ModelnetError
from modelnet.market import Outcome, TrackRecord, TrackRecords

if TYPE_CHECKING:
    from modelnet.store.reputation import ReputationBook

__all__ = ["Archive"]

log = structlog.get_logger("negotiator")

TICK_S = 1.0
"""Outcomes are written so often."""

REFRESH_S = 30.0
"""What others have learned of workers that were met is read so often."""

AT_ONCE = 500
"""Outcomes in one write, and workers in one read."""

MOST_PENDING = 20_000
"""Outcomes that wait for the book at most. The oldest are forgotten there; this negotiator still reckons with them."""

CLOSING_S = 3.0


class Archive:
    """Reads and writes the book beside the negotiator's work. While Redis is away it goes on with what it has.

    Records in memory are stamped with monotonic time, those in the book with the server's; `_offset` is all between.
    """

    def __init__(
        self, records: TrackRecords, clock: ServerClock, url: str, *, live: Callable[[], Iterable[str]]
    ) -> None:
        """`live`: names the workers whose records are to be fresh. `url`: of Redis."""
        self._records, self._clock, self._url, self._live = records, clock, url, live
        self._pending: dict[int, tuple[Outcome, float]] = {}
        """What the book does not have for certain, by number, with monotonic times."""
        self._numbers = count()
        self._met: dict[str, None] = {}
        self._news = asyncio.Event()
        self._refreshed_at = time.monotonic()
        self._book: ReputationBook | None = None
        self._away = self._forgets = False

    @property
    def pending(self) -> int:
        """How many outcomes wait to be written."""
        return len(self._pending)

    def learn(self, outcome: Outcome) -> None:
        """Note an outcome: at once for this negotiator, soon for the others."""
        now = time.monotonic()
        self._records.learn(outcome, now)
        self._pending[next(self._numbers)] = outcome, now
        if len(self._pending) > MOST_PENDING:
            del self._pending[next(iter(self._pending))]
            if not self._forgets:
                log.warning("outcomes_forgotten", pending=MOST_PENDING)
            self._forgets = True

    def meet(self, worker: str) -> None:
        """Look up what the book has on a worker, soon."""
        self._met[worker] = None
        self._news.set()

    async def keep(self) -> None:
        """Write and read for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()
            self._news.clear()
            await self.work()
            if self._away:
                await asyncio.sleep(TICK_S)

    async def work(self) -> None:
        """Write what waits, read what is wanted. Never raises."""
        try:
            await self._write()
            await self._read()
        except ModelnetError as error:
            if not self._away:
                log.warning("reputation_book_away", error=error.message, pending=self.pending)
            self._away = True
        except Exception as error:
            log.error("reputation_book_failed", error=repr(error), exc_info=error)
        else:
            if self._away:
                log.info("reputation_book_back")
            self._away = self._forgets = False

    async def close(self) -> None:
        """Write what waits, if the book is there, and let go of it."""
        if self._pending and not self._away:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S):
                    await self.work()
        if self._book is not None:
            await self._book.close()

    # ------------------------------------------------------------------ the book

    async def _write(self) -> None:
        due = iter(list(self._pending))  # what comes meanwhile goes with the next tick's
        while numbers := list(islice(due, AT_ONCE)):
            book = await self._open()
            from modelnet.store.reputation import Noted

            # The oldest may have been forgotten since.
            batch = {number: self._pending[number] for number in numbers if number in self._pending}
            ahead_s = self._offset()
            known = await book.learn(Noted(outcome, at + ahead_s) for outcome, at in batch.values())
            for number in batch:
                self._pending.pop(number, None)
            self._take_over(known)

    async def _read(self) -> None:
        now = time.monotonic()
        if now - self._refreshed_at >= REFRESH_S:
            self._refreshed_at = now
            self._met.update(dict.fromkeys(self._live()))
        while self._met:
            book = await self._open()
            workers = list(islice(self._met, AT_ONCE))
            self._take_over(await book.of(workers))
            for worker in workers:
                self._met.pop(worker, None)

    def _take_over(self, known: dict[tuple[str, str], TrackRecord]) -> None:
        """What stands in the book, and what it does not have yet, is what this negotiator reckons with."""
        now, ahead_s = time.monotonic(), self._offset()
        records = {who: record.on_clock(-ahead_s, now) for who, record in known.items()}
        for outcome, at in self._pending.values():
            who = outcome.worker, outcome.capability
            if who in records:
                records[who] = records[who].after(outcome, at)
        for who, record in records.items():
            self._records.put(*who, record)

    def _offset(self) -> float:
        """How far the book's clock is ahead of the monotonic one."""
        return self._clock.now() - time.monotonic()

    async def _open(self) -> ReputationBook:
        if self._book is None:
            # A third of a second of imports, off the loop.
            module = await asyncio.to_thread(importlib.import_module, "modelnet.store.reputation")
            self._book = module.ReputationBook(self._url)
        return self._book
