"""Reputation: a decayed Beta posterior of verified outcomes."""

from __future__ import annotations

import random

import pytest

from modelnet.market import Reputation
from modelnet.market.reputation import BOUND, HALF_LIFE_S, UNCLAIMED_QUALITY, lower_bound, outcome_weight, posterior


def after(*passed: bool, weight: float = 1.0) -> Reputation:
    found = Reputation()
    for one in passed:
        found = found.after(one, weight, 0.0)
    return found


def test_a_newcomer_is_what_it_claims_less_its_uncertainty() -> None:
    unclaimed, humble, proud = (Reputation().estimate(claim, 0.0) for claim in (None, 0.5, 1.0))
    assert unclaimed.mean == pytest.approx(UNCLAIMED_QUALITY)
    assert humble.mean == 0.5
    assert 0.5 < proud.mean < 1.0
    for estimate in (unclaimed, humble, proud):
        assert estimate.quality < estimate.mean
        assert estimate.cases == 0


@pytest.mark.parametrize("claim", [None, 0.0, 1.0])
def test_outcomes_replace_the_claim(claim: float | None) -> None:
    found = after(*[n % 4 != 0 for n in range(400)]).estimate(claim, 0.0)
    assert found.mean == pytest.approx(0.75, abs=0.01)
    assert found.quality > 0.72


def test_the_bound_comes_closer_with_evidence() -> None:
    gaps = [after(*[n % 2 == 0 for n in range(count)]).estimate(0.5, 0.0) for count in (0, 10, 100, 1000)]
    widths = [estimate.mean - estimate.quality for estimate in gaps]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("good", "bad"), [(0, 0), (3, 0), (0, 3), (20, 1), (100, 40), (1, 50)])
@pytest.mark.parametrize("claim", [None, 0.2, 0.95])
def test_the_bound_is_near_the_quantile_of_the_posterior(good: float, bad: float, claim: float | None) -> None:
    mean, deviation = posterior(good, bad, claim)
    total = mean * (1 - mean) / deviation**2 - 1
    chance = random.Random(1)
    drawn = sorted(chance.betavariate(mean * total, (1 - mean) * total) for _ in range(20_000))
    assert lower_bound(mean, deviation) == pytest.approx(drawn[int(BOUND * len(drawn))], abs=0.03)


def test_a_failure_costs_more_than_a_success_gains() -> None:
    proven = after(*[True] * 19, False)
    before, up, down = (
        one.estimate(0.9, 0.0).quality for one in (proven, proven.after(True, 1.0, 0.0), proven.after(False, 1.0, 0.0))
    )
    assert before - down > 5 * (up - before) > 0


def test_old_outcomes_fade() -> None:
    found = after(*[True] * 10)
    assert found.estimate(None, HALF_LIFE_S).cases == pytest.approx(5.0)
    later = found.after(False, 1.0, HALF_LIFE_S)
    assert later.good == pytest.approx(5.0)
    assert later.bad == 1.0
    assert (later.passed, later.failed) == (10, 1)


def test_an_outcome_that_comes_late_does_not_turn_the_clock_back() -> None:
    found = Reputation().after(True, 1.0, 100.0).after(True, 1.0, 50.0)
    assert found == Reputation(2.0, 0.0, 100.0, 2, 0)


def test_selling_to_oneself_for_nothing_earns_no_name() -> None:
    assert outcome_weight("checker", True, 0, 100) == 0
    assert outcome_weight("checker", True, 1, 100) == 0.01
    assert outcome_weight("checker", True, 100, 100) == 1
    assert outcome_weight("checker", True, 10**6, 100) == 1  # nor can much be bought at once
    assert outcome_weight("checker", False, 0, 100) == 1  # a failure counts whole
    assert outcome_weight("checker", True, 0, 0) == 1  # where all is free, price says nothing
    assert outcome_weight("checker", True, 0, None) == 1


def test_what_points_at_dishonesty_weighs_most_and_the_right_shape_least() -> None:
    assert outcome_weight("contract", True, 10, 10) < outcome_weight("checker", True, 10, 10)
    assert outcome_weight("checker", False, 10, 10) < outcome_weight("decommitted", False, 10, 10)
    assert outcome_weight("decommitted", False, 10, 10) < outcome_weight("audit", False, 10, 10)
    assert outcome_weight("timeout", True, 10, 10) == 0  # no such thing as a passed time-out
