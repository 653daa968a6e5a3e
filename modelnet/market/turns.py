"""Turns: which of several negotiators goes first for a slot that has become free. Pure: times are handed in.

All of them hear a worker's offer, and all may have tasks that wait for it. If all called one, all but one would be
declined. An offer's number says who goes first; the next goes a moment later, if the slot is still free then.
"""

from __future__ import annotations

from zlib import crc32

__all__ = ["Turns"]

TURN_S = 0.01
"""What an auction takes, with some room. One who has nothing to call leaves the slot empty for so long."""

TASK_SHARE = 0.5
"""A turn is no longer than this share of what a task takes there: a short task is not worth the wait."""

REMEMBERED_S = 5.0
"""One that has awarded nothing for so long takes no turn."""


class Turns:
    """The negotiators that award, as one of them knows them."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._heard: dict[str, float] = {}

    def hear(self, negotiator: str, now: float) -> None:
        """Another has awarded something."""
        self._heard[negotiator] = now

    def wait_s(self, worker: str, number: int | None, task_s: float, now: float) -> float:
        """How long to leave a slot to others. `number`: of the worker's offer; without one all others go first."""
        if not self._heard:
            return 0.0
        self._heard = {who: at for who, at in self._heard.items() if now - at < REMEMBERED_S}
        order = sorted([*self._heard, self._me])
        turn_s = min(TURN_S, TASK_SHARE * task_s)
        if number is None:
            return (len(order) - 1) * turn_s
        return (order.index(self._me) - number - crc32(worker.encode())) % len(order) * turn_s
