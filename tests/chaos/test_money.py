"""The campaign's own bookkeeping: what is paid twice, not at all, or to another shows."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.messages import Final, Settlement, Timings
from modelnet.store.ledger import Account, Books
from tests.chaos.money import Money, expected_balances, misbooked

KEY = ("t", "k")
LOST = Settlement(
    attempt=1, auction="a", worker="w", owner="p", deposit=50, most=90, second_score=9.0, passed=False, time_ms=3.0,
    price=-20,
)  # fmt: skip


def final(status: str = "completed", price: int | None = 30, **fields: Any) -> Final:
    timings = Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0)
    who = {"task": "k", "tenant": "t", "capability": "c", "owner": "o", "held": 1000, "negotiator": "n"}
    return Final.model_validate({**who, "status": status, "price": price, "timings": timings, **fields})


@pytest.mark.parametrize(
    ("ended", "entry"),
    [
        (final(), {"state": "settled", "paid": "30"}),
        (final("cancelled", 12), {"state": "settled", "paid": "12"}),
        (final("failed", None), {"state": "released", "paid": "0"}),
        (final(price=-4), {"state": "settled", "paid": "0"}),
        (final(held=None), {}),
    ],
)
def test_what_is_right(ended: Final, entry: dict[str, str]) -> None:
    assert misbooked([ended], {KEY: entry}) == []


@pytest.mark.parametrize(
    ("ended", "entry"),
    [
        (final(), {}),
        (final(), {"state": "held", "amount": "1000"}),
        (final(), {"state": "settled", "paid": "60"}),
        (final(), {"state": "released", "paid": "0"}),
        (final("failed", None), {"state": "settled", "paid": "30"}),
        (final("cancelled", 12), {"state": "released", "paid": "0"}),
        (final(held=None), {"state": "settled", "paid": "30"}),
    ],
)
def test_what_is_wrong(ended: Final, entry: dict[str, str]) -> None:
    assert len(misbooked([ended], {KEY: entry})) == 1


def test_what_each_has_in_the_end() -> None:
    ends = [final(), final("cancelled", 12), final("failed", None), final(price=5, held=None)]
    assert expected_balances({"t": 500}, ends) == {"t": 458, "o": 42}
    assert expected_balances({"t": 500, "p": 100}, [final(settlements=(LOST,))]) == {"t": 490, "o": 30, "p": 80}


def test_books_that_do_not_balance_and_accounts_below_nothing() -> None:
    money = Money(granted=100)
    money.look(Books((Account("t", 60, 40, 1, True),), 100))
    assert not any(money.must_be_zero.values())
    money.look(Books((Account("t", 60, 41, 1, True),), 100))
    money.look(Books((Account("t", 120, 0, 0, True), Account("o", -20, 0, 0, False)), 100))
    assert (len(money.imbalances), money.overdrawn) == (1, ["o"])
