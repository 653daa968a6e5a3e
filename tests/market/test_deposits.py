"""A newcomer that puts up a deposit: held before its award, and paid by what its answer turns out to be worth."""

from __future__ import annotations

import random
from statistics import fmean
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet.market import State, Terms, differences
from modelnet.market.commands import Command, HoldDeposit, Record, SendAward
from modelnet.market.decision import decide
from modelnet.market.scoring import Offered, most_settled, payment, rank, settled_payment
from modelnet.market.settlement import payment_differences
from modelnet.messages import Awarded, Bid, CancelAsked, Final, Transcript
from modelnet.telling import ending, why
from tests.market.table import Table, entry, final, one, some, transcript

DEPOSIT = 200


def staked(*workers: str, **options: object) -> Table:
    """A table at which the tenant pays and `w` puts up a deposit; nobody has a history. Value 1,000, 10 a second."""
    given = {"charged": True, "budget": 1000, "value_of_time": 10.0, **options}
    return Table(*(workers or ("w", "v")), deposits={"w": DEPOSIT}, **given)  # type: ignore[arg-type]


def awarding(table: Table) -> list[Command]:
    """All have bid, `w` is best, and its deposit is held."""
    table.begin()
    table.held()
    for worker in table.workers:
        table.bid(worker, 10 if worker == "w" else 300)
    commands = table.deposit("w")
    table.stored()
    return commands


def running(table: Table) -> Transcript:
    found = transcript(awarding(table))
    table.confirm()
    return found


# ---------------------------------------------------------------------- before the award


def test_it_is_held_before_the_award() -> None:
    table = staked()
    table.begin()
    table.held()
    table.bid("v", 300)
    commands = table.bid("w", 10)
    assert commands == [HoldDeposit(DEPOSIT, "auction1", "w", "owner-of-w")]
    assert table.state.name == "DEPOSITING"
    assert table.bid("u", 1, newcomer=True) == []
    commands = table.deposit("w")
    assert table.state is State.AWARDING
    written, award = entry(commands), one(commands, SendAward).award
    assert isinstance(written, Awarded)
    assert (written.deposit, award.deposit) == (DEPOSIT, DEPOSIT)
    recorded = transcript(commands)
    assert (recorded.rule, recorded.deposit, recorded.price) == ("settled", DEPOSIT, written.price)
    assert recorded.second_score == written.second_score
    assert differences(recorded) == []
    assert "deposit of 200" in why(recorded)


def test_without_it_the_bid_counts_as_one_that_offers_none() -> None:
    table, plain = staked(), Table("w", "v", charged=True, budget=1000, value_of_time=10.0)
    table.begin()
    table.held()
    table.bid("v", 300)
    table.bid("w", 10)
    commands = table.deposit("w", held=False)
    recorded = transcript(commands)
    assert (recorded.rule, recorded.deposit, recorded.second_score) == ("second_score", 0, None)
    assert differences(recorded) == []
    plain.begin()
    plain.held()
    plain.bid("v", 300)
    assert transcript(plain.bid("w", 10)).price == recorded.price


def test_a_free_tenants_task_asks_for_none() -> None:
    table = staked(charged=False)
    table.begin()
    table.bid("v", 300)
    commands = table.bid("w", 10)
    assert some(commands, HoldDeposit) == []
    assert transcript(commands).rule == "second_score"


def test_the_runner_up_puts_up_its_own() -> None:
    table = staked()
    awarding(table)
    assert some(table.decline(), HoldDeposit) == []
    table = Table("w", "v", charged=True, deposits={"w": 100, "v": 50})
    awarding(table)
    commands = table.decline()
    assert one(commands, HoldDeposit).worker == "v"
    commands = table.deposit("v")
    assert one(commands, SendAward).award.deposit == 50
    assert some(commands, Record) == []


def test_what_comes_while_it_is_asked_for() -> None:
    def asking() -> Table:
        table = staked()
        table.begin()
        table.held()
        table.bid("v", 300)
        table.bid("w", 10)
        return table

    assert final(asking().cancel()).status == "cancelled"
    assert final(asking().expire()).status == "expired"
    table = asking()
    assert table.deposit("v") == [], "of another"
    assert table.lost("w") == []
    assert table.wake() == table.timer("window", "auction1") == []
    assert some(table.deposit("w"), SendAward)


# ---------------------------------------------------------------------- what is paid


def test_a_good_answer_is_paid_what_it_was_worth() -> None:
    table = staked()
    recorded = running(table)
    table.now += 4.0
    found = final(table.done("w"))
    (settled,) = found.settlements
    worth = 1000 - 10 * 4.0 - settled.second_score
    assert settled.passed
    assert found.price == settled.price == min(int(worth), settled.most)
    assert settled.time_ms == pytest.approx(4_000.0)
    assert payment_differences(recorded, found) == []
    assert f"is paid {found.price}" in ending(found)
    assert Final.decode(found.encode()) == found


def test_a_failure_costs_the_deposit_and_the_next_goes_on() -> None:
    table = staked()
    recorded = running(table)
    table.now += 1.0
    table.done("w", error="worker_error", retryable=True)
    table.bid("v", 300)
    table.stored()
    table.confirm(2)
    found = final(table.done("v", 2))
    (settled,) = found.settlements
    assert (settled.worker, settled.passed, settled.price) == ("w", False, -DEPOSIT)
    assert found.worker == "v"
    assert found.price is not None
    assert found.price > 0
    assert payment_differences(recorded, found) == []


def test_the_next_negotiator_knows_of_the_failure() -> None:
    table = staked()
    running(table)
    table.done("w", error="worker_error", retryable=True)
    second = entry(table.bid("v", 300))
    assert isinstance(second, Awarded)
    assert [one.worker for one in second.settlements] == ["w"]
    heir = staked(journal=[(7, second)])
    heir.begin()
    heir.recalled(2, "running")
    assert [one.price for one in final(heir.done("v", 2)).settlements] == [-DEPOSIT]


def test_an_adopted_attempt_is_settled_from_its_award_on() -> None:
    table = staked()
    written = entry(awarding(table))
    assert isinstance(written, Awarded)
    heir = staked(journal=[(7, written)], age_s=6.0)
    heir.begin()
    heir.recalled(1, "running")
    (settled,) = final(heir.done("w")).settlements
    assert settled.time_ms == pytest.approx(6_000.0)
    assert settled.deposit == DEPOSIT


@pytest.mark.parametrize("end", ["lost", "expire"])
def test_who_vanishes_or_is_too_late_has_failed(end: str) -> None:
    table = staked("w")
    running(table)
    table.now += 30.0
    if end == "lost":
        table.lost("w")
    found = final(table.expire())
    (settled,) = found.settlements
    assert (settled.passed, settled.price, found.price) == (False, -DEPOSIT, None)


@pytest.mark.parametrize("error", ["worker_leaving", "rejected"])
def test_what_is_not_its_fault_costs_it_nothing(error: str) -> None:
    table = staked("w")
    running(table)
    table.done("w", error=error, retryable=error == "worker_leaving")
    found = table.negotiation._final or final(table.expire())
    assert found.settlements == ()


def test_a_cancel_pays_a_part_of_what_it_would_be_paid_without() -> None:
    table = staked()
    recorded = running(table)
    table.now += 0.005  # of a median of 10 ms
    found = final(table.cancel())
    assert recorded.price is not None
    assert found.price is not None
    assert abs(found.price - (recorded.price - DEPOSIT) / 2) <= 1
    assert found.settlements == ()
    assert payment_differences(recorded, found) == []


def test_a_cancel_behind_the_answer_pays_its_worth() -> None:
    table = staked()
    recorded = running(table)
    table.now += 4.0
    whole = final(table.done("w"))
    found = final(table.refused((table.sequence + 1, CancelAsked(task="k"))))
    assert (found.status, found.price, found.settlements) == ("cancelled", whole.price, whole.settlements)
    assert payment_differences(recorded, found) == []


@pytest.mark.parametrize("changed", ["price", "deposit", "most", "second_score", "passed", "time_ms"])
def test_a_false_settlement_shows(changed: str) -> None:
    table = staked()
    recorded = running(table)
    table.now += 4.0
    found = final(table.done("w"))
    (settled,) = found.settlements
    value = {"passed": False, "time_ms": 40_000.0}.get(changed, getattr(settled, changed) + 7)
    if changed == "time_ms":
        value = 60_000.0 * 10
    false = found.model_copy(update={"settlements": (settled.model_copy(update={changed: value}),)})
    assert payment_differences(recorded, false)


def test_a_false_price_shows() -> None:
    table = Table("w", "v", charged=True)
    table.begin()
    table.held()
    table.bid("v", 300)
    recorded = transcript(table.bid("w", 10))
    table.stored()
    table.confirm()
    found = final(table.done("w"))
    assert payment_differences(recorded, found) == []
    assert payment_differences(recorded, found.model_copy(update={"price": 11}))


# ---------------------------------------------------------------------- incentives

TERMS = Terms(1000, 1000, 10.0, 0.0, 60.0)


def offered(worker: str, price: int, quality: float, cases: float = 0.0, deposit: int = 0) -> Offered:
    bid = Bid(auction="a", worker=worker, price=price, p50_ms=2e3, p90_ms=4e3, deposit=deposit)
    return Offered(bid, f"owner-of-{worker}", quality, quality, cases)


def test_only_a_newcomer_is_settled() -> None:
    for cases, deposit in ((0.0, 50), (4.9, 50), (5.0, 0), (80.0, 0)):
        decision = decide("a", "t", TERMS, [offered("w", 10, 0.9, cases, 50)], {})
        assert decision.deposit(decision.order[0]) == deposit


@given(
    price=st.integers(1, 900),
    rival=st.integers(1, 900),
    quality=st.floats(0.1, 1.0),
    cases=st.sampled_from([0.0, 50.0]),
    reference=st.none() | st.integers(1, 1000),
    deposit=st.integers(0, 2000),
    time_s=st.floats(0.0, 60.0),
    passed=st.booleans(),
)
def test_the_gain_beyond_ordinary_pay_is_at_most_what_is_put_up(
    price: int,
    rival: int,
    quality: float,
    cases: float,
    reference: int | None,
    deposit: int,
    time_s: float,
    passed: bool,
) -> None:
    """So with nothing put up a newcomer never gets more than an established worker with the same bid."""
    winner, *rest = rank("t", TERMS, [offered("w", price, quality), offered("v", rival, 0.8, cases)])
    if not winner.eligible:
        return
    ordinary = payment(TERMS, winner, rest, reference)
    most = most_settled(TERMS, winner, rest, reference, deposit)
    assert ordinary <= most <= ordinary + deposit
    assert most <= TERMS.budget
    second = max([0.0, *(bid.score for bid in rest if bid.eligible)])
    paid = settled_payment(TERMS, second, passed=passed, time_s=time_s, deposit=deposit, most=most)
    assert -deposit <= paid <= most
    if deposit == 0:
        assert paid <= ordinary


def gains(quality: float, deposit: int, *, rule: Literal["as it is", "all", "all, unbounded"] = "as it is") -> float:
    """What a newcomer that works for 250 can expect of a task, estimated at a quality of 0.65 and 3 s, against drawn
    rivals with a history. `rule`: all newcomers are settled, whatever they put up; `unbounded`: up to the budget."""
    chance, found = random.Random(5), []
    for _ in range(4000):
        rivals = [offered(f"v{n}", chance.randint(100, 600), chance.uniform(0.5, 0.9), 50.0) for n in range(3)]
        winner, *rest = rank("t", TERMS, [offered("w", 250, 0.65), *rivals])
        if winner.worker != "w":
            continue
        passed, time_s = chance.random() < quality, chance.lognormvariate(1.1, 0.5)
        if deposit or rule != "as it is":
            second = max([0.0, *(bid.score for bid in rest if bid.eligible)])
            most = TERMS.budget if rule == "all, unbounded" else most_settled(TERMS, winner, rest, None, deposit)
            paid = settled_payment(TERMS, second, passed=passed, time_s=time_s, deposit=deposit, most=most)
        else:
            paid = payment(TERMS, winner, rest, None) if passed else 0
        found.append(paid - 250)
    return fmean(found)


def test_a_deposit_pays_for_who_is_better_than_it_is_taken_for_and_costs_who_is_worse() -> None:
    assert gains(0.95, 500) > gains(0.95, 0) + 50
    assert gains(0.4, 500) < gains(0.4, 0) - 50


def test_settling_all_newcomers_would_help_none_of_them_or_make_a_new_name_worth_more_than_an_old_one() -> None:
    """Why it is asked for by a deposit."""
    for quality in (0.4, 0.65, 0.95):
        ordinary = gains(quality, 0)
        assert gains(quality, 0, rule="all") <= ordinary
        assert gains(quality, 0, rule="all, unbounded") > ordinary + 50
