"""The simulation itself: small runs of it, and that it keeps its books."""

from __future__ import annotations

import numpy as np
import pytest

from bench.market import run, table, verdict
from bench.market_scale import measure
from bench.marketplace import ATTEMPTS, capacity, network, play
from bench.routers import BASELINES, Clairvoyant, Market


def test_the_market_is_ahead_in_a_small_run() -> None:
    scores, decision_s = run((0.85,), 2, 1500)
    assert decision_s < 2e-3
    by = {name: [one for one in scores if one.router == name] for name in {one.router for one in scores}}
    welfare = {name: sum(one.welfare for one in each) / len(each) for name, each in by.items()}
    assert max(welfare, key=lambda name: welfare[name]) == "oracle"
    assert welfare["market"] > max(welfare[kind.name] for kind in BASELINES)
    assert "market" in table(scores, 0.85)
    assert len(verdict(scores)) == 1


def test_the_same_seed_plays_the_same() -> None:
    one, other = (play(world := network(3, 400, 0.7), Market(world)) for _ in range(2))
    assert one.ends == other.ends


@pytest.mark.parametrize("kind", [*BASELINES, Market, Clairvoyant], ids=lambda kind: kind.__name__)
def test_every_task_ends_once_and_costs_what_was_worked(kind: type) -> None:
    world = network(5, 400, 1.2)
    router = Market(world) if kind is Market else kind(world, 0)
    played = play(world, router)
    assert [end.job.number for end in played.ends] == list(range(400))
    for end in played.ends:
        assert 0 <= end.time_s <= end.job.deadline_s + 1e-9
        assert end.in_time >= end.good
        assert (end.cost > 0) >= end.in_time
    assert sum(played.taken) <= 400 * ATTEMPTS


def test_arrivals_come_at_the_rate_that_is_asked_for() -> None:
    world = network(1, 20_000, 0.5)
    rate = 20_000 / world.jobs[-1].at
    assert rate / capacity(world.sellers) == pytest.approx(0.5, rel=0.1)
    gaps = np.diff([job.at for job in world.jobs])
    assert gaps.std() > 1.05 * gaps.mean()  # in bursts


def test_the_scale_bench_runs() -> None:
    found = measure(50, 200)
    assert found.memory_mb > 0
    assert found.decide_us < 5000
