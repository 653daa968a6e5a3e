"""Reputation: how often a worker's answers were good, from verified outcomes alone. Pure: times are handed in.

A Beta posterior for each worker and capability, decayed (Jøsang & Ismail, The Beta Reputation System, 2002):

    α ← λ^Δt·α + w·good        β ← λ^Δt·β + w·bad        mean = α / (α + β)

Peers rate nobody. What counts is what a checker, a contract, an audit or the clock has found, at a weight that grows
with the price, up to what the capability usually costs: a good name cannot be had by selling to oneself for nothing. A
failure always counts whole, and what points at dishonesty more than that. A worker's own claim is a weak prior that
fades as outcomes come in. The market reckons with a lower bound of the posterior, so who is uncertain must be cheaper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

__all__ = ["ESTABLISHED", "Estimate", "Reputation", "Source", "outcome_weight"]

Source = Literal["checker", "contract", "audit", "panel", "error", "timeout", "lost", "decommitted"]
"""What has found that an answer was good or bad."""

HALF_LIFE_S = 3 * 86_400.0
"""After so long an outcome counts half."""

ESTABLISHED = 5.0
"""Decayed outcomes from which on a worker is no newcomer."""

CLAIM_WEIGHT = 8.0
"""A newcomer's claim counts as so many outcomes, beside one good and one bad of a uniform prior; less with each that
comes in."""

UNCLAIMED_QUALITY = 0.8
"""Expected quality of a newcomer that claims none."""

BOUND = 0.2
"""The quality that a worker is reckoned with is exceeded with a probability of one minus this."""

GAIN: dict[Source, float] = {"checker": 1.0, "contract": 0.25, "audit": 1.0, "panel": 0.5}
"""Weight of an answer that passed, before its price is looked at: the right shape alone says little."""

LOSS: dict[Source, float] = {
    "checker": 1.0,
    "contract": 1.0,
    "audit": 4.0,
    "panel": 1.0,
    "error": 1.0,
    "timeout": 1.0,
    "lost": 1.0,
    "decommitted": 2.0,
}
"""Weight of one that failed, whatever its price."""

_Z = -NormalDist().inv_cdf(BOUND)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a worker's answers are expected to be worth."""

    quality: float
    """Lower credible bound, 0 to 1: what its bids are scored with."""
    mean: float
    cases: float
    """Decayed outcomes behind it, by weight."""


def outcome_weight(source: Source, passed: bool, price: int, usual_price: int | None) -> float:
    """How much an outcome counts. `price`: what was paid for it. `usual_price`: the capability's, None if not known."""
    if not passed:
        return LOSS[source]
    full = GAIN.get(source, 0.0)
    return full if not usual_price else full * min(price / usual_price, 1.0)


@dataclass(frozen=True, slots=True)
class Reputation:
    """The evidence on one worker in one capability: all there is to keep, five numbers."""

    good: float = 0.0
    """Decayed weight of good outcomes, as of `at`."""
    bad: float = 0.0
    at: float = 0.0
    """Seconds; only differences matter."""
    passed: int = 0
    """Outcomes ever."""
    failed: int = 0

    def after(self, passed: bool, weight: float, now: float) -> Reputation:
        """With one more outcome. One that comes late, stamped before the last, counts as if it were of that time."""
        kept = self._kept(now)
        good, bad = self.good * kept, self.bad * kept
        at = max(now, self.at)
        if passed:
            return Reputation(good + weight, bad, at, self.passed + 1, self.failed)
        return Reputation(good, bad + weight, at, self.passed, self.failed + 1)

    def estimate(self, claim: float | None, now: float) -> Estimate:
        """Of the quality, where the worker itself claims `claim` for its answers."""
        kept = self._kept(now)
        good, bad = self.good * kept, self.bad * kept
        cases = good + bad
        mean, deviation = posterior(good, bad, claim)
        return Estimate(lower_bound(mean, deviation), mean, cases)

    def _kept(self, now: float) -> float:
        return math.pow(0.5, max(now - self.at, 0.0) / HALF_LIFE_S)


def posterior(good: float, bad: float, claim: float | None) -> tuple[float, float]:
    """Mean and standard deviation of the Beta posterior after so many good and bad outcomes."""
    weight = CLAIM_WEIGHT * CLAIM_WEIGHT / (CLAIM_WEIGHT + good + bad)
    # Without a claim the prior's mean is exactly UNCLAIMED_QUALITY.
    prior = (UNCLAIMED_QUALITY * (CLAIM_WEIGHT + 2) - 1) / CLAIM_WEIGHT if claim is None else claim
    alpha, beta = 1 + weight * prior + good, 1 + weight * (1 - prior) + bad
    total = alpha + beta
    return alpha / total, math.sqrt(alpha * beta / (total + 1)) / total


def lower_bound(mean: float, deviation: float) -> float:
    """Lower credible bound of a quality, from its posterior's moments: within 0.03 of the Beta quantile."""
    return max(mean - _Z * deviation, 0.0)
