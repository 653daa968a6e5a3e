"""How long a worker's tasks take: quantiles of what it measured lately, and the wait for a slot. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence

__all__ = ["RunTimes", "wait_s"]


class RunTimes:
    """The last run times of one capability, in ms."""

    def __init__(self, expected_ms: float = 100.0, size: int = 64) -> None:
        """`expected_ms`: the median to claim before anything was measured; the 90th percentile is then 4 times it."""
        self._expected = expected_ms
        self._times: deque[float] = deque(maxlen=size)
        self._sorted: list[float] = []
        self._stale = False

    def learn(self, run_ms: float) -> None:
        """Note a completed run."""
        self._times.append(max(run_ms, 0.01))
        self._stale = True

    def quantiles(self) -> tuple[float, float]:
        """(p50, p90) in ms."""
        if not self._times:
            return self._expected, self._expected * 4
        if self._stale:
            self._sorted, self._stale = sorted(self._times), False
        last = len(self._sorted) - 1
        return self._sorted[round(last * 0.5)], self._sorted[round(last * 0.9)]


def wait_s(slots: int, ends: Sequence[float], queued: Iterable[float], now: float) -> float:
    """How long one more task is expected to wait for a slot, behind those that wait for one already.

    `ends`: when the running ones are expected to end. `queued`: how long each that waits is expected to run, in order.
    A task that should have ended a second ago is expected to need one more: who is late stays late.
    """
    if len(ends) < slots:
        return 0.0
    free = [abs(end - now) for end in ends]
    heapq.heapify(free)
    for run_s in queued:
        heapq.heapreplace(free, free[0] + run_s)
    return free[0]
