"""Predictions against an engine that is simulated: continuous batching, prompts before answers, a prefix cache."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from modelnet.engines.base import EngineState
from modelnet.engines.experience import Experience
from modelnet.engines.prediction import Ask, Predicted, Predictor
from modelnet.engines.steps import Pace, StepModel
from modelnet.estimates import Accuracy
from tests.messages.samples import json_values

PACE = Pace(0.004, 0.0003, 0.0001)
TOKENS_PER_BYTE = 0.25


@dataclass
class Request:
    """One at the simulated engine."""

    id: str
    prompt: int
    cached: int
    answer: int
    made: int = 0


@dataclass
class Machine:
    """Steps as vLLM makes them: every prompt that is there is computed in the next, and each that runs gets a token."""

    chance: random.Random
    predictor: Predictor = field(default_factory=Predictor)
    steps: StepModel = field(default_factory=StepModel)
    max_running: int = 16
    kv_tokens: int = 100_000
    pace: Pace = PACE
    now: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    whole: Accuracy = field(default_factory=Accuracy)
    first: Accuracy = field(default_factory=Accuracy)
    said: dict[str, tuple[Predicted, float]] = field(default_factory=dict)

    def state(self) -> EngineState:
        held = sum(one.prompt + one.made for one in self.running)
        return EngineState(
            running=len(self.running),
            waiting=len(self.waiting),
            max_running=self.max_running,
            kv_cache_usage=min(held / self.kv_tokens, 1.0),
            step_times=self.steps,
            kv_cache_tokens=self.kv_tokens,
            prefix_block=16,
        )

    def arrive(self, number: int, prompt: int, cached: int, max_tokens: int, answer: int) -> None:
        ask = Ask(int(prompt / TOKENS_PER_BYTE), int(cached / TOKENS_PER_BYTE), max_tokens)
        predicted = self.predictor.predict(ask, self.state(), self.now)
        request = Request(str(number), prompt, cached, answer)
        self.predictor.begin(request.id, ask, predicted, self.now)
        if predicted is not None:
            self.said[request.id] = predicted, self.now
        self.waiting.append(request)

    def step(self) -> None:
        prefill = 0
        fresh = []
        while self.waiting and len(self.running) < self.max_running:
            held = sum(one.prompt + one.answer for one in self.running)
            if self.running and held + self.waiting[0].prompt + self.waiting[0].answer > self.kv_tokens:
                break
            fresh.append(one := self.waiting.popleft())
            prefill += one.prompt - one.cached
            self.running.append(one)
        decoding = len(self.running) - len(fresh)
        held = sum(one.prompt + one.made for one in self.running)
        seconds = self.pace.step_s(decoding, prefill) * self.chance.lognormvariate(0, 0.1)
        self.now += seconds
        self.steps.learn(decoding, prefill, held, seconds)
        for one in list(self.running):
            one.made += 1
            if one.made == 1:
                self.predictor.first(one.id, one.prompt, one.cached, self.now)
                if one.id in self.said:
                    said, at = self.said[one.id]
                    assert said.first_ms is not None
                    assert said.first_p90_ms is not None
                    self.first.note(said.first_ms, said.first_p90_ms, (self.now - at) * 1e3)
            self.predictor.token(one.id, 1)
            if one.made >= one.answer:
                self.running.remove(one)
                self.predictor.end(one.id, one.made, self.now)
                if one.id in self.said:
                    said, at = self.said[one.id]
                    self.whole.note(said.p50_ms, said.p90_ms, (self.now - at) * 1e3)

    def play(self, requests: int, rate: float, *, share: float = 0.5, spread: float = 0.3) -> None:
        """A trace of arrivals, until all are answered. `share`: of max_tokens that answers need, in the middle."""
        chance, due = self.chance, self.now
        for number in range(requests):
            due += chance.expovariate(rate)
            while self.now < due:
                if not (self.running or self.waiting):
                    self.now = due
                    break
                self.step()
            prompt = int(chance.lognormvariate(6, 0.8)) + 16
            cached = int(prompt * chance.choice([0, 0, 0.5, 0.9]))
            most = chance.choice([32, 128, 256])
            answer = min(max(int(most * share * chance.lognormvariate(0, spread)), 1), most)
            self.arrive(number, prompt, cached, most, answer)
        while self.running or self.waiting:
            self.step()


@pytest.mark.parametrize("rate", [1.0, 10.0, 25.0])
def test_nine_of_ten_are_done_within_their_90th_percentile(rate: float) -> None:
    machine = Machine(random.Random(7))
    machine.play(300, rate)
    machine.whole, machine.first, machine.said = Accuracy(), Accuracy(), {}
    machine.play(600, rate)
    for accuracy in (machine.whole, machine.first):
        assert accuracy.count == 600
        assert accuracy.coverage is not None
        assert accuracy.median_error is not None
        assert 0.8 <= accuracy.coverage <= 0.98
        assert accuracy.median_error < 0.35


def taught(**changes: Any) -> Machine:
    machine = Machine(random.Random(3), **changes)
    machine.play(300, 5.0)
    return machine


def expect(machine: Machine, prompt_bytes: int = 4000, known_bytes: int = 0, max_tokens: int = 64) -> Predicted:
    found = machine.predictor.predict(Ask(prompt_bytes, known_bytes, max_tokens), machine.state(), machine.now)
    assert found is not None
    return found


def first_ms(predicted: Predicted) -> float:
    assert predicted.first_ms is not None
    return predicted.first_ms


def test_a_cached_beginning_saves_its_computing() -> None:
    machine = taught()
    saved_ms = first_ms(expect(machine)) - first_ms(expect(machine, known_bytes=3200))
    assert saved_ms == pytest.approx(3200 * TOKENS_PER_BYTE * PACE.per_prefill * 1e3, rel=0.4)
    assert expect(machine, known_bytes=9999).reckoned_first_s > 0, "more than there is is no more than all"


def test_a_cache_that_does_not_hold_what_was_believed_is_believed_less() -> None:
    machine = taught()
    for number in range(200):
        ask = Ask(4000, 3200, 8)
        machine.predictor.begin(f"r{number}", ask, machine.predictor.predict(ask, machine.state(), 0.0), 0.0)
        machine.predictor.first(f"r{number}", 1000, 0, 0.1)
        machine.predictor.end(f"r{number}", 8, 0.2)
    uncached, believed = expect(machine).reckoned_first_s, expect(machine, known_bytes=3200).reckoned_first_s
    assert believed == pytest.approx(uncached, rel=0.25)


def test_longer_answers_longer_prompts_and_more_company_take_longer() -> None:
    machine = taught()
    idle = expect(machine)
    assert expect(machine, max_tokens=256).p50_ms > idle.p50_ms
    assert first_ms(expect(machine, prompt_bytes=16_000)) > first_ms(idle)
    for number in range(12):
        machine.arrive(1000 + number, 2000, 0, 128, 100)
    crowded = expect(machine)
    assert first_ms(crowded) > first_ms(idle) + 11 * 2000 * PACE.per_prefill * 1e3 * 0.5, "their prompts come first"
    machine.step()
    assert crowded.p50_ms > expect(machine).p50_ms > idle.p50_ms


@pytest.mark.parametrize("changes", [{"max_running": 4}, {"kv_tokens": 9000}])
def test_a_full_batch_or_cache_makes_wait(changes: dict[str, Any]) -> None:
    machine, roomy = taught(**changes), taught()
    for one in (machine, roomy):
        for number in range(6):
            one.arrive(1000 + number, 1500, 0, 256, 200)
        one.step()
    assert first_ms(expect(machine)) > 3 * first_ms(expect(roomy))


def test_answers_teach_their_length() -> None:
    short, long = Machine(random.Random(1)), Machine(random.Random(1))
    short.play(200, 5.0, share=0.1)
    long.play(200, 5.0, share=0.9)
    assert short.predictor.answer_tokens(1000) < 200
    assert long.predictor.answer_tokens(1000) > 800


def test_a_request_that_was_cut_off_teaches_nothing_and_is_forgotten() -> None:
    machine = taught()
    before = machine.predictor.save(machine.state())
    ask = Ask(4000, 0, 64)
    machine.predictor.begin("x", ask, expect(machine), machine.now)
    machine.predictor.end("x", None, machine.now + 99)
    machine.predictor.end("x", 64, machine.now + 99)
    machine.predictor.first("x", 1, 1, 0.0)
    machine.predictor.token("unknown", 1)
    assert machine.predictor.save(machine.state()) == before


def test_nothing_is_said_before_a_step_was_seen() -> None:
    assert Predictor().predict(Ask(1, 0, 1), Machine(random.Random(0)).state(), 0.0) is None
    blind = EngineState(running=0, waiting=0, max_running=1, kv_cache_usage=0.0)
    assert Predictor().predict(Ask(1, 0, 1), blind, 0.0) is None


# ---------------------------------------------------------------------- between runs


def test_a_restarted_worker_bids_as_before(tmp_path: Path) -> None:
    machine = taught()
    Experience(tmp_path / "deep" / "er", "w", "m", "vLLM").keep(machine.predictor, machine.state())
    again = Machine(random.Random(5), now=machine.now)
    assert Experience(tmp_path / "deep" / "er", "w", "m", "vLLM").recall(again.predictor)
    old, new = expect(machine), expect(again)
    assert new.p50_ms == pytest.approx(old.p50_ms, rel=0.25)
    assert first_ms(new) == pytest.approx(first_ms(old), rel=0.25)
    again.play(50, 5.0)
    assert again.whole.coverage is not None
    assert again.whole.coverage > 0.7
    assert list((tmp_path / "deep" / "er").iterdir()) == [tmp_path / "deep" / "er" / "w.json"]


def test_what_was_learned_of_another_model_is_not_taken(tmp_path: Path) -> None:
    machine = taught()
    Experience(tmp_path, "w", "m", "vLLM").keep(machine.predictor, machine.state())
    assert not Experience(tmp_path, "w", "other", "vLLM").recall(Predictor())
    assert not Experience(tmp_path, "w", "m", "NumPy").recall(Predictor())
    assert not Experience(tmp_path, "nobody", "m", "vLLM").recall(Predictor())


def test_a_file_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    machine = taught()
    (tmp_path / "file").write_text("")
    Experience(tmp_path / "file", "w", "m", "vLLM").keep(machine.predictor, machine.state())


@given(json_values)
def test_a_file_of_anything_is_no_experience(body: Any) -> None:
    fresh = Predictor()
    before = fresh.save(Machine(random.Random(0)).state())
    for saved in (body, {**before, "steps": body}, {**before, "first": body}, {**before, "tokens": body}):
        try:
            fresh.recall(saved)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        json.dumps(fresh.save(Machine(random.Random(0)).state()), allow_nan=False)


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"format": 1}', '{"format":1,"model":"m","software":"vLLM"}'])
def test_a_torn_file_is_none(tmp_path: Path, body: str) -> None:
    (tmp_path / "w.json").write_text(body)
    assert not Experience(tmp_path, "w", "m", "vLLM").recall(Predictor())
