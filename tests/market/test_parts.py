"""What a cancelled attempt is paid: its part, by the share of the claimed median that it ran."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet.market.scoring import part_payment
from modelnet.messages import Awarded, CancelAsked
from modelnet.telling import ending
from tests.market.table import Table, awarded, code, entry, final, finished


def running(**options: object) -> Table:
    """A worker is at it. It claims a median of 10 ms, which makes 10 the price: it asked that, and nobody else bids."""
    table = Table("w", **options)  # type: ignore[arg-type]
    table.prices.learn("a.b", "other", 800)
    table.running()
    return table


def price_of(table: Table) -> int:
    attempt = table.negotiation.at_work
    assert attempt is not None
    assert table.negotiation._attempt is not None
    return table.negotiation._attempt.price


@pytest.mark.parametrize(("ran_s", "share"), [(0.0, 0.0), (0.0025, 0.25), (0.005, 0.5), (0.010, 1.0), (9.0, 1.0)])
@pytest.mark.parametrize("ends", ["cancel", "client_gone"])
def test_its_share_of_the_claimed_median(ran_s: float, share: float, ends: str) -> None:
    table = running()
    price = price_of(table)
    table.now += ran_s
    found = final(table.cancel() if ends == "cancel" else table.negotiation.on_client_gone(table.now))
    assert found.status == "cancelled"
    assert found.price is not None
    assert abs(found.price - price * share) <= 1.0
    assert found.price == part_payment(price, run_ms=found.timings.running_ms, median_ms=10.0)
    assert (found.worker, found.owner, found.attempt) == ("w", "owner-of-w", 1)
    assert finished(table.stored()) == found
    assert f"is paid {found.price}" in ending(found)


def test_what_expires_or_fails_is_paid_nothing() -> None:
    assert final(running().expire()).price is None
    assert final(running().done("w", error="rejected")).price is None


def test_an_attempt_that_did_not_confirm_is_paid_nothing() -> None:
    table = Table("w")
    table.begin()
    table.bid("w")
    table.stored()
    table.now += 1.0
    assert final(table.cancel()).price is None


def test_one_that_had_to_be_asked_is_paid_for_the_time_since_its_award() -> None:
    table = Table("w")
    table.begin()
    table.bid("w")
    table.stored()
    table.now += 2.0
    table.timer("award", "1")
    table.confirm()
    price = price_of(table)
    assert price > 0
    assert final(table.cancel()).price == price


def test_an_attempt_that_failed_before_the_cancel_is_paid_nothing() -> None:
    table = running()
    table.now += 1.0
    table.done("w", error="rejected")
    found = final(table.refused((table.sequence + 1, CancelAsked(task="k"))))
    assert (found.status, found.price) == ("cancelled", None)


def test_an_output_that_was_there_before_the_cancel_is_paid_whole() -> None:
    table = running()
    price = price_of(table)
    table.now += 0.001
    assert final(table.done("w")).price == price
    found = final(table.refused((table.sequence + 1, CancelAsked(task="k"))))
    assert (found.status, found.price, found.output) == ("cancelled", price, None)


def test_an_award_that_came_after_the_cancel_is_paid_nothing() -> None:
    table = Table("w")
    table.begin()
    table.bid("w")
    table.confirm()
    table.now += 1.0
    found = final(table.refused((3, CancelAsked(task="k"))))
    assert (code(found), found.price) == ("cancelled", None)


def test_the_journal_says_what_the_part_is_reckoned_by() -> None:
    table = Table("w", age_s=2.0)
    table.begin()
    table.now += 0.5
    written = entry(table.bid("w"))
    assert isinstance(written, Awarded)
    assert written.median_ms == 10.0
    assert written.after_ms == pytest.approx(2500.0)


def test_an_adopted_attempt_is_paid_from_its_award_on() -> None:
    stood = awarded(1, "w", price=80).model_copy(update={"median_ms": 10_000.0, "after_ms": 3_000.0})
    table = Table("w", age_s=5.0, journal=[(7, stood)])
    table.begin()
    table.recalled(1, "running")
    table.now += 3.0
    found = final(table.cancel())
    assert found.timings.running_ms == pytest.approx(5_000.0)
    assert found.price in (39, 40)


def test_an_adopted_attempt_of_which_nothing_is_known_is_paid_nothing() -> None:
    asked = Table("w", age_s=5.0, journal=[(7, awarded(1, "w", price=80))])
    asked.begin()
    asked.recalled(1, "running")
    assert final(asked.cancel()).price is None, "an older negotiator wrote down no median"
    stood = awarded(1, "w", price=80).model_copy(update={"median_ms": 10_000.0, "after_ms": 3_000.0})
    unasked = Table("w", age_s=5.0, journal=[(7, stood), (8, CancelAsked(task="k"))])
    assert final(unasked.begin()).price is None, "its worker has not been heard"


@given(
    price=st.integers(0, 2**50),
    run_ms=st.floats(0, 1e9),
    longer_ms=st.floats(0, 1e9),
    median_ms=st.floats(1e-6, 1e9),
)
def test_a_part_is_a_part(price: int, run_ms: float, longer_ms: float, median_ms: float) -> None:
    part = part_payment(price, run_ms=run_ms, median_ms=median_ms)
    assert 0 <= part <= price
    assert part <= part_payment(price, run_ms=run_ms + longer_ms, median_ms=median_ms)
    if run_ms >= median_ms:
        assert part == price
