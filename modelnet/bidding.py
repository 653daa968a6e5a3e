"""How a worker answers calls for proposals: price, time, or why not. Pure: times are handed in."""

from __future__ import annotations

from collections import OrderedDict

from modelnet.capability import Served
from modelnet.market.scarcity import Scarcity
from modelnet.messages import Award, Bid, BidRequest, Offer, Refusal
from modelnet.slots import Slots

__all__ = ["Bidding"]

REMEMBERED = 4096
"""Bids whose run times are remembered until their award comes."""


class Bidding:
    """The bids of one worker."""

    def __init__(self, slots: Slots, scarcity: Scarcity | None = None) -> None:
        """`scarcity`: what it asks beyond the declared price; None: nothing."""
        self._slots, self._scarcity = slots, scarcity
        self._run_s: OrderedDict[str, float] = OrderedDict()
        """By auction: how long its task was expected to run."""

    def answer(self, worker: str, request: BidRequest, served: Served, now: float) -> Bid | Refusal:
        """The bid of `worker`, this one's id now, or why it makes none."""
        reason = self._slots.refusal()
        if self._scarcity is not None and reason != "draining":
            self._scarcity.asked(full=reason == "busy")
        if reason is not None:
            return Refusal(auction=request.auction, worker=worker, reason=reason)
        if not served.can(request.features):
            return Refusal(auction=request.auction, worker=worker, reason="unsupported")
        price = served.quote(request.features)
        if price is None:
            return Refusal(auction=request.auction, worker=worker, reason="cannot_price")
        p50_ms, p90_ms = served.expect(request.features)
        self._run_s[request.auction] = p50_ms / 1e3
        if len(self._run_s) > REMEMBERED:
            self._run_s.popitem(last=False)
        if self._scarcity is not None:
            self._scarcity.learn(price, p50_ms / 1e3)
            price = self._scarcity.ask(price, p50_ms / 1e3, waits=self._slots.taken)
        wait_ms = self._slots.wait_s(now) * 1e3
        return Bid.model_construct(
            auction=request.auction,
            worker=worker,
            price=price,
            p50_ms=wait_ms + p50_ms,
            p90_ms=wait_ms + max(p90_ms, p50_ms),
            wait_ms=wait_ms,
            free=self._slots.free,
            deposit=served.deposit,
        )

    def offer(self, worker: str, served: Served, number: int, now: float) -> Offer:
        """Its standing offer for a typical task, the worker's `number`th."""
        price, wait_ms = served.card.price, self._slots.wait_s(now) * 1e3
        p50_ms, p90_ms = served.times.quantiles()
        if self._scarcity is not None and price is not None:
            price = self._scarcity.ask(price, p50_ms / 1e3, waits=self._slots.taken)
        return Offer(
            worker=worker,
            capability=served.card.pattern,
            price=price,
            p50_ms=wait_ms + p50_ms,
            p90_ms=wait_ms + p90_ms,
            free=self._slots.free,
            number=number,
        )

    def run_s(self, award: Award, served: Served) -> float:
        """How long an award is expected to run: as its bid had it."""
        found = self._run_s.pop(award.auction, None)
        return served.times.quantiles()[0] / 1e3 if found is None else found
