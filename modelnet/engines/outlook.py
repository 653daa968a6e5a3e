"""What a worker can say of an engine's next answers: predictions from its state, and what its prefix cache holds."""

from __future__ import annotations

import time
from collections import defaultdict

from modelnet.engines.base import Chunk, Engine
from modelnet.engines.experience import Experience
from modelnet.engines.prediction import Ask, Predicted, Predictor
from modelnet.engines.prefix_cache import PrefixCache
from modelnet.estimates import Forecast
from modelnet.messages import Features

__all__ = ["Outlook"]

KEPT_EVERY = 64
"""Answers after which what was learned is written, so that little is lost with a process that is killed."""


class Outlook:
    """Of one engine. It hears of each request's beginning, chunks and end."""

    def __init__(self, engine: Engine, experience: Experience) -> None:
        self._engine, self._experience = engine, experience
        self._predictor = Predictor()
        self._caches: defaultdict[str | None, PrefixCache] = defaultdict(PrefixCache)
        """By adapter: what was computed with one is of no use to another."""
        self._counts: dict[str, int] = {}
        """Tokens of each answer at work; 0 before the first."""
        self._ended = 0

    def forget_cached(self) -> None:
        """The engine began anew: its cache is empty."""
        self._caches.clear()

    def recall(self) -> bool:
        """Whether there was something to begin with from an earlier run."""
        return self._experience.recall(self._predictor)

    def keep(self) -> None:
        """Write what was learned where the next run finds it."""
        self._experience.keep(self._predictor, self._engine.state())

    def expect(self, features: Features, max_tokens: int, adapter: str | None = None) -> Predicted | None:
        """When an input of these features would be answered; None while nothing is known of the engine."""
        size = features.input_bytes if features.prompt_bytes is None else features.prompt_bytes
        ask = Ask(size, self._caches[adapter].known_bytes(features.prefix), max_tokens)
        return self._predictor.predict(ask, self._engine.state(), time.monotonic())

    def begin(
        self,
        request: str,
        max_tokens: int,
        features: Features | None,
        said: Forecast | None,
        adapter: str | None = None,
    ) -> None:
        """A request is about to go to the engine: it counts in what is said from now on, and what is cached.

        `features`, `said`: what its bid was made of; None where there was none. `said` is None also for what should
        teach nothing, as it continues another's answer.
        """
        predicted = said if isinstance(said, Predicted) else None
        ask = predicted.ask if predicted is not None else Ask(0, 0, max_tokens)
        self._predictor.begin(request, ask, predicted, time.monotonic())
        self._counts[request] = 0
        state = self._engine.state()
        if features is not None and state.prefix_block:
            bytes_per_token = 1 / max(self._predictor.tokens_per_byte, 1e-3)
            answer, room = (
                tokens * bytes_per_token
                for tokens in (self._predictor.answer_tokens(max_tokens), state.kv_cache_tokens)
            )
            self._caches[adapter].put(features.prefix, features.prompt_bytes or 0, int(answer), room)

    def hear(self, request: str, chunk: Chunk) -> None:
        """A piece of its answer is there."""
        before = self._counts.get(request)
        if before is None:
            return
        if not before and chunk.completion_tokens:
            self._predictor.first(request, chunk.prompt_tokens, chunk.cached_tokens, time.monotonic())
        self._predictor.token(request, chunk.completion_tokens - before)
        self._counts[request] = chunk.completion_tokens

    def end(self, request: str, *, whole: bool) -> None:
        """It is off the engine. `whole`: it ended by itself."""
        made = self._counts.pop(request, None)
        self._predictor.end(request, made if whole else None, time.monotonic())
        self._ended += 1
        if self._ended % KEPT_EVERY == 0:
            self.keep()
