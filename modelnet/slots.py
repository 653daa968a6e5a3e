"""A worker's book-keeping: which attempts run, which orders are obeyed, and who is told of an end. Pure.

An order may come late, twice, or after another that takes it back. So what is known of an attempt outlives it for a
while: an attempt that has ended, or was cancelled before its award came, never begins again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from modelnet.messages import AdoptAttempt, Award

__all__ = ["Begin", "Key", "Reason", "Slots", "Stop"]

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
    """Run this award."""

    award: Award


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop an attempt: nothing it still says counts."""

    key: Key


class Slots:
    """The attempts of one worker, never more than `count` at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.draining = False
        self._running: dict[Key, tuple[str | None, str]] = {}
        """Each with its auction, and the negotiator that its end is told to; empty once it was stopped."""
        self._over: OrderedDict[tuple[str, str], int] = OrderedDict()
        """By task, the newest attempt that is over: it and older ones never begin."""

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._running)

    @property
    def free(self) -> int:
        """Awards that could be taken now."""
        return 0 if self.draining else max(self.count - len(self._running), 0)

    def refusal(self) -> Literal["draining", "busy"] | None:
        """Why no bid can be made now; None if one can."""
        if self.draining:
            return "draining"
        return "busy" if len(self._running) >= self.count else None

    def on_award(self, award: Award, *, suits: bool) -> tuple[Reason | None, list[Begin | Stop]]:
        """Why an award is declined, None if it is confirmed, and what to do. `suits`: whether the worker can do the
        task at all."""
        key = Key(award.tenant, award.task, award.attempt)
        if self._runs(key, award.auction):  # the same award again: its Confirm was lost
            self._running[key] = award.auction, award.negotiator
            return None, []
        if self._is_over(key):
            return "duplicate", []
        # Of one task only the newest attempt counts.
        older = [Stop(k) for k, (_, on) in self._running.items() if on and k[:2] == key[:2]]
        for stop in older:
            self._running[stop.key] = None, ""
        if not suits:
            return "unsupported", [*older]
        if (reason := self.refusal()) is not None:
            return reason, [*older]
        self._running[key] = award.auction, award.negotiator
        return None, [*older, Begin(award)]

    def on_adopt(self, asked: AdoptAttempt) -> Reason | None:
        """None if the attempt runs, and its end will be told to the asker; else why not."""
        key = Key(asked.tenant, asked.task, asked.attempt)
        if not self._runs(key, asked.auction):
            return "unknown"
        self._running[key] = asked.auction, asked.negotiator
        return None

    def on_cancel(self, key: Key, auction: str | None = None) -> list[Stop]:
        """Stop an attempt, if it is of this auction or none is named; one whose award has not come will not begin."""
        running, negotiator = self._running.get(key, (auction, ""))
        if auction is not None and auction != running:
            return []  # another negotiator's, of the same number
        self._remember(key)
        if not negotiator:
            return []
        self._running[key] = None, ""
        return [Stop(key)]

    def on_ended(self, key: Key) -> str | None:
        """An attempt is over and its slot free. The negotiator to tell; None if nobody wants to know."""
        _, negotiator = self._running.pop(key, (None, ""))
        self._remember(key)
        return negotiator or None

    def _runs(self, key: Key, auction: str | None) -> bool:
        found, wanted = self._running.get(key, (None, ""))
        return bool(wanted) and found == auction

    def _is_over(self, key: Key) -> bool:
        if key.attempt <= self._over.get(key[:2], 0):
            return True
        return any(k[:2] == key[:2] and k.attempt >= key.attempt for k in self._running)

    def _remember(self, key: Key) -> None:
        self._over[key[:2]] = max(key.attempt, self._over.get(key[:2], 0))
        self._over.move_to_end(key[:2])
        if len(self._over) > MEMORY:
            self._over.popitem(last=False)
