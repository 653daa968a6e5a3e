"""What steps cost, learned from steps of a known cost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet.engines.steps import Pace, StepModel

TRUE = Pace(base=0.004, per_decode=0.0003, per_prefill=0.00012, per_held=1e-7)


def learned(chance: random.Random, model: StepModel | None = None, *, slower: float = 1.0) -> StepModel:
    """From steps of which few compute prompts, and one in a hundred is held up."""
    model = model or StepModel()
    for _ in range(2000):
        decoding, held = chance.randint(1, 64), chance.randint(0, 40_000)
        prefill = chance.randint(16, 2048) if chance.random() < 0.05 else 0
        seconds = slower * TRUE.step_s(decoding, prefill, held) * chance.lognormvariate(0, 0.1)
        model.learn(decoding, prefill, held, seconds * (20 if chance.random() < 0.01 else 1))
    return model


@pytest.mark.parametrize("seed", range(5))
def test_costs_are_found_among_noise_and_hold_ups(seed: int) -> None:
    pace = learned(random.Random(seed)).pace()
    assert pace is not None
    for decoding, prefill, held in ((1, 0, 0), (32, 0, 20_000), (8, 1024, 10_000), (64, 2048, 40_000)):
        assert pace.step_s(decoding, prefill, held) == pytest.approx(TRUE.step_s(decoding, prefill, held), rel=0.2)


def test_the_first_steps_already_tell_something() -> None:
    model = StepModel()
    assert model.pace() is None
    model.learn(0, 500, 500, 0.1)
    pace = model.pace()
    assert pace is not None
    assert pace.step_s(0, 500, 500) == pytest.approx(0.1)
    for _ in range(10):
        model.learn(4, 0, 600, 0.01)
    pace = model.pace()
    assert pace is not None
    assert pace.step_s(0, 500, 500) == pytest.approx(0.1, rel=0.2)
    assert pace.step_s(4, 0, 600) == pytest.approx(0.01, rel=0.2)


def test_a_change_is_followed() -> None:
    model = StepModel()
    for seconds in (0.01, 0.05):
        for _ in range(300):
            model.learn(8, 0, 1000, seconds)
    pace = model.pace()
    assert pace is not None
    assert pace.step_s(8, 0, 1000) == pytest.approx(0.05, rel=0.1)


steps = st.tuples(st.integers(0, 300), st.integers(0, 10_000), st.integers(0, 10**6), st.floats(1e-5, 100))


@given(st.lists(steps, max_size=60))
def test_nothing_costs_less_than_nothing(made: list[tuple[int, int, int, float]]) -> None:
    model = StepModel()
    for step in made:
        model.learn(*step)
    pace = model.pace()
    assert (pace is None) == (not any(decoding + prefill for decoding, prefill, _, _ in made))
    if pace is not None:
        assert min(pace.base, pace.per_decode, pace.per_prefill, pace.per_held) >= 0
        assert pace.step_s(300, 10_000, 10**6) > 0


def test_what_was_saved_is_where_the_next_run_begins() -> None:
    model = learned(random.Random(1))
    again = StepModel()
    again.recall(model.save())
    old, new = model.pace(), again.pace()
    assert old is not None
    assert new is not None
    assert new.step_s(16, 512, 5000) == pytest.approx(old.step_s(16, 512, 5000), rel=0.2)
    slower = learned(random.Random(2), again, slower=5).pace()
    assert slower is not None
    assert slower.step_s(16, 0, 5000) > 3 * old.step_s(16, 0, 5000), "it is another machine by now"


def test_recorded_steps_of_vllm_are_foretold() -> None:
    """Those that bench/steps.py has recorded, each before it is learned from."""
    recorded = json.loads((Path(__file__).parents[2] / "bench" / "results" / "steps.json").read_text())
    model, errors = StepModel(), list[float]()
    for decoding, prefill, held, seconds in recorded:
        if (pace := model.pace()) is not None:
            errors.append(abs(pace.step_s(decoding, prefill, held) / seconds - 1))
        model.learn(decoding, prefill, held, seconds)
    assert median(errors[50:]) < 0.1


@pytest.mark.parametrize("saved", [[[1]], [[0, 0, 0, 1, 1, 1, 1, -1]], [["a"] * 8], [None], [[0, 0, 0, 1, 1, 1, 1, 0]]])
def test_garbage_is_refused_whole(saved: list[list[float]]) -> None:
    model = StepModel()
    model.learn(1, 0, 0, 1.0)
    with pytest.raises((ValueError, TypeError)):
        model.recall(saved)
    assert model.pace() is not None
