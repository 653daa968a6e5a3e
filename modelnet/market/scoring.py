"""What a bid is worth to a task, and what its winner is paid. Pure: numbers in, numbers out. Money in micro-credits.

For task j and bidder i, with the negotiator's own estimates of quality q_i and completion time T_i:

    V_i = v·q_i·P(T_i ≤ d) − μ·E[min(T_i, d)]        S_i = V_i − p_i        win: argmax S_i ≥ S₀
    pay = max(p_w, min(reserve, V_w − max(S₀, second score)))

An answer is worth v if it is good and in time; each second until it, or until the task ends at its deadline d, costs μ.

A second-score sealed-bid auction is a Vickrey auction on pseudo-types: naming the true price is dominant as long as the
reserve does not bind (Che, RAND Journal of Economics 24, 1993; Asker & Cantillon, RAND 39, 2008). The budget is a
reserve that may bind: a bid above it is refused. What else bounds the pay of a bidder without competition is the
capability's reference price; there the winner that asks more is paid what it asks, a first price. So it applies only
where no established worker of another owner stands behind the winner: real competition sets the price alone, and a
false identity without a history, which costs nothing to make, lifts nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from itertools import groupby
from statistics import NormalDist
from typing import NamedTuple

from modelnet.messages import Bid, ScoredBid, Task

from .reputation import ESTABLISHED

__all__ = [
    "SCORE_FLOOR",
    "Offered",
    "Terms",
    "believable",
    "chance_and_time_s",
    "contested",
    "median_run_ms",
    "most_settled",
    "part_payment",
    "payment",
    "rank",
    "second_score",
    "settled_payment",
    "tie_break",
    "uniform",
    "value_of",
]

SCORE_FLOOR = 0.0
"""S₀: the worth of not having the task done."""

RESERVE_MARGIN = 1.25
"""The reserve is this multiple of the capability's reference price, and the budget at most."""

_Z90 = NormalDist().inv_cdf(0.9)
_ROOT_HALF = math.sqrt(0.5)
_NEGLIGIBLE = 9.0
"""Deviations below which a normal variable is never seen: its probability is under 2e-19."""


class Terms(NamedTuple):
    """What a task's publisher wants, as numbers."""

    budget: int
    value: int
    """v: worth of a good answer, micro-credits."""
    value_of_time: float
    """μ: micro-credits per second."""
    min_quality: float
    remaining_s: float
    """d: seconds until the deadline. Last, so that all before it are `wants`."""

    @property
    def wants(self) -> tuple[float, ...]:
        """The terms but for the time that remains."""
        return self[:-1]

    @classmethod
    def of(cls, task: Task, remaining_s: float) -> Terms:
        """The terms of a task, defaults filled in: its value is its budget, half of which is lost by the deadline."""
        value = task.budget if task.value is None else task.value
        per_second = value / (2 * task.deadline_s) if task.value_of_time is None else task.value_of_time
        return cls(task.budget, value, per_second, task.min_quality, remaining_s)


class _Scored(NamedTuple):
    """How a bid was scored."""

    wants: tuple[float, ...]
    """The task's."""
    enough_s: float
    """Time from which on it is in time for sure: then how much remains makes no difference."""
    bid: ScoredBid


@dataclass(slots=True, eq=False)
class Offered:
    """A bid with the negotiator's knowledge of the bidder."""

    bid: Bid
    owner: str
    quality: float
    """q: the negotiator's estimate, 0 to 1: a lower credible bound."""
    mean_quality: float | None = None
    """Mean of that estimate; None: the bound is all that is known."""
    cases: float = 0.0
    """Decayed outcomes behind it."""
    times_ms: tuple[float, float] | None = None
    """The bid's median and 90th percentile as corrected; None: as claimed."""
    scored: _Scored | None = field(default=None, init=False)
    """How it was last scored for a task with time enough: what stands for task after task is mostly asked for the
    same."""


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


def chance_and_time_s(p50_s: float, p90_s: float, deadline_s: float) -> tuple[float, float]:
    """P(T ≤ d) and E[min(T, d)] of a log-normal time, the latter in the form of Black and Scholes."""
    if deadline_s <= 0:
        return 0.0, 0.0
    mean, deviation = log_normal(p50_s, p90_s)
    z = (math.log(deadline_s) - mean) / deviation
    if z > _NEGLIGIBLE + deviation:
        return 1.0, math.exp(mean + deviation**2 / 2)
    chance, within = _normal(z), _normal(z - deviation)
    before = math.exp(min(mean + deviation**2 / 2, 700.0)) * within if within else 0.0
    return chance, min(before, deadline_s * chance) + deadline_s * (1 - chance)


def _enough_s(p50_s: float, p90_s: float) -> float:
    """Deadline from which on `chance_and_time_s` is the same for all."""
    mean, deviation = log_normal(p50_s, p90_s)
    return math.exp(min(mean + deviation * (_NEGLIGIBLE + deviation), 700.0)) * (1 + 1e-9)


def _normal(z: float) -> float:
    """Distribution function of the standard normal."""
    return 0.5 * math.erfc(-z * _ROOT_HALF)


def tie_break(task: str, worker: str) -> int:
    """Order among equal scores: by a hash of task and worker, so never by arrival."""
    return int.from_bytes(hashlib.blake2b(f"{task}\x00{worker}".encode(), digest_size=8).digest(), "big")


def uniform(*about: str) -> float:
    """A number in [0, 1) drawn from a hash of what it is about: chance that anybody can recompute."""
    drawn = hashlib.blake2b("\x00".join(about).encode(), digest_size=8).digest()
    return (int.from_bytes(drawn, "big") >> 11) / 2**53


def value_of(terms: Terms, quality: float, p50_ms: float, p90_ms: float) -> float:
    """V: what an answer of this quality and time is worth, price aside."""
    in_time, time_s = chance_and_time_s(p50_ms / 1e3, p90_ms / 1e3, terms.remaining_s)
    return terms.value * quality * in_time - terms.value_of_time * time_s


def score(terms: Terms, offered: Offered) -> ScoredBid:
    """The bid with its value V and score S = V − p."""
    before, wants = offered.scored, terms.wants
    if before is not None and before.wants == wants and before.enough_s <= terms.remaining_s:
        return before.bid
    bid, times = offered.bid, offered.times_ms or (offered.bid.p50_ms, offered.bid.p90_ms)
    mean = offered.quality if offered.mean_quality is None else offered.mean_quality
    value = value_of(terms, offered.quality, *times)
    total = value - bid.price
    scored = ScoredBid.model_construct(
        worker=bid.worker,
        owner=offered.owner,
        price=bid.price,
        p50_ms=bid.p50_ms,
        p90_ms=bid.p90_ms,
        expected_p50_ms=times[0],
        expected_p90_ms=times[1],
        quality=offered.quality,
        mean_quality=mean,
        cases=offered.cases,
        wait_ms=bid.wait_ms,
        first_ms=bid.first_ms,
        first_p90_ms=bid.first_p90_ms,
        deposit=bid.deposit,
        value=value,
        score=total,
        eligible=bid.price <= terms.budget and mean >= terms.min_quality and total >= SCORE_FLOOR,
    )
    if (enough_s := _enough_s(times[0] / 1e3, times[1] / 1e3)) <= terms.remaining_s:
        offered.scored = _Scored(wants, enough_s, scored)
    return scored


def rank(task: str, terms: Terms, bids: list[Offered]) -> list[ScoredBid]:
    """All bids scored, best first; the eligible stand before the others.

    Scores are compared in whole micro-credits, the smallest sum there is: a microsecond's difference in a claimed time
    must not send every task to the same worker.
    """

    def place(bid: ScoredBid) -> tuple[bool, int]:
        return not bid.eligible, -round(bid.score)

    ranking: list[ScoredBid] = []
    for _, group in groupby(sorted((score(terms, offered) for offered in bids), key=place), key=place):
        equals = list(group)
        if len(equals) > 1:
            equals.sort(key=lambda bid: tie_break(task, bid.worker))
        ranking += equals
    return ranking


def believable(terms: Terms, bids: list[ScoredBid]) -> list[ScoredBid]:
    """Those whose claimed times would make them worth their price, the best of them first; `bids` are ranked."""

    def claimed(bid: ScoredBid) -> float:
        return value_of(terms, bid.quality, bid.p50_ms, max(bid.p90_ms, bid.p50_ms)) - bid.price

    found = [bid for bid in bids if bid.price <= terms.budget and bid.mean >= terms.min_quality]
    return sorted((bid for bid in found if claimed(bid) >= SCORE_FLOOR), key=lambda bid: -round(claimed(bid)))


def contested(winner: ScoredBid, rest: list[ScoredBid]) -> bool:
    """Whether an established worker of another owner stands behind the winner with an acceptable bid."""
    return any(bid.eligible and bid.cases >= ESTABLISHED and bid.owner != winner.owner for bid in rest)


def payment(terms: Terms, winner: ScoredBid, rest: list[ScoredBid], reference_price: int | None) -> int:
    """What the winner is paid, given the bids ranked below it.

    `reference_price` is the capability's, learned without the winner's own history. It bounds the pay where nobody
    established competes; the budget does always. Never under the winner's own price, so taking part cannot cost it.
    """
    reserve = _reserve(terms, winner, rest, reference_price)
    return max(winner.price, min(reserve, math.floor(winner.value - second_score(rest))))


def second_score(rest: list[ScoredBid]) -> float:
    """The best score among the bids ranked below the winner; S₀ at least."""
    return max([SCORE_FLOOR, *(bid.score for bid in rest if bid.eligible)])


def _reserve(terms: Terms, winner: ScoredBid, rest: list[ScoredBid], reference_price: int | None) -> int:
    """What bounds the winner's pay, its own price aside."""
    if reference_price is None or contested(winner, rest):
        return terms.budget
    return min(terms.budget, math.floor(RESERVE_MARGIN * reference_price))


def most_settled(
    terms: Terms, winner: ScoredBid, rest: list[ScoredBid], reference_price: int | None, deposit: int
) -> int:
    """The most that a winner may be paid after the fact: what it would be paid without, and its deposit; and no more
    than bounds all pay.

    So nobody gains by what it does not risk: with nothing at stake, a newcomer that happened to answer well would be
    paid as if it had been known to, and a new name would be worth more than an old one.
    """
    ordinary = payment(terms, winner, rest, reference_price)
    return min(ordinary + deposit, max(ordinary, _reserve(terms, winner, rest, reference_price)))


def median_run_ms(bid: ScoredBid) -> float:
    """How long the work of a bid was expected to run, once it had a slot: the larger of the median claimed and the
    corrected one, since one that was understated would pay a stopped attempt too soon."""
    return max(bid.p50_ms, bid.expected_p50_ms) - min(bid.wait_ms, bid.p50_ms)


def part_payment(price: int, *, run_ms: float, median_ms: float) -> int:
    """What an attempt is paid that was stopped, through no fault of its own, after running for `run_ms`.

        part = ⌊price · min(1, run / median)⌋

    Its share of the work as far as time can tell. So nobody takes most of an answer for nothing by a cancel near its
    end, and who is stopped because another was first has not worked unpaid. The median is `median_run_ms`.
    """
    share = min(max(run_ms, 0.0) / median_ms, 1.0) if median_ms > 0 else 1.0
    return min(math.floor(price * share), price)


def settled_payment(
    terms: Terms, second: float, *, passed: bool, time_s: float, deposit: int, most: int | None = None
) -> int:
    """What a winner is paid after the fact, by what its answer was worth; negative: what it pays.

        pay = v·passed − μ·min(T, d) − max(S₀, second score)        −deposit ≤ pay ≤ most

    It earns what it adds to the next best, whatever it claimed, so for a bidder that is neutral to risk true claims of
    time and quality are dominant even without a history (Porter, Ronen, Shoham & Tennenholtz, Fault tolerant mechanism
    design, AIJ 172, 2008). The loss is bounded by the `deposit` that it holds, the gain by `most`, or the budget: where
    either bound is met the rule is truthful no longer.
    """
    worth = terms.value * passed - terms.value_of_time * min(time_s, terms.remaining_s)
    return max(-deposit, min(terms.budget if most is None else most, math.floor(worth - max(SCORE_FLOOR, second))))
