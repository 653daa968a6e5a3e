"""How long a worker's tasks take: quantiles of what it measured lately, the wait for a slot, and how good what it said
of them was. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["Accuracy", "Forecast", "RunTimes", "quantile", "wait_s"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long one task is expected to take, in ms, from when it begins."""

    p50_ms: float
    p90_ms: float
    first_ms: float | None = None
    """Median of the time to its first text; None where that is not known."""
    first_p90_ms: float | None = None

    def after(self, wait_ms: float) -> Self:
        """Of the same task, told of when it has so much longer to wait."""
        first_ms, first_p90_ms = self.first_after(wait_ms)
        late = {"first_ms": first_ms, "first_p90_ms": first_p90_ms}
        return replace(self, p50_ms=self.p50_ms + wait_ms, p90_ms=self.p90_ms + wait_ms, **late)

    def first_after(self, wait_ms: float) -> tuple[float | None, float | None]:
        """Median and 90th percentile of the time to the first text, if it begins so much later."""
        if self.first_ms is None:
            return None, None
        return wait_ms + self.first_ms, wait_ms + max(self.first_p90_ms or 0.0, self.first_ms)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the values is; they are in order, and there is at least one."""
    return ordered[round((len(ordered) - 1) * share)]


class Accuracy:
    """What was said of times, against what they came to be."""

    def __init__(self, size: int = 1024) -> None:
        self.count = 0
        self._covered = 0
        self._errors: deque[float] = deque(maxlen=size)

    def note(self, p50_ms: float, p90_ms: float, actual_ms: float) -> None:
        """One more task."""
        self.count += 1
        self._covered += actual_ms <= p90_ms
        self._errors.append(abs(actual_ms / max(p50_ms, 1e-3) - 1))

    @property
    def coverage(self) -> float | None:
        """Share of tasks within their 90th percentile: near 0.9 if it is right. None before the first."""
        return self._covered / self.count if self.count else None

    @property
    def median_error(self) -> float | None:
        """Median of |actual / predicted median - 1| over the last tasks. None before the first."""
        return quantile(sorted(self._errors), 0.5) if self._errors else None


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
        return quantile(self._sorted, 0.5), quantile(self._sorted, 0.9)


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
