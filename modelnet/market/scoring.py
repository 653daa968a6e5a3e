"""What a bid is worth to a task, and what its winner is paid. Pure: numbers in, numbers out. Money in micro-credits.

For task j and bidder i, with the negotiator's own estimates of quality q_i and completion time T_i:

    V_i = v·q_i − μ·E[T_i] − L·E[(T_i − d)⁺]        S_i = V_i − p_i        win: argmax S_i ≥ S₀
    pay = max(p_w, min(reserve, V_w − max(S₀, second score)))

A second-score sealed-bid auction is a Vickrey auction on pseudo-types: naming the true price is dominant as long as the
payment rule's reserve lies above it (Che, RAND Journal of Economics 24, 1993; Asker & Cantillon, RAND 39, 2008).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist

from modelnet.messages import Bid, ScoredBid, Task

__all__ = ["SCORE_FLOOR", "Terms", "expected_times_s", "payment", "rank", "tie_break"]

SCORE_FLOOR = 0.0
"""S₀: the worth of not having the task done."""

RESERVE_MARGIN = 1.25
"""The reserve is this multiple of the capability's reference price, and the budget at most."""

_NORMAL = NormalDist()
_Z90 = _NORMAL.inv_cdf(0.9)
_NEGLIGIBLE = 9.0
"""Deviations below which a normal variable is never seen: its probability is under 2e-19."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a task's publisher wants, as numbers."""

    budget: int
    value: int
    """v: worth of a good answer, micro-credits."""
    value_of_time: float
    """μ: micro-credits per second."""
    lateness_cost: float
    """L: micro-credits per second beyond the deadline. An answer one second late is worth nothing."""
    min_quality: float
    remaining_s: float
    """d: seconds until the deadline."""

    @classmethod
    def of(cls, task: Task, remaining_s: float) -> Terms:
        """The terms of a task, defaults filled in: its value is its budget, a second costs 1 % of the value."""
        value = task.budget if task.value is None else task.value
        per_second = value / 100 if task.value_of_time is None else task.value_of_time
        return cls(task.budget, value, per_second, float(value), task.min_quality, remaining_s)


@dataclass(frozen=True, slots=True)
class Offered:
    """A bid with the negotiator's knowledge of the bidder."""

    bid: Bid
    owner: str
    quality: float
    """q: the negotiator's estimate, 0 to 1."""


def log_normal(p50_s: float, p90_s: float) -> tuple[float, float]:
    """(mean, deviation) of ln T for a log-normal T with this median and 90th percentile.

    Up to a deviation of 2 z₉₀ (p90 / p50 ≈ 27) its mean is at most p90. Beyond, as with times of two kinds, it is no
    picture of them, and its mean grows without bound: there p90 is kept and the deviation bounded, so E[T] = p90.
    """
    p90_s = max(p90_s, p50_s)
    deviation = math.log(p90_s / p50_s) / _Z90
    if deviation > 2 * _Z90:
        return math.log(p90_s) - 2 * _Z90**2, 2 * _Z90
    return math.log(p50_s), max(deviation, 1e-6)


def expected_times_s(p50_s: float, p90_s: float, deadline_s: float) -> tuple[float, float]:
    """E[T] and E[(T − d)⁺] of a log-normal time: the mean, and the value of a call option in Black and Scholes' form,
    undiscounted."""
    mean, deviation = log_normal(p50_s, p90_s)
    expected = math.exp(min(mean + deviation**2 / 2, 700.0))
    if deadline_s <= 0:
        return expected, expected - deadline_s
    above = (mean + deviation**2 - math.log(deadline_s)) / deviation
    if above < -_NEGLIGIBLE:
        return expected, 0.0
    return expected, max(expected * _NORMAL.cdf(above) - deadline_s * _NORMAL.cdf(above - deviation), 0.0)


def tie_break(task: str, worker: str) -> int:
    """Order among equal scores: by a hash of task and worker, so never by arrival."""
    return int.from_bytes(hashlib.blake2b(f"{task}\x00{worker}".encode(), digest_size=8).digest(), "big")


def score(terms: Terms, offered: Offered) -> ScoredBid:
    """The bid with its value V and score S = V − p."""
    bid = offered.bid
    time_s, late_s = expected_times_s(bid.p50_ms / 1e3, bid.p90_ms / 1e3, terms.remaining_s)
    value = terms.value * offered.quality - terms.value_of_time * time_s - terms.lateness_cost * late_s
    value = max(value, -float(2**53))
    return ScoredBid.model_construct(
        worker=bid.worker,
        owner=offered.owner,
        price=bid.price,
        p50_ms=bid.p50_ms,
        p90_ms=bid.p90_ms,
        quality=offered.quality,
        value=value,
        score=value - bid.price,
        eligible=bid.price <= terms.budget
        and offered.quality >= terms.min_quality
        and value - bid.price >= SCORE_FLOOR,
    )


def rank(task: str, terms: Terms, bids: list[Offered]) -> list[ScoredBid]:
    """All bids scored, best first; the eligible stand before the others.

    Scores are compared in whole micro-credits, the smallest sum there is: a microsecond's difference in a claimed time
    must not send every task to the same worker.
    """
    scored = [score(terms, offered) for offered in bids]
    scored.sort(key=lambda b: (not b.eligible, -round(b.score), tie_break(task, b.worker)))
    return scored


def payment(terms: Terms, winner: ScoredBid, rest: list[ScoredBid], reference_price: int | None) -> int:
    """What the winner is paid, given the bids ranked below it.

    `reference_price` is the capability's, learned without the winner's own history; without one the budget is the
    reserve. Never under the winner's own price, so taking part cannot cost it; above the reserve it is a first price.
    """
    second = max([SCORE_FLOOR, *(bid.score for bid in rest if bid.eligible)])
    reserve = terms.budget
    if reference_price is not None:
        reserve = min(reserve, math.floor(RESERVE_MARGIN * reference_price))
    return max(winner.price, min(reserve, math.floor(winner.value - second)))
