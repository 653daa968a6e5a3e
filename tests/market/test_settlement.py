"""Payment after the fact: by what the answer turned out to be worth."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from modelnet.market import Terms
from modelnet.market.scoring import settled_payment, value_of

TERMS = Terms(1000, 1000, 10.0, 0.0, 60.0)


def test_the_formula() -> None:
    assert settled_payment(TERMS, 300.0, passed=True, time_s=5.0, deposit=0) == 1000 - 50 - 300
    assert settled_payment(TERMS, 300.0, passed=False, time_s=60.25, deposit=1000) == -600 - 300
    assert settled_payment(TERMS, -50.0, passed=True, time_s=5.0, deposit=0) == 950  # S0 stands behind the last


def test_a_failure_costs_the_deposit_at_most() -> None:
    assert settled_payment(TERMS, 300.0, passed=False, time_s=5.0, deposit=500) == -350
    assert settled_payment(TERMS, 300.0, passed=False, time_s=5.0, deposit=100) == -100
    assert settled_payment(TERMS, 300.0, passed=False, time_s=5.0, deposit=0) == 0


def test_the_budget_bounds_the_gain() -> None:
    rich = Terms(200, 1000, 10.0, 0.0, 60.0)
    assert settled_payment(rich, 0.0, passed=True, time_s=1.0, deposit=0) == 200


@pytest.mark.parametrize("claim", [0.1, 0.5, 0.9, 1.5, 3.0])
@pytest.mark.parametrize("claimed_quality", [0.3, 0.6, 0.8, 1.0])
def test_true_claims_are_best_without_any_history(claim: float, claimed_quality: float) -> None:
    """A bidder whose claims are believed at once, over the same draws of its rivals: what it can expect at most is what
    the truth gets it."""
    cost, quality, median_s = 250, 0.7, 3.0

    def expected_gain(said_quality: float, said_time_s: float) -> float:
        chance, gains = random.Random(5), []
        for _ in range(400):
            second = chance.uniform(0, 800)
            score = value_of(TERMS, said_quality, said_time_s * 1e3, said_time_s * 1e3) - cost
            if score <= second:
                gains.append(0.0)
                continue
            good, bad = (
                settled_payment(TERMS, second, passed=passed, time_s=median_s, deposit=2000) for passed in (True, False)
            )
            gains.append(quality * good + (1 - quality) * bad - cost)
        return fmean(gains)

    assert expected_gain(claimed_quality, claim * median_s) <= expected_gain(quality, median_s) + 1.0
