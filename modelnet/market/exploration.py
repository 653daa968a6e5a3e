"""Exploration: how newcomers get tasks although the market reckons with the lower bound of what is known. Pure.

A small share of the auctions goes to a newcomer at a posted price, so that learning cannot be priced. Who is tried is
drawn by Thompson sampling: each newcomer's quality is drawn from its posterior and the best draw is tried (Thompson,
Biometrika 25, 1933; Chapelle & Li, NIPS 2011). An owner's share is bounded however many identities it has. All chance
is a hash of the auction's id, which the negotiator makes and neither bidder nor publisher can choose: a transcript
recomputes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from modelnet.messages import ScoredBid

from .reputation import BOUND, ESTABLISHED
from .scoring import SCORE_FLOOR, Terms, uniform, value_of

__all__ = ["OWNER_SHARE", "SHARE", "Standing", "pick", "places"]

SHARE = 0.05
"""Of the auctions that an established worker would win, those in which a newcomer is tried."""

OWNER_SHARE = 0.02
"""The same for the newcomers of one owner."""

BOUND_ASKED = 32
"""Most workers that one request is sent to."""

EXPLORED = 4
"""Of them, those that are drawn from all others."""

_NORMAL = NormalDist()
_Z = -_NORMAL.inv_cdf(BOUND)


def pick(auction: str, terms: Terms, ranking: Sequence[ScoredBid], posted: Mapping[str, int]) -> ScoredBid | None:
    """The newcomer that this auction is given to instead of the best bid, if it is one to explore in.

    `posted`: the price that each would be paid, which is the capability's reference price without its own history.
    None where the best bid is a newcomer's itself, or where there is no newcomer that would be worth the price.
    """
    if not ranking or not ranking[0].eligible or ranking[0].cases < ESTABLISHED:
        return None
    if uniform("explore", auction) >= SHARE:
        return None
    best, drawn = None, SCORE_FLOOR
    for bid in ranking:
        price = posted.get(bid.worker)
        if bid.cases >= ESTABLISHED or price is None or not bid.price <= price <= terms.budget:
            continue
        if bid.mean < terms.min_quality or uniform("owner", auction, bid.owner) >= OWNER_SHARE / SHARE:
            continue
        chance = min(max(uniform("quality", auction, bid.worker), 1e-9), 1 - 1e-9)
        deviation = (bid.mean - bid.quality) / _Z
        quality = min(max(bid.mean + deviation * _NORMAL.inv_cdf(chance), 0.0), 1.0)
        score = value_of(terms, quality, bid.expected_p50_ms or bid.p50_ms, bid.expected_p90_ms or bid.p90_ms) - price
        if score > drawn:
            best, drawn = bid, score
    return best


def places(auction: str, count: int, *, most: int = BOUND_ASKED, explored: int = EXPLORED) -> list[int]:
    """Which of `count` workers to ask, who stand in order of their standing offers, where more could answer than can be
    asked: the first, and some drawn from the others. The cost does not grow with the number of workers."""
    if count <= most:
        return list(range(count))
    best = most - explored
    others = count - best
    # Floyd's sample without replacement (Bentley & Floyd, CACM 30, 1987): each set is equally likely.
    chosen: dict[int, None] = {}
    for last in range(others - explored, others):
        drawn = int(uniform("ask", auction, str(last)) * (last + 1))
        chosen[last if drawn in chosen else drawn] = None
    return [*range(best), *(best + index for index in chosen)]


class Standing:
    """The workers of one capability in order of what their standing offers are worth to a typical task, best first."""

    def __init__(self) -> None:
        self._order: list[tuple[float, str]] = []
        self._worth: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._order)

    def put(self, worker: str, worth: float) -> None:
        """Note a worker's offer: its score V - p for a typical task, in micro-credits. The last one counts."""
        if self._worth.get(worker) == -worth:
            return
        self.drop(worker)
        self._worth[worker] = -worth
        insort(self._order, (-worth, worker))

    def drop(self, worker: str) -> None:
        """Forget a worker that left or has no free slot."""
        worth = self._worth.pop(worker, None)
        if worth is not None:
            del self._order[bisect_left(self._order, (worth, worker))]

    def shortlist(self, auction: str, *, most: int = BOUND_ASKED, explored: int = EXPLORED) -> list[str]:
        """Whom to ask."""
        order = self._order
        return [order[place][1] for place in places(auction, len(order), most=most, explored=explored)]
