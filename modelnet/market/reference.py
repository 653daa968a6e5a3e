"""Reference prices: what a capability usually costs, learned from asks, for each bidder without its own history."""

from __future__ import annotations

from collections import OrderedDict
from statistics import median_low

__all__ = ["ReferencePrices"]

_WORKERS = 64
_CAPABILITIES = 4096


class ReferencePrices:
    """The last ask of each worker for each capability; bounded, the longest unused forgotten."""

    def __init__(self) -> None:
        self._asks: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()
        self._first: dict[str, int] = {}

    def learn(self, capability: str, worker: str, price: int) -> None:
        """Note an ask."""
        asks = self._asks.setdefault(capability, OrderedDict())
        self._first.setdefault(capability, price)
        asks[worker] = price
        asks.move_to_end(worker)
        self._asks.move_to_end(capability)
        if len(asks) > _WORKERS:
            asks.popitem(last=False)
        if len(self._asks) > _CAPABILITIES:
            forgotten, _ = self._asks.popitem(last=False)
            self._first.pop(forgotten, None)

    def reference(self, capability: str, worker: str) -> int | None:
        """Median of the others' last asks; for a capability that nobody else serves, the first ask ever seen.

        That first ask is the monopolist's own, but it cannot be raised afterwards. None before any ask.
        """
        others = [price for who, price in self._asks.get(capability, {}).items() if who != worker]
        return median_low(others) if others else self._first.get(capability)
