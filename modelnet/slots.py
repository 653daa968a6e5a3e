"""A worker's book-keeping: which attempts run, which wait for a slot, which orders are obeyed, and who is told of an
end. Pure.

An order may come late, twice, or after another that takes it back. So what is known of an attempt outlives it for a
while: an attempt that has ended, or was cancelled before its award came, never begins again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from modelnet.estimates import wait_s
from modelnet.messages import AdoptAttempt, Award

__all__ = ["Begin", "GiveUp", "Key", "Order", "Reason", "Slots", "Stop"]

Reason = Literal["busy", "draining", "unsupported", "duplicate", "unknown"]

MEMORY = 4096
"""Tasks whose ended attempts are remembered."""


class Key(NamedTuple):
    """Names an attempt."""

    tenant: str
    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Run this award; what remains of its time is as of now."""

    award: Award


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop an attempt: nothing it still says counts."""

    key: Key


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell that an attempt ended before it began."""

    award: Award
    negotiator: str
    """Who wants to know."""
    why: Literal["expired", "leaving"]


Order = Begin | Stop | GiveUp


@dataclass(slots=True)
class _InHand:
    """One attempt, until its end is known."""

    award: Award
    negotiator: str
    """Who is told of its end; empty once it was stopped."""
    until: float
    """Its deadline."""
    run_s: float
    """Its expected run time."""
    begun_at: float | None = None
    """None while it waits for a slot."""

    @property
    def key(self) -> Key:
        return Key(self.award.tenant, self.award.task, self.award.attempt)


class Slots:
    """The attempts of one worker: never more than `count` run at once, and up to `backlog` more wait their turn."""

    def __init__(self, count: int, backlog: int = 0) -> None:
        self.count, self.backlog = count, backlog
        self.draining = False
        self._in_hand: dict[Key, _InHand] = {}
        """All, those that wait too."""
        self._queue: dict[Key, _InHand] = {}
        """Those of them that wait, in order."""
        self._over: OrderedDict[tuple[str, str], int] = OrderedDict()
        """By task, the newest attempt that is over: it and older ones never begin."""

    def __len__(self) -> int:
        return len(self._in_hand)

    def __iter__(self) -> Iterator[Key]:
        """All in hand, those that wait too."""
        return iter(self._in_hand)

    @property
    def free(self) -> int:
        """Awards that could be taken now."""
        return 0 if self.draining else max(self.count + self.backlog - len(self._in_hand), 0)

    @property
    def taken(self) -> bool:
        """Whether one more award would have to wait."""
        return len(self._in_hand) >= self.count

    def refusal(self) -> Literal["draining", "busy"] | None:
        """Why no bid can be made now; None if one can."""
        if self.draining:
            return "draining"
        return None if self.free else "busy"

    def wait_s(self, now: float) -> float:
        """How long one more award is expected to wait until it begins."""
        if not self.taken:
            return 0.0
        ends = [
            one.begun_at + one.run_s if one.negotiator else now
            for one in self._in_hand.values()
            if one.begun_at is not None
        ]
        return wait_s(self.count, ends, [one.run_s for one in self._queue.values()], now)

    def on_award(
        self, award: Award, *, suits: bool, now: float, run_s: float, ready: bool = True
    ) -> tuple[Reason | None, list[Order]]:
        """Why an award is declined, None if it is confirmed, and what to do. `suits`: whether the worker can do the
        task at all; `ready`: now. `run_s`: how long it is expected to run."""
        key = Key(award.tenant, award.task, award.attempt)
        if (same := self._wanted(key, award.auction)) is not None:  # the same award again: its Confirm was lost
            same.negotiator = award.negotiator
            return None, []
        if self._is_over(key):
            return "duplicate", []
        # Of one task only the newest attempt counts.
        orders = [order for one in self._of_task(key) for order in self._stop(one)]
        if not suits:
            return "unsupported", orders
        if (reason := self.refusal() or (None if ready else "busy")) is not None:
            return reason, orders
        self._in_hand[key] = one = _InHand(award, award.negotiator, now + award.remaining_ms / 1e3, run_s)
        if len(self._in_hand) - len(self._queue) > self.count:
            self._queue[key] = one
            return None, orders
        one.begun_at = now
        return None, [*orders, Begin(award)]

    def on_adopt(self, asked: AdoptAttempt) -> Reason | None:
        """None if the attempt is in hand, and its end will be told to the asker; else why not."""
        found = self._wanted(Key(asked.tenant, asked.task, asked.attempt), asked.auction)
        if found is None:
            return "unknown"
        found.negotiator = asked.negotiator
        return None

    def on_cancel(self, key: Key, auction: str | None = None) -> list[Order]:
        """Stop an attempt, if it is of this auction or none is named; one whose award has not come will not begin."""
        found = self._in_hand.get(key)
        if found is not None and auction not in (None, found.award.auction):
            return []  # another negotiator's, of the same number
        self._remember(key)
        return self._stop(found) if found is not None else []

    def on_ended(self, key: Key, now: float) -> tuple[str | None, list[Order]]:
        """An attempt is over and its slot free. The negotiator to tell, None if nobody wants to know, and who is
        next."""
        found = self._in_hand.pop(key, None)
        self._remember(key)
        return (found.negotiator or None, self._next(now)) if found is not None else (None, [])

    def overdue(self, now: float) -> list[Order]:
        """Those whose time has run out while they waited."""
        return [self._give_up(one, "expired") for one in list(self._queue.values()) if one.until <= now]

    def drain(self) -> list[Order]:
        """Take nothing more, and hand on what waits: others can begin it sooner."""
        self.draining = True
        return [self._give_up(one, "leaving") for one in list(self._queue.values())]

    def _next(self, now: float) -> list[Order]:
        """Fill the free slots from those that wait, in order."""
        orders = self.overdue(now)
        while self._queue and len(self._in_hand) - len(self._queue) < self.count:
            one = self._queue.pop(next(iter(self._queue)))
            one.begun_at = now
            orders.append(Begin(one.award.model_copy(update={"remaining_ms": (one.until - now) * 1e3})))
        return orders

    def _stop(self, one: _InHand) -> list[Order]:
        if one.key in self._queue:
            self._drop(one)
            return []
        wanted, one.negotiator = one.negotiator, ""
        return [Stop(one.key)] if wanted else []

    def _give_up(self, one: _InHand, why: Literal["expired", "leaving"]) -> Order:
        self._drop(one)
        return GiveUp(one.award, one.negotiator, why)

    def _drop(self, one: _InHand) -> None:
        del self._in_hand[one.key], self._queue[one.key]
        self._remember(one.key)

    def _wanted(self, key: Key, auction: str | None) -> _InHand | None:
        found = self._in_hand.get(key)
        return found if found is not None and found.negotiator and found.award.auction == auction else None

    def _of_task(self, key: Key) -> list[_InHand]:
        return [one for k, one in self._in_hand.items() if k[:2] == key[:2]]

    def _is_over(self, key: Key) -> bool:
        if key.attempt <= self._over.get(key[:2], 0):
            return True
        return any(one.key.attempt >= key.attempt for one in self._of_task(key))

    def _remember(self, key: Key) -> None:
        self._over[key[:2]] = max(key.attempt, self._over.get(key[:2], 0))
        self._over.move_to_end(key[:2])
        if len(self._over) > MEMORY:
            self._over.popitem(last=False)
