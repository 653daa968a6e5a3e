"""What a worker does with more awards than it has slots."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.estimates import wait_s
from modelnet.messages import AdoptAttempt, Award
from modelnet.slots import Begin, GiveUp, Key, Order, Slots, Stop


def award(task: str, attempt: int = 1, *, remaining_s: float = 60.0, negotiator: str = "n") -> Award:
    facts: dict[str, Any] = {"auction": f"a-{task}-{attempt}", "tenant": "t", "capability": "c", "price": 1}
    return Award(task=task, attempt=attempt, negotiator=negotiator, remaining_ms=remaining_s * 1e3, **facts)


def key(task: str, attempt: int = 1) -> Key:
    return Key("t", task, attempt)


def take(slots: Slots, *tasks: str, now: float = 0.0, run_s: float = 1.0) -> list[Order]:
    """Confirm these."""
    orders = list[Order]()
    for task in tasks:
        reason, more = slots.on_award(award(task), suits=True, now=now, run_s=run_s)
        assert reason is None
        orders += more
    return orders


def begun(orders: list[Order]) -> list[str]:
    assert all(isinstance(order, Begin) for order in orders)
    return [order.award.task for order in orders if isinstance(order, Begin)]


def test_what_waits_begins_in_order_as_slots_free_up() -> None:
    slots = Slots(2, 3)
    assert begun(take(slots, "a", "b", "c", "d", "e")) == ["a", "b"]
    assert (slots.free, slots.refusal()) == (0, "busy")
    assert slots.on_award(award("f"), suits=True, now=0.0, run_s=1.0) == ("busy", [])
    negotiator, orders = slots.on_ended(key("b"), 1.0)
    assert (negotiator, begun(orders)) == ("n", ["c"])
    assert begun(slots.on_ended(key("a"), 2.0)[1]) == ["d"]
    assert slots.free == 2
    assert list(slots) == [key("c"), key("d"), key("e")], "all are in its hands"


def test_what_waited_has_less_time_left() -> None:
    slots = Slots(1, 1)
    take(slots, "a", "b")
    (order,) = slots.on_ended(key("a"), 20.0)[1]
    assert isinstance(order, Begin)
    assert order.award == award("b", remaining_s=40.0)


def test_time_runs_out_while_it_waits() -> None:
    slots = Slots(1, 2)
    take(slots, "a")
    slots.on_award(award("late", remaining_s=5.0), suits=True, now=0.0, run_s=1.0)
    take(slots, "b")
    assert slots.overdue(4.9) == []
    assert slots.on_ended(key("a"), 5.0)[1] == [
        GiveUp(award("late", remaining_s=5.0), "n", "expired"),
        Begin(award("b", remaining_s=55.0)),
    ]
    assert slots.on_award(award("late"), suits=True, now=6.0, run_s=1.0)[0] == "duplicate"


def test_orders_reach_what_waits() -> None:
    slots = Slots(1, 3)
    take(slots, "a", "b", "c", "d")
    assert slots.on_award(award("b", negotiator="m"), suits=True, now=0.0, run_s=1.0) == (None, []), "the same again"
    assert slots.on_cancel(key("c"), "another-auction") == []
    assert key("c") in list(slots)
    assert slots.on_cancel(key("c"), "a-c-1") == []
    assert slots.on_award(award("c"), suits=True, now=0.0, run_s=1.0)[0] == "duplicate"
    newer = slots.on_award(award("d", 2), suits=True, now=0.0, run_s=1.0)
    assert newer == (None, []), "the older one never ran, so nothing is to be stopped"
    assert list(slots) == [key("a"), key("b"), key("d", 2)]
    heir = AdoptAttempt(tenant="t", task="d", attempt=2, auction="a-d-2", negotiator="heir")
    assert slots.on_adopt(heir) is None
    assert slots.drain() == [GiveUp(award("b"), "m", "leaving"), GiveUp(award("d", 2), "heir", "leaving")]
    assert list(slots) == [key("a")]
    assert slots.free == 0


def test_a_slot_is_free_only_once_what_was_stopped_has_ended() -> None:
    slots = Slots(1, 1)
    take(slots, "a", "b")
    assert slots.on_cancel(key("a")) == [Stop(key("a"))]
    assert slots.on_cancel(key("a")) == []
    negotiator, orders = slots.on_ended(key("a"), 0.0)
    assert (negotiator, begun(orders)) == (None, ["b"])


def test_the_wait_is_told_before_it_begins() -> None:
    slots = Slots(2, 4)
    take(slots, "a", now=0.0, run_s=4.0)
    assert slots.wait_s(0.0) == 0.0, "a slot is free"
    take(slots, "b", now=1.0, run_s=1.0)
    assert slots.wait_s(1.0) == 1.0, "b ends first"
    assert slots.wait_s(1.5) == 0.5
    take(slots, "c", now=1.0, run_s=5.0)
    assert slots.wait_s(1.0) == 3.0, "c follows b, so a is next to end"
    slots.on_cancel(key("a"))
    assert slots.wait_s(1.0) == 1.0, "a stops now, so c begins at once, and the next one when b ends"


@pytest.mark.parametrize(
    ("slots", "ends", "queued", "expected"),
    [
        (1, [], [], 0.0),
        (2, [13.0], [], 0.0),
        (1, [13.0], [], 3.0),
        (1, [13.0], [2.0, 4.0], 9.0),
        (2, [11.0, 15.0], [2.0], 3.0),
        (2, [11.0, 15.0], [2.0, 7.0], 5.0),
        (1, [8.0], [], 2.0),  # two seconds late: as much again
        (2, [8.0, 11.0], [], 1.0),
    ],
)
def test_the_wait(slots: int, ends: list[float], queued: list[float], expected: float) -> None:
    assert wait_s(slots, ends, queued, 10.0) == expected
