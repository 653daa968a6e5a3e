"""Reference prices: from others' asks, out of reach of whoever they bound."""

from __future__ import annotations

from modelnet.market import ReferencePrices
from modelnet.market import reference as bounds


def test_nothing_is_known_before_the_first_ask() -> None:
    assert ReferencePrices().reference("a", "w") is None


def test_the_median_of_the_others() -> None:
    prices = ReferencePrices()
    for worker, price in {"w": 1000, "x": 10, "y": 20, "z": 30}.items():
        prices.learn("a", worker, price)
    assert prices.reference("a", "w") == 20
    assert prices.reference("a", "y") == 30  # of 10, 30 and 1000
    assert prices.reference("a", "new") == 20  # an even number: the lower of the middle two
    assert prices.reference("b", "w") is None


def test_only_the_last_ask_of_a_worker_counts() -> None:
    prices = ReferencePrices()
    for price in (10, 50, 70):
        prices.learn("a", "x", price)
    assert prices.reference("a", "w") == 70


def test_a_monopolist_is_held_to_the_first_ask_ever_seen() -> None:
    prices = ReferencePrices()
    prices.learn("a", "w", 40)
    prices.learn("a", "w", 4000)
    assert prices.reference("a", "w") == 40


def test_one_cannot_raise_ones_own_reference() -> None:
    prices = ReferencePrices()
    prices.learn("a", "x", 10)
    before = prices.reference("a", "w")
    prices.learn("a", "w", 10**9)
    assert prices.reference("a", "w") == before


def test_it_is_bounded_and_forgets_the_longest_unused() -> None:
    prices = ReferencePrices()
    for n in range(bounds._WORKERS + 1):
        prices.learn("a", f"w{n}", n)
    assert (
        prices.reference("a", f"w{bounds._WORKERS}") == bounds._WORKERS // 2
    )  # the lower median of 1 … 63: w0 is forgotten
    for n in range(bounds._CAPABILITIES):
        prices.learn(f"c{n}", "x", n)
    assert prices.reference("a", "x") is None
    assert prices.reference("c0", "x") == 0
