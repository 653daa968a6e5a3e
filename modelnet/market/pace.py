"""How fast tasks come back that nobody can take now: bounded in all, and never past a task's deadline. Pure."""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """Spreads the tasks that are given back to the stream over the time to come."""

    def __init__(self, *, least_s: float, rate: float) -> None:
        """`least_s`: the shortest pause. `rate`: tasks that come back each second, at least."""
        self._least_s, self._least_rate = least_s, rate
        self._rate = rate
        self._next = 0.0

    def delay(self, now: float, remaining_s: float) -> float:
        """Seconds until a task comes back that has so long to live."""
        at = max(now + self._least_s, self._next)
        self._next = at + 1 / self._rate
        return min(at - now, max(remaining_s, 0.0) + self._least_s)

    def worked_off(self, per_second: float) -> None:
        """So many tasks are finished each second: more than that must come back."""
        self._rate = max(self._least_rate, 2 * per_second)
