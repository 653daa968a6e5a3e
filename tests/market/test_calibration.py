"""Calibration: claims of time, corrected by what tasks did take."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest

from modelnet.market import Calibration, Candidate, Outcome, ReferencePrices, TrackRecords
from modelnet.market.auction import Auction
from modelnet.market.calibration import FRESH_S, HALF_LIFE_S, LOADS, load_class, pinball
from modelnet.messages import Bid, Task

Z90 = NormalDist().inv_cdf(0.9)


def played(
    tasks: int, *, claim: float = 1.0, claimed_spread: float = 0.3, spread: float = 0.3, seed: int = 0
) -> Calibration:
    """A worker whose claimed medians are `claim` times the true ones."""
    chance, found = random.Random(seed), Calibration()
    for _ in range(tasks):
        median = chance.uniform(100, 10_000)
        p50 = claim * median
        actual = median * math.exp(spread * chance.gauss(0, 1))
        found = found.after(p50, p50 * math.exp(Z90 * claimed_spread), 0, actual, 0.0)
    return found


def test_a_claim_is_believed_as_long_as_nothing_is_known() -> None:
    assert Calibration().correct(100, 200, 0, 0.0) == (100, 200)
    assert Calibration().correct(100, 50, 0, 0.0) == (100, 100)
    assert Calibration().coverage is None


@pytest.mark.parametrize("claim", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_a_constant_lie_is_taken_back(claim: float) -> None:
    found = played(20, claim=claim)
    assert found.bias(0.0) == pytest.approx(1 / claim, rel=0.25)
    medians = [played(200, claim=claim, seed=seed).correct(claim * 1000, claim * 1500, 0, 0.0)[0] for seed in range(20)]
    assert sum(medians) / len(medians) == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("claimed_spread", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("claim", [0.5, 1.0, 3.0])
def test_nine_in_ten_end_within_the_corrected_90th_percentile(claim: float, claimed_spread: float) -> None:
    tasks = covered = 0
    for seed in range(10):  # after its first hundred tasks
        early, late = (played(count, claim=claim, claimed_spread=claimed_spread, seed=seed) for count in (100, 400))
        tasks += late.count - early.count
        covered += late.covered - early.covered
    assert covered / tasks == pytest.approx(0.9, abs=0.03)


def test_a_claim_is_corrected_by_what_is_known_at_its_load() -> None:
    found = Calibration()
    for _ in range(50):
        found = found.after(100, 120, 0, 100, 0.0).after(100, 120, LOADS - 1, 400, 0.0)
    assert found.correct(100, 120, 0, 0.0)[0] < 150 < 300 < found.correct(100, 120, LOADS - 1, 0.0)[0]
    assert 150 < found.correct(100, 120, 1, 0.0)[0] < 300  # never seen: as over all


def test_it_follows_a_worker_that_changes() -> None:
    found = played(500)
    for _ in range(100):
        found = found.after(100, 150, 0, 300, 0.0)
    assert found.correct(100, 150, 0, 0.0)[0] == pytest.approx(300, rel=0.15)


def test_honest_claims_lose_less() -> None:
    honest, liar, vague = played(500), played(500, claim=0.5), played(500, claimed_spread=2.0)
    assert honest.loss_claim < min(liar.loss_claim, vague.loss_claim)
    assert liar.loss == pytest.approx(honest.loss, rel=0.2)  # what is reckoned with is as good


def test_the_pinball_loss_is_least_at_the_quantile() -> None:
    times = [math.exp(NormalDist(5, 0.5).inv_cdf((n + 0.5) / 2000)) for n in range(2000)]
    true = math.exp(5 + 0.5 * Z90)
    losses = {share: sum(pinball(0.9, true * share, time) for time in times) for share in (0.7, 0.9, 1.0, 1.1, 1.4)}
    assert min(losses, key=lambda share: losses[share]) == 1.0
    assert pinball(0.5, 10, 10) == 0


@pytest.mark.parametrize(("running", "expected"), [(-1, 0), (0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (500, 3)])
def test_classes_of_load(running: int, expected: int) -> None:
    assert load_class(running) == expected


def test_one_outcome_is_no_reason_to_give_a_worker_up() -> None:
    """It was frozen for a while: nobody would give it the task that could show it."""
    found = Calibration().after(100, 150, 0, 60_000, 0.0)
    assert found.correct(100, 150, 0, 0.0)[0] < 250
    for _ in range(5):
        found = found.after(100, 150, 0, 100, 0.0)
    assert found.correct(100, 150, 0, 0.0)[0] < 130


def test_what_was_learned_stands_for_a_while_and_fades_to_the_claim() -> None:
    found = played(50, claim=0.05)
    medians = [found.correct(100, 150, 0, FRESH_S + lives * HALF_LIFE_S)[0] for lives in range(12)]
    assert found.correct(100, 150, 0, 0.0)[0] == medians[0] == pytest.approx(2000, rel=0.2)
    assert medians == sorted(medians, reverse=True)
    assert math.log(medians[1] / 100) == pytest.approx(math.log(medians[0] / 100) / 2, rel=0.05)
    p50, p90 = found.correct(100, 150, 0, FRESH_S + 30 * HALF_LIFE_S)
    assert p50 == pytest.approx(100)
    assert p90 == pytest.approx(150, rel=1e-3)
    assert found.correct(100, 150, 0, 1e9) == (100, 150)


def test_a_worker_in_use_forgets_nothing() -> None:
    rested, busy = Calibration(), Calibration()
    for number in range(100):
        rested = rested.after(100, 150, number % LOADS, 300, 0.0)
        busy = busy.after(100, 150, number % LOADS, 300, number * FRESH_S)
    assert busy.correct(100, 150, 0, 100 * FRESH_S) == rested.correct(100, 150, 0, 0.0)


class Lone:
    """The only worker of a capability, with tasks that must be done in five seconds. It claims one."""

    def __init__(self) -> None:
        self.records = TrackRecords()
        self.number = 0

    def is_worth_its_price(self, now: float) -> bool:
        """By what is known of it: if not, a rival is preferred, but where there is none it is believed."""
        known = self.records.of("w", "a.b").calibration
        candidate = Candidate("w", "o", "c", 0.8, mean_quality=0.8, calibration=known)
        auction = Auction(f"a{self.number}", [candidate], settled=True, now=now)
        auction.take(Bid(auction=auction.id, worker="w", price=100, p50_ms=1000.0, p90_ms=1500.0), None)
        task = Task(id=f"k{self.number}", capability="a.b", input={}, budget=1000)
        auction.close(task, 5.0, ReferencePrices())
        assert auction.winner() is not None
        return auction.bid_of("w").eligible

    def takes(self, actual_ms: float, now: float) -> None:
        self.number += 1
        claimed = (1000.0, 1500.0)
        done = Outcome("w", "a.b", f"k{self.number}", 1, "contract", True, 100, 100, claimed, actual_ms)
        self.records.learn(done, now)

    def is_slow_until_that_is_known(self, now: float) -> int:
        """After how many tasks."""
        tasks = 0
        while self.is_worth_its_price(now):
            assert tasks < 20
            self.takes(20_000.0, now)
            tasks += 1
        return tasks


def test_a_worker_that_was_slow_for_a_while_is_preferred_again() -> None:
    worker = Lone()
    assert worker.is_slow_until_that_is_known(0.0) > 1
    assert not worker.is_worth_its_price(FRESH_S)
    later = FRESH_S + 3 * HALF_LIFE_S
    for _ in range(10):  # and stays so, for it is quick again
        assert worker.is_worth_its_price(later)
        worker.takes(1000.0, later)
    p50, _ = worker.records.of("w", "a.b").calibration.correct(1000.0, 1500.0, 0, later)
    assert p50 < 1200


def test_all_that_ran_when_a_machine_stood_still_are_one_surprise() -> None:
    """Then the worker itself claims what it has measured. That must not be multiplied again by each of them."""
    many, one = Calibration(), Calibration()
    for _ in range(20):
        many = many.after(100, 400, 0, 7000, 0.0, expected_ms=100)
        one = one.after(100, 400, 0, 100 * math.exp(1.5), 0.0)
    assert many.overall == one.overall
    for _ in range(60):  # one after the other they are believed
        expected, _ = many.correct(100, 400, 0, 0.0)
        many = many.after(100, 400, 0, 7000, 0.0, expected_ms=expected)
    assert many.correct(100, 400, 0, 0.0)[0] > 2000


def test_a_worker_that_stays_slow_is_found_out_each_time_and_soon() -> None:
    worker = Lone()
    for day in range(5):
        assert worker.is_slow_until_that_is_known(day * 86_400.0) < 6


def test_times_of_two_kinds_are_not_feared_for_ever() -> None:
    found = Calibration()
    for _ in range(20):
        found = found.after(700, 1000, 0, 4000, 0.0).after(700, 1000, 0, 2, 0.0)
    p50, p90 = found.correct(700, 1000, 0, 0.0)
    assert p90 / p50 < 5
    assert found.correct(700, 70_000, 0, 0.0)[1] > 5 * p50  # unless it says so itself


def test_absurd_times_stay_finite() -> None:
    found = Calibration().after(1e-9, 1e12, 0, 1e15, 0.0).after(1e12, 1e12, 3, 0.0, 0.0)
    assert all(math.isfinite(time) and time > 0 for time in found.correct(1e-9, 1e12, 0, 0.0))
