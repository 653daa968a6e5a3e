"""How long a capability's tasks take on this worker: quantiles of what it measured lately."""

from __future__ import annotations

from collections import deque

__all__ = ["RunTimes"]


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
