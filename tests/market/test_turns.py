"""Of several negotiators each goes first in turn."""

from __future__ import annotations

import pytest

from modelnet.market import Turns
from modelnet.market.turns import REMEMBERED_S, TURN_S

NAMES = ("n1", "n2", "n3")


def everybody() -> list[Turns]:
    """Three that have heard one another."""
    all_of_them = [Turns(name) for name in NAMES]
    for me, turns in zip(NAMES, all_of_them, strict=True):
        for other in NAMES:
            if other != me:
                turns.hear(other, 100.0)
    return all_of_them


def test_who_is_alone_never_waits() -> None:
    assert Turns("n1").wait_s("w", 7, 1.0, 0.0) == 0.0
    assert Turns("n1").wait_s("w", None, 1.0, 0.0) == 0.0


@pytest.mark.parametrize("worker", ["w", "v", "worker-17"])
def test_each_goes_first_in_turn_and_none_beside_another(worker: str) -> None:
    first = []
    for number in range(6):
        waits = [turns.wait_s(worker, number, 10.0, 101.0) for turns in everybody()]
        assert sorted(waits) == [0.0, TURN_S, 2 * TURN_S]
        first.append(waits.index(0.0))
    assert sorted(first[:3]) == [0, 1, 2]
    assert first[:3] == first[3:]


def test_who_comes_without_a_number_lets_all_others_go_first() -> None:
    assert [turns.wait_s("w", None, 10.0, 101.0) for turns in everybody()] == [2 * TURN_S] * 3


def test_a_short_task_is_worth_a_short_wait() -> None:
    assert max(turns.wait_s("w", 0, 0.001, 101.0) for turns in everybody()) == pytest.approx(0.001)


def test_who_awards_nothing_takes_no_turn() -> None:
    turns = everybody()[0]
    turns.hear("n2", 103.0)
    later = 100.0 + REMEMBERED_S + 1
    assert {turns.wait_s("w", number, 10.0, later) for number in range(4)} == {0.0, TURN_S}
    assert turns.wait_s("w", 1, 10.0, later + REMEMBERED_S) == 0.0
