"""Scarcity: what a worker adds to its price because the same time could earn more elsewhere. Pure.

An auction of one task at a time sees no task but that one. What a slot is worth to the tasks still to come, its owner
has to say, as part of what the work costs it: that is its true price, so naming it is what the auction rewards. It
learns it as a market finds any price: up while more is asked of it than it can take, down while it is not (Walras's
tâtonnement). Tasks that are worth less than what they would displace then find no acceptable bid at once, instead of
waiting until they are late.
"""

from __future__ import annotations

__all__ = ["Scarcity"]

UP = 1.05
DOWN = 0.95
"""Factors of the charge with each request for bids, by whether the worker is full."""


class Scarcity:
    """A worker's charge for a second of its time, in micro-credits; 0 as long as it was never full."""

    def __init__(self, *, least: float, most: float) -> None:
        """`least`: the first charge when it is full. `most`: the charge never climbs higher."""
        self.charge = 0.0
        self._least, self._most = least, most

    def asked(self, *, full: bool) -> None:
        """Somebody asks for a bid."""
        if full:
            self.charge = min(max(self.charge * UP, self._least), self._most)
        elif self.charge:
            self.charge = self.charge * DOWN if self.charge > self._least / 100 else 0.0
