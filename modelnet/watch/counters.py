"""Counters of the streams, and rates that follow from them: exact, however few of the messages were heard."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["Counters", "Rates"]

_OVER_S = 5.0


class Counters(NamedTuple):
    """What the streams say of themselves at one moment."""

    tasks: int
    """Tasks ever published; readiness probes that are stored count too."""
    open: int
    """Tasks without a Final."""
    auctions: int
    """Auctions ever held."""
    entries: int
    """Journal entries ever written."""
    events: int
    """Result events ever published."""
    dead_letters: int
    """Dead letters that lie there."""


class Rates:
    """Growth of the counters over the last seconds. Times are of one clock, in seconds."""

    def __init__(self, over_s: float = _OVER_S) -> None:
        self._over_s = over_s
        self._read: deque[tuple[float, Counters]] = deque()

    @property
    def last(self) -> Counters | None:
        """As they were read last."""
        return self._read[-1][1] if self._read else None

    def read(self, counters: Counters, now: float) -> None:
        """Note counters. Ones that have gone back are a new network's."""
        last = self.last
        if last is not None and any(getattr(counters, name) < getattr(last, name) for name in _GROWING):
            self._read.clear()
        self._read.append((now, counters))
        while len(self._read) > 2 and self._read[1][0] <= now - self._over_s:
            self._read.popleft()

    def grown(self, name: str) -> tuple[int, float]:
        """By how much a counter has grown, and over how many seconds; (0, 0.0) if that is not known yet."""
        if len(self._read) < 2:
            return 0, 0.0
        (since, first), (until, last) = self._read[0], self._read[-1]
        return getattr(last, name) - getattr(first, name), until - since

    def per_second(self, name: str) -> float | None:
        """Its rate; None if that is not known yet."""
        grown, seconds = self.grown(name)
        return grown / seconds if seconds > 0 else None


_GROWING = ("tasks", "auctions", "entries", "events")
