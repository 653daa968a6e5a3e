"""Presence: what the network can do now. The exact capabilities that a living worker serves, with their contracts, kept
current from beats: what doors list to those who come through them.

A prefix such as `normalize.>` is no capability that could be asked for by name, and is not among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import ValidationError

from modelnet.bus import subjects
from modelnet.bus.connection import unsubscribe
from modelnet.bus.hearing import deaf_times
from modelnet.client import Client
from modelnet.errors import ConnectionFailed
from modelnet.messages import Beat, Contract, RollCall, WorkerCard

__all__ = ["Presence"]

log = structlog.get_logger("presence")

PATIENCE_S = 1.0
"""While it opens: the wait for one more worker to answer the roll call."""


@dataclass(slots=True)
class _Present:
    card: WorkerCard
    seen: float


class Presence:
    """The capabilities that are served now. Opened on a client's connection: `async with Presence(net) as presence`."""

    def __init__(self, client: Client, *, patient: bool = False) -> None:
        """`patient`: where there is no network yet, nothing is served until there is one."""
        self._client, self._patient = client, patient
        self._lost_after_s = client.settings.beat_s * client.settings.missed_beats + 0.5
        self._live: dict[str, _Present] = {}
        self._known: dict[tuple[str, str], Contract] = {}
        """Contracts by capability and digest: two capabilities may have the same schemas."""
        self._served: dict[str, Contract] = {}
        self._mixed: frozenset[str] = frozenset()
        self._watchers: set[asyncio.Event] = set()
        self._met = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._sub: Subscription | None = None

    async def __aenter__(self) -> Self:
        """Learn who is there; whoever answers the roll call is known when this returns. Raises `ConnectionFailed`,
        unless it is patient."""
        try:
            await self._learn()
        except ConnectionFailed as error:
            if not self._patient:
                raise
            log.info("waiting_for_network", reason=error.message)
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def _learn(self) -> None:
        bus, catalogue = self._client.bus, self._client.catalogue
        cards = {card.worker: card for card in await catalogue.cards()}
        self._known = {(contract.capability, contract.digest): contract for contract in await catalogue.contracts()}
        self._cards = cards
        self._sub = await bus.subscribe(subjects.beat("*"), cb=self._hear)
        await bus.publish(subjects.ROLL_CALL, RollCall().encode())
        with contextlib.suppress(TimeoutError):
            while len(self._live) < len(cards):  # some may be of the dead
                self._met.clear()
                async with asyncio.timeout(PATIENCE_S):
                    await self._met.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._sub is not None:
            await unsubscribe(self._sub)

    @property
    def contracts(self) -> list[Contract]:
        """One contract for each capability that is served now, by capability: the one that most workers keep."""
        return [self._served[name] for name in sorted(self._served)]

    def contract(self, capability: str) -> Contract | None:
        """The contract that most workers keep for a capability; None if nobody serves it."""
        return self._served.get(capability)

    def pinned(self, capability: str) -> str | None:
        """The digest that a task must name to be answered under the contract shown; None where there is no other."""
        return self._served[capability].digest if capability in self._mixed else None

    async def changes(self) -> AsyncGenerator[None]:
        """One item each time that what is served has changed; changes while nobody waits are one."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                await changed.wait()
                changed.clear()
                yield
        finally:
            self._watchers.discard(changed)

    async def _hear(self, msg: Msg) -> None:
        try:
            beat = Beat.decode(msg.data)
        except ValidationError:
            return
        present = self._live.get(beat.worker)
        if beat.leaving:
            if present is not None:
                self._drop([beat.worker])
        elif present is not None and present.card.instance == beat.instance:
            present.seen = time.monotonic()
        else:
            with contextlib.suppress(ConnectionFailed):  # its next beat tries again
                await self._meet(beat)

    async def _meet(self, beat: Beat) -> None:
        """A worker that is new, or another process of its name."""
        card = self._cards.get(beat.worker)
        if card is None or card.instance != beat.instance:
            card = await self._client.catalogue.card(beat.worker)
        if card is None or card.instance != beat.instance:
            return
        for served in card.capabilities:
            key = served.pattern, served.contract
            if key not in self._known and (contract := await self._client.catalogue.contract(*key)) is not None:
                self._known[key] = contract
        self._live[beat.worker] = _Present(card, time.monotonic())
        self._met.set()
        self._recount()

    def _drop(self, workers: list[str]) -> None:
        for worker in workers:
            del self._live[worker]
        self._recount()

    async def _keep(self) -> None:
        """Drop those that fall silent. Nobody's silence counts while this process heard nobody, and after a lost
        connection all are called again."""
        reconnects = self._client.reconnects
        bus = self._client.bus
        async for deaf_s in deaf_times(bus, self._client.settings.beat_s):
            now = time.monotonic()
            if self._sub is None:
                with contextlib.suppress(ConnectionFailed):
                    await self._learn()
            elif bus.is_connected and reconnects != self._client.reconnects:
                reconnects = self._client.reconnects
                for present in self._live.values():
                    present.seen = now
                await bus.publish(subjects.ROLL_CALL, RollCall().encode())
            else:
                for present in self._live.values():
                    present.seen += deaf_s
                if lost := [name for name, one in self._live.items() if now - one.seen > self._lost_after_s]:
                    log.info("workers_lost", workers=lost)
                    self._drop(lost)

    def _recount(self) -> None:
        digests: dict[str, Counter[str]] = defaultdict(Counter)
        for present in self._live.values():
            for card in present.card.capabilities:
                if not card.pattern.endswith(">") and (card.pattern, card.contract) in self._known:
                    digests[card.pattern][card.contract] += 1
        most = {name: max(found, key=lambda digest: (found[digest], digest)) for name, found in digests.items()}
        served = {name: self._known[name, digest] for name, digest in most.items()}
        self._mixed = frozenset(name for name, found in digests.items() if len(found) > 1)
        if served != self._served:
            self._served = served
            for watcher in self._watchers:
                watcher.set()
