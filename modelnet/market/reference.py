"""Reference prices: what a capability usually goes for, for each bidder without its own history.

Learned from the asks that won: an ask that loses costs nothing to make, so it must not raise what another is paid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from statistics import median_low

from modelnet.messages import Bid

__all__ = ["ReferencePrices"]

_WORKERS = 64
_CAPABILITIES = 4096
_REMEMBERED = 1024


class ReferencePrices:
    """The last winning ask of each worker for each capability; bounded, the longest unused forgotten."""

    def __init__(self) -> None:
        self._asks: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()
        self._first: dict[str, int] = {}
        self._medians: dict[str, dict[str, int]] = {}
        """By capability and worker, what was worked out since its asks last changed."""

    def learn(self, capability: str, worker: str, price: int) -> None:
        """Note an ask that won."""
        asks = self._asks.setdefault(capability, OrderedDict())
        if asks.get(worker) != price:
            self._medians.pop(capability, None)
        self._first.setdefault(capability, price)
        asks[worker] = price
        asks.move_to_end(worker)
        self._asks.move_to_end(capability)
        if len(asks) > _WORKERS:
            asks.popitem(last=False)
        if len(self._asks) > _CAPABILITIES:
            forgotten, _ = self._asks.popitem(last=False)
            self._first.pop(forgotten, None)
            self._medians.pop(forgotten, None)

    def reference(self, capability: str, worker: str) -> int | None:
        """Median of the others' last winning asks; where nobody else ever won, the first ask that did.

        That first ask is the monopolist's own, but it cannot be raised afterwards. None before any.
        """
        known = self._medians.setdefault(capability, {})
        if worker in known:
            return known[worker]
        others = [price for who, price in self._asks.get(capability, {}).items() if who != worker]
        found = median_low(others) if others else self._first.get(capability)
        if found is not None and len(known) < _REMEMBERED:
            known[worker] = found
        return found

    def references(self, capability: str, bids: Iterable[Bid]) -> dict[str, int]:
        """The reference of each bidder. In a capability's first auction all that is known are the asks of that auction:
        the highest of them."""
        bids = list(bids)
        found = {bid.worker: self.reference(capability, bid.worker) for bid in bids}
        highest = max((bid.price for bid in bids), default=0)
        return {who: highest if price is None else price for who, price in found.items()}
