"""When an engine will have answered a request: from what it has in hand, and what it has taken so far. Pure.

What is reckoned: the wait for a place in the batch or room in the cache, the prompts that are computed first, the
prompt's own uncached tokens, then a step for each token of the answer, in a batch as large as it is now and slowed by
prompts that go on arriving. What is learned: tokens in a byte of prompt, how much of what is believed to be cached is,
which share of `max_tokens` answers need, and how far the reckoning was off, whose quantiles are the spread that is
claimed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelnet.engines.base import EngineState
from modelnet.engines.steps import Pace, StepModel
from modelnet.estimates import Forecast, quantile

__all__ = ["Ask", "Predicted", "Predictor"]

_WINDOW = 128
"""Requests that quantiles are taken over."""

_SEEDS = tuple(0.4 * z for z in (-1.3, -0.8, -0.4, -0.1, 0.1, 0.4, 0.8, 1.3))
"""Errors that are assumed before any is known, as logarithms: 90th percentiles are then 1.6 times medians."""

_STEP_TOKENS = 2048
"""Prompt tokens that one step computes at most: vLLM's default."""

_MOST_BUSY = 0.8
"""The share of the time that is believed to go into prompts that arrive meanwhile, at most."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, by what is known of it before its prompt is."""

    prompt_bytes: int
    known_bytes: int
    """Those at its beginning that are believed to be in the prefix cache."""
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted(Forecast):
    """A forecast, and what was reckoned before it was corrected. In seconds."""

    ask: Ask
    block: int
    """Tokens in a block of the prefix cache."""
    reckoned_first_s: float
    reckoned_s: float


class _Share:
    """A ratio of two sums in which what is long past fades."""

    def __init__(self, ratio: float, weight: float) -> None:
        self._up, self._down = ratio * weight, weight

    def learn(self, up: float, down: float) -> None:
        if down > 0:
            kept = 1 - 1 / _WINDOW
            self._up, self._down = self._up * kept + up, self._down * kept + down

    @property
    def ratio(self) -> float:
        return self._up / self._down

    def save(self) -> list[float]:
        return [self._up, self._down]

    def recall(self, saved: Iterable[float]) -> None:
        up, down = (float(value) for value in saved)
        if not (math.isfinite(up) and math.isfinite(down) and up >= 0 and down > 0):
            raise ValueError("a ratio is of two sums")
        self._up, self._down = up, down


class _Window:
    """The last values of something."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values = deque(values, maxlen=_WINDOW)
        self._sorted: list[float] = []
        """The same, once they were asked about."""

    def learn(self, value: float) -> None:
        self._values.append(value)
        self._sorted = []

    def at(self, share: float, default: float = 1.0) -> float:
        self._sorted = self._sorted or sorted(self._values)
        return quantile(self._sorted, share) if self._sorted else default

    def save(self) -> list[float]:
        return list(self._values)

    def recall(self, saved: Iterable[float]) -> None:
        values = [float(value) for value in saved]
        if not all(map(math.isfinite, values)):
            raise ValueError("a window holds numbers")
        self._values, self._sorted = deque(values, maxlen=_WINDOW), []


@dataclass(slots=True)
class _InHand:
    """A request at work."""

    since: float
    predicted: Predicted | None
    prompt: float
    uncached: float
    """Tokens of its prompt, those not cached; estimates until its first token."""
    left: float
    """Tokens of its answer that are expected still to come."""
    started: bool = False


class Predictor:
    """Predicts the requests of one engine, and learns from those that it was given. Times are handed in, in seconds."""

    def __init__(self) -> None:
        self._tokens = _Share(0.3, 64.0)
        """Tokens in a byte of prompt."""
        self._kept = _Share(1.0, 64.0)
        """Of what was believed to be cached, the part that was."""
        self._answers = _Window()
        """Shares of `max_tokens` that whole answers took."""
        self._first, self._whole = _Window(_SEEDS), _Window(_SEEDS)
        """Logarithms of actual times over reckoned ones."""
        self._arrivals = deque[tuple[float, float]](maxlen=_WINDOW)
        """When requests came, and their uncached tokens."""
        self._in_hand: dict[str, _InHand] = {}
        self._steps: list[list[float]] | None = None
        """Of an earlier run, until the engine has a model of its steps that can be told."""

    @property
    def tokens_per_byte(self) -> float:
        """Tokens in a byte of prompt."""
        return self._tokens.ratio

    def answer_tokens(self, max_tokens: int) -> float:
        """Tokens that an answer is expected to have."""
        return max(max_tokens * self._answers.at(0.5), 1.0)

    def predict(self, ask: Ask, state: EngineState, now: float) -> Predicted | None:
        """When `ask` would be answered if it came now; None while nothing is known of the engine's steps."""
        pace = self._pace(state)
        if pace is None:
            return None
        first_s, whole_s = self._reckon(ask, state, pace, now)
        first = [first_s * math.exp(self._first.at(share)) for share in (0.5, 0.9)]
        whole = [whole_s * math.exp(self._whole.at(share)) for share in (0.5, 0.9)]
        return Predicted(
            p50_ms=max(whole[0], first[0]) * 1e3,
            p90_ms=max(*whole, *first) * 1e3,
            first_ms=first[0] * 1e3,
            first_p90_ms=max(first) * 1e3,
            ask=ask,
            block=state.prefix_block,
            reckoned_first_s=first_s,
            reckoned_s=whole_s,
        )

    def begin(self, request: str, ask: Ask, predicted: Predicted | None, now: float) -> None:
        """A request is given to the engine. `predicted`: what was said of it, if it should be learned from."""
        prompt, uncached = self._prompt(ask, predicted.block if predicted is not None else 0)
        self._arrivals.append((now, uncached))
        self._in_hand[request] = _InHand(now, predicted, prompt, uncached, self.answer_tokens(ask.max_tokens))

    def first(self, request: str, prompt_tokens: int, cached_tokens: int, now: float) -> None:
        """Its first token is there."""
        found = self._in_hand.get(request)
        if found is None or found.started:
            return
        found.started = True
        found.prompt, found.uncached = prompt_tokens, prompt_tokens - cached_tokens
        if (said := found.predicted) is None:
            return
        believed = self._believed(said.ask, prompt_tokens, said.block)
        self._tokens.learn(prompt_tokens, said.ask.prompt_bytes)
        if believed:
            self._kept.learn(min(cached_tokens, believed), believed)
        self._first.learn(_error(now - found.since, said.reckoned_first_s))

    def token(self, request: str, tokens: int) -> None:
        """So many more tokens of its answer are there."""
        if (found := self._in_hand.get(request)) is not None:
            found.left = max(found.left - tokens, 1.0)

    def end(self, request: str, completion_tokens: int | None, now: float) -> None:
        """It is off the engine. `completion_tokens`: of a whole answer; None for one that was cut off."""
        found = self._in_hand.pop(request, None)
        if found is None or (said := found.predicted) is None or completion_tokens is None:
            return
        self._answers.learn(min(completion_tokens / max(said.ask.max_tokens, 1), 1.0))
        self._whole.learn(_error(now - found.since, said.reckoned_s))

    def save(self, state: EngineState) -> dict[str, Any]:
        """What was learned, as plain JSON."""
        steps = state.step_times.save() if state.step_times is not None else []
        return {
            "tokens": self._tokens.save(),
            "kept": self._kept.save(),
            "answers": self._answers.save(),
            "first": self._first.save(),
            "whole": self._whole.save(),
            "steps": steps or self._steps or [],
        }

    def recall(self, saved: Mapping[str, Any]) -> None:
        """Begin with what an earlier run has saved. Raises `ValueError`, `KeyError` or `TypeError` for all else."""
        fresh = Predictor()
        for name in ("tokens", "kept", "answers", "first", "whole"):
            getattr(fresh, f"_{name}").recall(saved[name])
        StepModel().recall(saved["steps"])  # refuses what would not do later
        for name in ("tokens", "kept", "answers", "first", "whole"):
            setattr(self, f"_{name}", getattr(fresh, f"_{name}"))
        self._steps = [list(cell) for cell in saved["steps"]]

    # ------------------------------------------------------------------ reckoning

    def _pace(self, state: EngineState) -> Pace | None:
        if state.step_times is None:
            return None
        if self._steps is not None:
            state.step_times.recall(self._steps)
            self._steps = None
        return state.step_times.pace()

    def _prompt(self, ask: Ask, block: int) -> tuple[float, float]:
        """Tokens of a prompt, and those that are not cached."""
        prompt = max(ask.prompt_bytes * self.tokens_per_byte, 1.0)
        return prompt, max(prompt - self._believed(ask, prompt, block) * self._kept.ratio, 1.0)

    def _believed(self, ask: Ask, prompt: float, block: int) -> float:
        """Tokens of a prompt that should be in the cache. Its last is always computed."""
        known = min(ask.known_bytes * self.tokens_per_byte, prompt - 1)
        return known // block * block if block else 0.0

    def _reckon(self, ask: Ask, state: EngineState, pace: Pace, now: float) -> tuple[float, float]:
        """Seconds to the first token and to the last."""
        prompt, uncached = self._prompt(ask, state.prefix_block)
        answer = self.answer_tokens(ask.max_tokens)
        at_work = list(self._in_hand.values())
        behind = [one for one in at_work if not one.started]
        crowd = max(state.running + state.waiting, len(at_work))
        decoding = min(max(crowd - len(behind), 0), state.max_running)
        held = state.kv_cache_usage * state.kv_cache_tokens
        step_s = pace.step_s(decoding, 0, held)
        to_compute = sum(one.uncached for one in behind) + uncached
        first_s = pace.step_s(decoding, to_compute, held) + (step_s / 2 if decoding else 0.0)
        first_s += to_compute // _STEP_TOKENS * step_s
        first_s += self._wait_s(prompt + answer, crowd, at_work, state, step_s)
        batch = min(crowd + 1, max(state.max_running, 1))
        decode_s = (answer - 1) * pace.step_s(batch, 0, held + prompt) / (1 - self._busy(pace, now))
        return first_s, first_s + decode_s

    def _wait_s(self, tokens: float, crowd: int, at_work: list[_InHand], state: EngineState, step_s: float) -> float:
        """Until a place in the batch, and room for so many tokens in the cache, are there."""
        if not at_work:
            return 0.0
        places = max(crowd + 1 - state.max_running, 0)
        if state.kv_cache_tokens:
            behind = sum(one.prompt + one.left for one in at_work if not one.started)
            growth = sum(one.left for one in at_work if one.started)
            free = (1 - state.kv_cache_usage) * state.kv_cache_tokens - behind - growth
            each = sum(one.prompt + one.left for one in at_work) / len(at_work)
            places = max(places, math.ceil((tokens - free) / each))
        if places <= 0:
            return 0.0
        mean_left = sum(one.left for one in at_work) / len(at_work)
        return places * mean_left * step_s / min(len(at_work), max(state.max_running, 1))

    def _busy(self, pace: Pace, now: float) -> float:
        """The share of the time that goes into prompts that arrive, as of late."""
        if len(self._arrivals) < 2:
            return 0.0
        span_s = max(now - self._arrivals[0][0], 1e-3)
        tokens = sum(uncached for _, uncached in self._arrivals)
        return min(pace.per_prefill * tokens / span_s, _MOST_BUSY)


def _error(actual_s: float, reckoned_s: float) -> float:
    """As a logarithm; a factor of twenty at most, so that one request that hung says no more than that it was late."""
    return min(max(math.log(max(actual_s, 1e-6) / max(reckoned_s, 1e-6)), -3.0), 3.0)
