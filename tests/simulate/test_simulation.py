"""Histories through random faults: whatever is lost, repeated, late, frozen or dead, every task ends once."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulate.history import History

SEEDS = 3000
GROUPS = 10


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_task_ends_once_and_its_readers_see_why(group: int) -> None:
    for seed in range(group, SEEDS, GROUPS):
        history = History(seed)
        try:
            history.play()
            history.check()
        except AssertionError as error:
            raise AssertionError(f"{error} (replay with python -m tests.simulate --seed {seed})") from error


def test_the_faults_reach_every_kind_of_end() -> None:
    ends, events = Counter[str](), Counter[str]()
    for seed in range(1000):
        history = History(seed)
        history.play()
        ends.update(final.status for final in history.ends())
        ends.update(final.error.code for final in history.ends() if final.error)
        events.update(history.kinds())
    wanted = {"completed", "failed", "expired", "cancelled", "worker_error", "worker_lost", "poison", "no_funds"}
    assert wanted <= set(ends), ends
    kinds = ("adopted", "continued", "reset", "queued", "leaving", "paid a part", "settled", "lost_deposit")
    assert min(events[kind] for kind in kinds) > 5, events


def test_a_seed_is_a_history() -> None:
    one, other = History(7), History(7)
    one.play()
    other.play()
    assert one.world.journal == other.world.journal
