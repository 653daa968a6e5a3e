"""Claims: awards that may occupy a worker's slots although its bid does not know of them. Pure: times are handed in.

A bid says how many slots were free when it was made. What the worker had confirmed by the time it was asked, it knew
of; so it did of what another negotiator had told by then, who tells behind his award. All later awards count against
the free slots that were bid, so that many auctions at once send no herd to one worker.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

__all__ = ["Claims"]

Key = tuple[str, str, int]
"""Tenant, task and attempt."""


@dataclass(slots=True)
class _Claimed:
    """The awards of one worker. Each with the time until which it counts."""

    unanswered: OrderedDict[Key, float] = field(default_factory=OrderedDict)
    """Oldest first."""
    known: OrderedDict[Key, tuple[float, float]] = field(default_factory=OrderedDict)
    """With the time since when the worker knows, oldest first."""


class Claims:
    """The latest awards of each worker, this negotiator's own and those it was told of."""

    def __init__(self, most_s: float) -> None:
        """`most_s`: for so long a claim counts at most. By then the worker has shown what it runs."""
        self._most_s = most_s
        self._claimed: dict[str, _Claimed] = {}

    def add(self, worker: str, key: Key, now: float) -> None:
        """An award goes out to the worker. It counts until it is answered, and then until it is done."""
        unanswered = self._of(worker).unanswered
        _forget_past(unanswered, now)
        unanswered[key] = now + self._most_s
        unanswered.move_to_end(key)

    def confirm(self, worker: str, key: Key, now: float) -> None:
        """The worker has it."""
        if self._of(worker).unanswered.pop(key, None) is not None:
            self._know(worker, key, now + self._most_s, now)

    def hear(self, worker: str, key: Key, p90_ms: float, now: float) -> None:
        """Another negotiator's award went out to the worker a moment ago. Nobody will tell when it is done."""
        self._know(worker, key, now + min(p90_ms / 1e3, self._most_s), now)

    def drop(self, worker: str, key: Key) -> None:
        """It was declined, or is done."""
        claimed = self._claimed.get(worker)
        if claimed is not None:
            claimed.unanswered.pop(key, None)
            claimed.known.pop(key, None)

    def forget(self, worker: str) -> None:
        """The worker is gone, and all that it ran."""
        self._claimed.pop(worker, None)

    def since(self, worker: str, then: float, now: float) -> int:
        """How many count that the worker need not have known of at `then`."""
        claimed = self._claimed.get(worker)
        if claimed is None:
            return 0
        _forget_past(claimed.unanswered, now)
        count = len(claimed.unanswered)
        for at, until in reversed(claimed.known.values()):
            if at <= then:
                break
            count += until > now
        return count

    def leave_room(self, worker: str, free: int, then: float, now: float) -> bool:
        """Whether they are fewer than what the worker had free at `then`."""
        claimed = self._claimed.get(worker)
        if claimed is None or len(claimed.unanswered) + len(claimed.known) < free:
            return free > 0
        return self.since(worker, then, now) < free

    def _of(self, worker: str) -> _Claimed:
        return self._claimed.setdefault(worker, _Claimed())

    def _know(self, worker: str, key: Key, until: float, now: float) -> None:
        claimed = self._of(worker)
        known = claimed.known
        known[key] = now, until
        known.move_to_end(key)
        while next(iter(known.values()))[0] + self._most_s < now:
            known.popitem(last=False)


def _forget_past(unanswered: OrderedDict[Key, float], now: float) -> None:
    """They all count for as long, so the oldest are the first that count no more."""
    while unanswered and next(iter(unanswered.values())) <= now:
        unanswered.popitem(last=False)
