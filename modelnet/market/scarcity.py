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

LEAST, MOST = 0.05, 20.0
"""The first charge of a worker that is full, and the highest: multiples of what its declared price earns in the same
time."""

MEMORY = 64
"""The last so many bids tell what the declared price earns in a second."""


class Scarcity:
    """A worker's charge for its time; 0 as long as it was never full. A task that would begin at once pays none: a free
    slot displaces nobody, and whoever comes alone after a rush must not pay for it."""

    def __init__(self) -> None:
        self.charge = 0.0
        """A multiple of what its declared price earns in the same time."""
        self._price = self._run_s = 0.0
        """Means of the declared prices and run times of its bids."""
        self._bids = 0

    def asked(self, *, full: bool) -> None:
        """Somebody asks for a bid. `full`: it can take no more."""
        if full:
            self.charge = min(max(self.charge * UP, LEAST), MOST)
        elif self.charge:
            self.charge = self.charge * DOWN if self.charge > LEAST / 100 else 0.0

    def learn(self, price: int, run_s: float) -> None:
        """Note work that a bid is made for: its declared price, and how long it is expected to hold a slot."""
        self._bids += 1
        share = 1 / min(self._bids, MEMORY)
        self._price += share * (price - self._price)
        self._run_s += share * (run_s - self._run_s)

    @property
    def per_second(self) -> float:
        """The charge for a second of a slot, in micro-credits."""
        return self.charge * self._price / self._run_s if self._run_s else 0.0

    def ask(self, price: int, run_s: float, *, waits: bool) -> int:
        """What to ask for work of this declared price and run time. `waits`: no slot is free for it now."""
        return price + int(self.per_second * run_s) if waits else price
