"""The workers of one capability in a large market: whom to ask, by their standing offers. Pure.

Where more workers could answer than one request is sent to, the best of those that may have room are asked, and a few
of the others. Who refuses because it is full is left out until it says that it has room again.
"""

from __future__ import annotations

from modelnet.messages import DEFAULT_BUDGET, DEFAULT_DEADLINE_S, Offer

from .exploration import BOUND_ASKED, Standing, places
from .scoring import Terms, value_of

__all__ = ["Shortlist", "standing_worth"]

TYPICAL = Terms(DEFAULT_BUDGET, DEFAULT_BUDGET, DEFAULT_BUDGET / (2 * DEFAULT_DEADLINE_S), 0.0, DEFAULT_DEADLINE_S)
"""The task that standing offers are compared by."""

UNKNOWN_PRICE = DEFAULT_BUDGET // 2
"""A worker that names its price task by task is reckoned with this."""


def standing_worth(offer: Offer | None, quality: float) -> float:
    """The score V - p of an offer for a typical task, in micro-credits; 0 for a worker that has made none yet."""
    if offer is None:
        return 0.0
    price = UNKNOWN_PRICE if offer.price is None else offer.price
    return value_of(TYPICAL, quality, offer.p50_ms, offer.p90_ms) - price


class Shortlist:
    """All that serve the capability, and in order those that may have room."""

    def __init__(self) -> None:
        self._worth: dict[str, float] = {}
        self._free = Standing()

    @property
    def is_needed(self) -> bool:
        """Whether there are more than can be asked."""
        return len(self._worth) > BOUND_ASKED

    def put(self, worker: str, worth: float, *, has_room: bool) -> None:
        """Note what a worker offers."""
        self._worth[worker] = worth
        if has_room:
            self._free.put(worker, worth)
        else:
            self._free.drop(worker)

    def room(self, worker: str, has_room: bool) -> None:
        """Note whether a worker has room, if it serves the capability."""
        if worker in self._worth:
            self.put(worker, self._worth[worker], has_room=has_room)

    def drop(self, worker: str) -> None:
        """Forget a worker that is gone."""
        self._worth.pop(worker, None)
        self._free.drop(worker)

    def draw(self, auction: str) -> list[str]:
        """Whom to ask, of those that may have room."""
        return self._free.shortlist(auction)

    def choose(self, auction: str, workers: list[str]) -> list[str]:
        """Whom to ask of these, whether they have room or not."""
        if len(workers) <= BOUND_ASKED:
            return workers
        order = sorted(workers, key=lambda worker: (-self._worth.get(worker, 0.0), worker))
        return [order[place] for place in places(auction, len(order))]
