"""Negotiations through random faults: whatever is lost, repeated, late or dead, a task ends once."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.market.world import World

SEEDS = 600
GROUPS = 6


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_history_ends_in_one_final(group: int) -> None:
    for seed in range(group, SEEDS, GROUPS):
        world = World(seed)
        try:
            world.play()
            world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_faults_reach_every_kind_of_end() -> None:
    ends: Counter[str] = Counter()
    takeovers = 0
    for seed in range(200):
        world = World(seed)
        world.play()
        ends[world.journal[-1][1].status] += 1  # type: ignore[union-attr]
        takeovers += len(world.shells) > 1
    assert set(ends) == {"completed", "failed", "expired", "cancelled"}, ends
    assert takeovers > 20


def test_a_seed_is_a_history() -> None:
    one, other = World(7), World(7)
    one.play()
    other.play()
    assert one.journal == other.journal
