"""What a bid is worth and what its winner is paid: formulas against numbers, and the rules that must always hold."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet.market.scoring import (
    RESERVE_MARGIN,
    SCORE_FLOOR,
    Offered,
    Terms,
    chance_and_time_s,
    payment,
    rank,
    score,
    tie_break,
)
from modelnet.messages import Bid, ScoredBid, Task

UNIFORM = [(n + 0.5) / 50_000 for n in range(50_000)]
QUANTILES = [NormalDist().inv_cdf(u) for u in UNIFORM]


def offered(worker: str, price: int, *, p50_s: float = 1.0, p90_s: float = 2.0, quality: float = 1.0) -> Offered:
    bid = Bid(auction="a", worker=worker, price=price, p50_ms=p50_s * 1e3, p90_ms=p90_s * 1e3)
    return Offered(bid, f"owner-of-{worker}", quality)


def terms(budget: int = 1000, **given: float) -> Terms:
    task = Task(capability="a", input={}, budget=budget, **{k: v for k, v in given.items() if k != "remaining_s"})
    return Terms.of(task, given.get("remaining_s", 60.0))


def samples(p50_s: float, p90_s: float) -> list[float]:
    """Equally likely times of the log-normal with this median and 90th percentile."""
    deviation = math.log(p90_s / p50_s) / NormalDist().inv_cdf(0.9)
    return [p50_s * math.exp(deviation * z) for z in QUANTILES]


TIMES = [(1.0, 1.0001), (1.0, 1.2), (0.05, 0.2), (3.0, 9.0), (100.0, 150.0)]


@pytest.mark.parametrize(("p50_s", "p90_s"), TIMES)
@pytest.mark.parametrize("share", [0.1, 0.7, 1.0, 1.5, 4.0, 1e3])
def test_chance_and_time_are_those_of_samples(p50_s: float, p90_s: float, share: float) -> None:
    deadline = share * p50_s
    times = samples(p50_s, p90_s)
    chance, time_s = chance_and_time_s(p50_s, p90_s, deadline)
    assert chance == pytest.approx(fmean(t <= deadline for t in times), abs=1e-3)
    assert time_s == pytest.approx(fmean(min(t, deadline) for t in times), rel=1e-3)


@pytest.mark.parametrize("deadline_s", [0.0, -2.0])
def test_past_the_deadline_nothing_can_be_had(deadline_s: float) -> None:
    assert chance_and_time_s(1.0, 1.5, deadline_s) == (0.0, 0.0)


def test_a_90th_percentile_below_the_median_counts_as_the_median() -> None:
    chance, time_s = chance_and_time_s(2.0, 1.0, 60.0)
    assert chance == 1.0
    assert time_s == pytest.approx(2.0)


@pytest.mark.parametrize("p90_s", [1e3, 1e9, 1e200])
def test_absurd_claims_of_time_give_a_finite_score(p90_s: float) -> None:
    for remaining_s in (-1.0, 0.0, 1e-9, 60.0):
        found = score(terms(remaining_s=remaining_s), offered("w", 1, p50_s=1e-9, p90_s=p90_s))
        assert math.isfinite(found.score)
        assert ScoredBid.model_validate_json(found.model_dump_json()) == found


def test_the_score_is_the_formula() -> None:
    found = score(terms(1000, value=500, value_of_time=10.0), offered("w", 100, quality=0.9))
    chance, time_s = chance_and_time_s(1.0, 2.0, 60.0)
    assert found.value == pytest.approx(500 * 0.9 * chance - 10 * time_s)
    assert found.score == pytest.approx(found.value - 100)


@given(
    st.floats(1e-3, 1e3),
    st.floats(1.0, 50.0),
    st.lists(st.tuples(st.sampled_from([400, 500]), st.floats(-1.0, 1e4)), min_size=1, max_size=6),
)
def test_a_bid_that_was_scored_before_scores_as_one_that_was_not(
    p50_s: float, spread: float, asked: list[tuple[int, float]]
) -> None:
    standing = offered("w", 100, p50_s=p50_s, p90_s=p50_s * spread)
    for value, remaining_s in asked:
        wanted = terms(1000, value=value, value_of_time=1.0, remaining_s=remaining_s)
        anew = score(wanted, offered("w", 100, p50_s=p50_s, p90_s=p50_s * spread))
        assert score(wanted, standing) == anew


def test_a_bid_is_scored_once_for_tasks_that_want_the_same_and_are_in_no_haste() -> None:
    standing = offered("w", 100)
    first = score(terms(remaining_s=60.0), standing)
    assert score(terms(remaining_s=6000.0), standing) != first, "a minute was not enough to be sure"
    assert score(terms(remaining_s=5000.0), standing) is score(terms(remaining_s=6000.0), standing)


def test_defaults_of_a_task() -> None:
    assert Terms.of(Task(capability="a", input={}), 5.0) == Terms(1000, 1000, 1000 / 600, 0.0, 5.0)
    explicit = Task(capability="a", input={}, budget=7, value=50, value_of_time=0, min_quality=0.5)
    assert Terms.of(explicit, 5.0) == Terms(7, 50, 0, 0.5, 5.0)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (offered("w", 10), offered("w", 11)),
        (offered("w", 10, quality=0.9), offered("w", 10, quality=0.8)),
        (offered("w", 10, p50_s=0.5), offered("w", 10, p50_s=1.0)),
        (offered("w", 10, p90_s=1.5), offered("w", 10, p90_s=3.0)),
        (offered("w", 10, p50_s=70.0, p90_s=80.0), offered("w", 10, p50_s=71.0, p90_s=80.0)),
    ],
    ids=["price", "quality", "time", "certainty", "lateness"],
)
def test_better_scores_higher(better: Offered, worse: Offered) -> None:
    assert score(terms(), better).score > score(terms(), worse).score


def test_more_time_left_never_lowers_the_chance() -> None:
    found = [chance_and_time_s(5.0, 20.0, left)[0] for left in range(-5, 60)]
    assert found == sorted(found)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.7])
def test_a_worker_that_will_probably_make_it_is_worth_asking_by_default(share: float) -> None:
    """A long task of one slow worker must not be refused for being long: at the deadline half its worth is left."""
    task = Task(capability="a", input={}, deadline_s=300.0)
    slow = offered("w", 100, quality=0.8, p50_s=300 * share, p90_s=450 * share)
    assert score(Terms.of(task, 300.0), slow).eligible


@pytest.mark.parametrize(
    ("bid", "eligible"),
    [
        (offered("w", 1000, quality=1.0), False),  # worth 1000 less its time: not its price
        (offered("w", 900), True),
        (offered("w", 1001), False),
        (offered("w", 10, quality=0.49), False),
        (offered("w", 10, quality=0.5), True),
        (offered("w", 10, p50_s=90, p90_s=150), True),  # one in six: 60 s for a sixth of the value
        (offered("w", 10, p50_s=150, p90_s=200), False),
    ],
)
def test_eligible(bid: Offered, eligible: bool) -> None:
    assert score(terms(min_quality=0.5), bid).eligible is eligible


def test_a_budget_above_the_value_does_not_buy_what_is_not_worth_it() -> None:
    assert not score(terms(1000, value=50), offered("w", 60)).eligible


bids = st.lists(
    st.builds(
        offered,
        st.integers(0, 10_000).map("w{}".format),
        st.integers(0, 1200),
        p50_s=st.floats(0.001, 100),
        p90_s=st.floats(0.001, 500),
        quality=st.floats(0, 1),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda o: o.bid.worker,
)


@given(bids, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(found: list[Offered], random: object) -> None:
    ranking = rank("task", terms(), found)
    random.shuffle(found)  # type: ignore[attr-defined]
    assert rank("task", terms(), found) == ranking


@given(bids)
def test_the_eligible_stand_first_and_each_group_in_order_of_score(found: list[Offered]) -> None:
    ranking = rank("task", terms(), found)
    assert [b.eligible for b in ranking] == sorted((b.eligible for b in ranking), reverse=True)
    for group in (True, False):
        scores = [round(b.score) for b in ranking if b.eligible is group]
        assert scores == sorted(scores, reverse=True)


def test_ties_break_by_task_and_worker() -> None:
    tied = [offered(f"w{n}", 10) for n in range(8)]
    winners = {rank(f"task{n}", terms(), tied)[0].worker for n in range(200)}
    assert len(winners) == 8  # nobody is favoured by its name
    assert rank("task1", terms(), tied)[0].worker == min(
        (f"w{n}" for n in range(8)), key=lambda w: tie_break("task1", w)
    )


@given(bids, st.none() | st.integers(0, 2000))
def test_bounds_of_the_payment(found: list[Offered], reference: int | None) -> None:
    ranking = [bid for bid in rank("task", terms(), found) if bid.eligible]
    if ranking:
        winner, rest = ranking[0], ranking[1:]
        paid = payment(terms(), winner, rest, reference)
        assert winner.price <= paid <= max(winner.price, 1000)
        if reference is not None:
            assert paid <= max(winner.price, RESERVE_MARGIN * reference)
        # The publisher is never worse off than with the runner-up at its own price.
        assert winner.value - paid >= max([SCORE_FLOOR, *(b.score for b in rest)]) - 1


@given(bids)
def test_another_bid_never_raises_the_payment(found: list[Offered]) -> None:
    ranking = [bid for bid in rank("task", terms(), found) if bid.eligible]
    paid = [payment(terms(), ranking[0], ranking[1 : n + 1], None) for n in range(len(ranking))] if ranking else []
    assert paid == sorted(paid, reverse=True)


def test_a_lone_bidder_is_paid_the_reserve() -> None:
    (winner,) = rank("task", terms(), [offered("w", 10)])
    assert payment(terms(), winner, [], 100) == 125
    assert payment(terms(), winner, [], 4) == 10  # its own price, above the reserve: a first price
    assert payment(terms(), winner, [], None) == math.floor(winner.value)


def test_bids_that_may_not_win_do_not_set_the_price() -> None:
    winner, other = rank("task", terms(), [offered("w", 10), offered("x", 1001)])
    assert payment(terms(), winner, [other], None) == payment(terms(), winner, [], None)


@pytest.mark.parametrize("rivals", [[], [200], [200, 205, 700], [999]], ids=str)
@pytest.mark.parametrize("quality", [0.6, 1.0])
@pytest.mark.parametrize("cost", [0, 1, 150, 199, 200, 201, 500, 980, 1200])
def test_naming_the_true_price_is_dominant(rivals: list[int], quality: float, cost: int) -> None:
    """Without a reference price the reserve is the budget, and no answer is worth more: it never binds."""

    def gain(price: int) -> int:
        others = [offered(f"rival{n}", rival, quality=0.8) for n, rival in enumerate(rivals)]
        ranking = [b for b in rank("task", terms(), [offered("w", price, quality=quality), *others]) if b.eligible]
        if not ranking or ranking[0].worker != "w":
            return 0
        return payment(terms(), ranking[0], ranking[1:], None) - cost

    honest = gain(cost)
    assert honest >= 0
    for price in range(0, 1300, 7):
        assert gain(price) <= honest, price
    for price in range(max(cost - 5, 0), cost + 6):
        assert gain(price) <= honest, price
