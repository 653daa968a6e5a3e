"""The watcher: hears the network for a `View`, at a bounded cost, and asks streams and Redis what cannot be heard."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import nats.errors
import structlog
from nats.aio.client import Client as Bus
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.hearing import deaf_times
from modelnet.bus.journal import read as read_journal
from modelnet.bus.replay import Stored, read_all
from modelnet.errors import ConnectionFailed, ModelnetError
from modelnet.messages import Beat, Offer, RollCall, Transcript, WorkerCard, decode_entry
from modelnet.settings import Settings
from modelnet.store.ledger import Ledger
from modelnet.store.reputation import ReputationBook

from .counters import Counters
from .tap import Tap
from .view import View

__all__ = ["TICK_S", "Watcher"]

log = structlog.get_logger("watch")

TICK_S = 0.25

BEATS_S, OFFERS_S, AUCTIONS_S, ENTRIES_S = 1500, 500, 300, 600
"""Messages of each kind that are heard in a second, at most."""

_COUNT_S = 1.0
_REDIS_S = 3.0
_RELIST_S = 2.0
_SETTLE_AFTER_S = 3.0
_SETTLED_AT_ONCE = 8
_PAST = 400
"""Auctions of before it came that a watcher reads, for the market's history."""
_PAST_SHOWN = 20


class Watcher:
    """`async with Watcher(bus, config) as watcher:` while somebody looks. `watcher.view` is what there is to see."""

    def __init__(self, bus: Bus, config: Settings) -> None:
        self._bus, self._config = bus, config
        self._lost_after_s = config.beat_s * config.missed_beats
        self.view = View(lost_after_s=self._lost_after_s, now=time.time())
        self.ticked = asyncio.Condition()
        """Notified when a version of the view has ended."""
        self._catalogue = Catalogue(bus)
        self._cards: dict[str, WorkerCard] = {}
        self._unknown: set[str] = set()
        self._relist = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        hears: list[tuple[str, Callable[[Msg], None], int]] = [
            (subjects.beat("*"), self._beat, BEATS_S),
            ("offer.>", self._offer, OFFERS_S),
            ("audit.*.*", self._transcript, AUCTIONS_S),
            (subjects.news_of("*", "*"), self._entry, ENTRIES_S),
        ]
        self._taps = [Tap(bus, subject, hear, most=most) for subject, hear, most in hears]
        self._beats = self._taps[0]

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._keep_time()),
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._meet()),
            asyncio.create_task(self._again(_COUNT_S, "streams", self._count)),
            asyncio.create_task(self._with_book()),
            asyncio.create_task(self._with_ledger()),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for tap in self._taps:
            await tap.close()

    # ------------------------------------------------------------------ what is heard

    def _beat(self, msg: Msg) -> None:
        with contextlib.suppress(ValidationError):
            beat = Beat.decode(msg.data)
            if msg.subject != subjects.beat(beat.worker):
                return
            now = time.time()
            if self.view.unknown(beat):
                card = self._cards.get(beat.worker)
                if card is None or card.instance != beat.instance:
                    self._unknown.add(beat.worker)
                    self._relist.set()
                    return
                self.view.card(card, now)
            self.view.beat(beat, now)

    def _offer(self, msg: Msg) -> None:
        with contextlib.suppress(ValidationError):
            offer = Offer.decode(msg.data)
            if msg.subject == subjects.offer(offer.capability, offer.worker):
                self.view.offer(offer)

    def _transcript(self, msg: Msg) -> None:
        with contextlib.suppress(ValidationError):
            transcript = Transcript.decode(msg.data)
            if msg.subject == subjects.audit(transcript.tenant, transcript.task):
                self.view.transcript(transcript, time.time())

    def _entry(self, msg: Msg) -> None:
        with contextlib.suppress(ValidationError):
            _, tenant, _, task, _ = msg.subject.split(".")
            self.view.entry(tenant, task, decode_entry(msg.data), time.time())

    # ------------------------------------------------------------------ what is looked up

    async def _keep_time(self) -> None:
        """Tick, for ever; and tell silence of the workers from a deafness of one's own."""
        async for deaf_s in deaf_times(self._bus, TICK_S):
            connected = self._bus.is_connected
            self.view.note("bus", None if connected else "the connection to NATS is lost; it is tried again")
            if deaf_s or self._beats.was_full:
                self.view.excuse(max(deaf_s, TICK_S))
            self.view.tick(time.time())
            async with self.ticked:
                self.ticked.notify_all()

    async def _listen(self) -> None:
        """Open the taps anew each second."""
        begun = False
        while True:
            with contextlib.suppress(nats.errors.Error, OSError, ModelnetError):
                last = 0 if begun else (await self._state("AUDIT"))["last_seq"]
                for tap in self._taps:
                    await tap.open_again()
                if not begun:
                    begun = True
                    await self._begin(last)
            await asyncio.sleep(1.0)

    async def _begin(self, last: int) -> None:
        """Learn who is there, and what happened lately: the auctions up to this one."""
        self._cards = {card.worker: card for card in await self._catalogue.cards()}
        await self._bus.publish(subjects.ROLL_CALL, RollCall().encode())
        past: list[Stored] = []
        async for stored in read_all(self._bus, "AUDIT", "audit.*.*", after=max(last - _PAST, 0)):
            if stored.sequence > last or len(past) == _PAST:
                break
            past.append(stored)
        for number, stored in enumerate(past, 1):
            with contextlib.suppress(ValidationError):
                transcript = Transcript.decode(stored.body)
                self.view.past(transcript, stored.time)
                if number > len(past) - _PAST_SHOWN:
                    self.view.show(transcript, stored.time)

    async def _meet(self) -> None:
        """Look up the cards of workers that were heard for the first time; all at once where there are many."""
        while True:
            await self._relist.wait()
            self._relist.clear()
            names, self._unknown = self._unknown, set()
            with contextlib.suppress(ModelnetError, nats.errors.Error):
                if len(names) > 8:
                    self._cards = {card.worker: card for card in await self._catalogue.cards()}
                else:
                    for name in names:
                        card = await self._catalogue.card(name)
                        if card is not None:
                            self._cards[name] = card
                if names:
                    await self._bus.publish(subjects.ROLL_CALL, RollCall().encode())
            await asyncio.sleep(_RELIST_S)

    async def _again(self, every_s: float, what: str, look: Callable[[], Awaitable[None]]) -> None:
        """Look, for ever; while that fails, say so."""
        while True:
            try:
                await look()
            except (ModelnetError, nats.errors.Error, KeyError) as error:
                self.view.note(what, str(error) or type(error).__name__)
            else:
                self.view.note(what, None)
            await asyncio.sleep(every_s)

    async def _count(self) -> None:
        tasks, audit, journal, results, letters = await asyncio.gather(
            *(self._state(name) for name in ("TASKS", "AUDIT", "JOURNAL", "RESULTS", "DLQ"))
        )
        counters = Counters(
            tasks=tasks["last_seq"],
            open=tasks["messages"],
            auctions=audit["last_seq"],
            entries=journal["last_seq"],
            events=results["last_seq"],
            dead_letters=letters["messages"],
        )
        self.view.counters(counters, time.time())
        await self._settle()

    async def _state(self, stream: str) -> dict[str, int]:
        try:
            reply = await self._bus.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=3)
        except nats.errors.Error:
            raise ConnectionFailed("the streams do not answer") from None
        answer = json.loads(reply.data)
        if "state" not in answer:
            raise ConnectionFailed("this server does not carry a modelnet network yet")
        state: dict[str, int] = answer["state"]
        return state

    async def _settle(self) -> None:
        """Ask the journal what became of tasks whose news were not heard."""
        now = time.time()
        for tenant, task in self.view.unsettled(now - _SETTLE_AFTER_S, _SETTLED_AT_ONCE):
            entries = [entry for _, entry in await read_journal(self._bus, tenant, task) if entry is not None]
            self.view.settle(tenant, task, entries[-1] if entries else None, time.time())

    async def _with_ledger(self) -> None:
        async with Ledger(self._config.redis) as ledger:

            async def look() -> None:
                books = await ledger.books()
                rows = [
                    {
                        "account": one.name,
                        "balance": one.balance,
                        "held": one.held,
                        "holds": one.holds,
                        "charged": one.metered,
                    }
                    for one in books.accounts
                ]
                self.view.accounts(rows, books.minted)

            await self._again(_REDIS_S, "ledger", look)

    async def _with_book(self) -> None:
        async with ReputationBook(self._config.redis) as book:

            async def look() -> None:
                now = time.time()
                for (worker, capability), record in (await book.of(self.view.heard_of)).items():
                    known = record.reputation.estimate(None, now)
                    self.view.record(worker, capability, known.quality, known.mean, known.cases)

            await self._again(_REDIS_S, "reputation", look)
