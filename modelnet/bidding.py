"""How a worker answers calls for proposals: price, time, or why not. Pure: times are handed in."""

from __future__ import annotations

from collections import OrderedDict

from modelnet.capability import Made, Served
from modelnet.market.scarcity import Scarcity
from modelnet.messages import Award, Bid, BidRequest, Offer, Refusal
from modelnet.slots import Slots

__all__ = ["Bidding"]

REMEMBERED = 4096
"""Bids that are remembered, for their awards."""


class Bidding:
    """The bids of one worker."""

    def __init__(self, slots: Slots, scarcity: Scarcity | None = None) -> None:
        """`scarcity`: what it asks beyond the declared price; None: nothing."""
        self._slots, self._scarcity = slots, scarcity
        self._made: OrderedDict[str, Made] = OrderedDict()
        """By auction."""

    def answer(self, worker: str, request: BidRequest, served: Served, now: float) -> Bid | Refusal:
        """The bid of `worker`, this one's id now, or why it makes none."""
        reply = self._answer(worker, request, served, now)
        served.statistics.count("bids" if isinstance(reply, Bid) else "refusals")
        return reply

    def _answer(self, worker: str, request: BidRequest, served: Served, now: float) -> Bid | Refusal:
        reason = self._slots.refusal()
        if self._scarcity is not None and reason != "draining":
            self._scarcity.asked(full=reason == "busy")
        if reason is not None:
            return Refusal(auction=request.auction, worker=worker, reason=reason)
        if not served.can(request.features):
            return Refusal(auction=request.auction, worker=worker, reason="unsupported")
        if not served.is_ready(request.features):
            return Refusal(auction=request.auction, worker=worker, reason="busy")
        price = served.quote(request.features)
        if price is None:
            return Refusal(auction=request.auction, worker=worker, reason="cannot_price")
        forecast = served.expect(request.features)
        p50_ms, p90_ms = forecast.p50_ms, forecast.p90_ms
        self._made[request.auction] = Made(request.features, forecast)
        if len(self._made) > REMEMBERED:
            self._made.popitem(last=False)
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
            first_ms=forecast.first_after(wait_ms)[0],
            first_p90_ms=forecast.first_after(wait_ms)[1],
            free=self._slots.free,
            deposit=served.deposit,
        )

    def offer(self, worker: str, served: Served, number: int, now: float) -> Offer:
        """Its standing offer for a typical task, the worker's `number`th."""
        price, wait_ms = served.card.price, self._slots.wait_s(now) * 1e3
        forecast = served.typical()
        p50_ms, p90_ms = forecast.p50_ms, forecast.p90_ms
        if self._scarcity is not None and price is not None:
            price = self._scarcity.ask(price, p50_ms / 1e3, waits=self._slots.taken)
        return Offer(
            worker=worker,
            capability=served.card.pattern,
            price=price,
            p50_ms=wait_ms + p50_ms,
            p90_ms=wait_ms + max(p90_ms, p50_ms),
            first_ms=forecast.first_after(wait_ms)[0],
            first_p90_ms=forecast.first_after(wait_ms)[1],
            free=self._slots.free,
            number=number,
        )

    def made(self, award: Award) -> Made | None:
        """What the bid that won this award was made of; None for a standing offer, or one long past."""
        return self._made.get(award.auction)

    def run_s(self, award: Award, served: Served) -> float:
        """How long an award is expected to run: as its bid had it."""
        made = self.made(award)
        return (served.times.quantiles()[0] if made is None else made.forecast.p50_ms) / 1e3
