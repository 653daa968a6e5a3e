"""Scarcity: when a worker asks more than its work costs, how far, and how it falls again."""

from __future__ import annotations

from modelnet.market.scarcity import LEAST, MOST, Scarcity


def busy(times: int, *, price: int = 100, run_s: float = 2.0) -> Scarcity:
    """One that has bid for such work, and was full so many times since."""
    scarcity = Scarcity()
    scarcity.learn(price, run_s)
    for _ in range(times):
        scarcity.asked(full=True)
    return scarcity


def test_it_asks_its_price_until_it_was_full() -> None:
    scarcity = Scarcity()
    for price in (100, 300, 0, 7):
        scarcity.asked(full=False)
        scarcity.learn(price, 1.0)
        assert scarcity.ask(price, 1.0, waits=True) == price


def test_it_asks_more_with_each_request_that_finds_it_full() -> None:
    asked = [busy(times).ask(100, 2.0, waits=True) for times in (0, 1, 20, 40, 400)]
    assert asked[:2] == [100, 100 + int(100 * LEAST)]
    assert asked == sorted(set(asked))
    assert asked[-1] == 100 + 100 * MOST, "that is the most"


def test_what_begins_at_once_displaces_nobody() -> None:
    assert busy(400).ask(100, 2.0, waits=False) == 100


def test_time_is_what_is_scarce() -> None:
    scarcity = busy(400)
    assert scarcity.ask(100, 4.0, waits=True) - 100 == 2 * (scarcity.ask(100, 2.0, waits=True) - 100)
    assert scarcity.ask(0, 2.0, waits=True) == 100 * MOST, "also to what costs nothing by itself"
    assert busy(400, price=0).ask(0, 2.0, waits=True) == 0, "who gives its work away goes on with it"


def test_it_falls_with_each_request_that_finds_room() -> None:
    scarcity, asked = busy(400), list[int]()
    for _ in range(300):
        scarcity.asked(full=False)
        asked.append(scarcity.ask(100, 2.0, waits=True))
    assert asked == sorted(asked, reverse=True)
    assert (asked[13] - 100) / (100 * MOST) < 0.5, "by half in 14"
    assert asked[-1] == 100
    assert scarcity.charge == 0
