"""An engine that is kept running: one that dies, or stops making progress, is replaced by a new one of its kind."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing

import structlog

from modelnet.engines.base import Ability, Chunk, Embeddings, Engine, EngineState, Prompt, Sampling, Scores
from modelnet.engines.errors import EngineDead, EngineError

__all__ = ["STALL_S", "KeptEngine"]

log = structlog.get_logger(__name__)

STALL_S = 120.0
"""An engine that has work and makes no step for so long hangs. A step takes seconds at most, the first few, in which
kernels are compiled, a minute or two."""
LOOK_S = 1.0
CLOSE_S = 30.0
"""One that cannot be closed in this time cannot be replaced: a thread of this process hangs in it."""
BACKOFF_S = (0.5, 2.0, 10.0, 30.0, 60.0)


class KeptEngine:
    """An `Engine` by whichever engine runs now. While there is none, its requests end with `EngineDead`."""

    def __init__(self, open_one: Callable[[], Engine], *, stall_s: float = STALL_S, comes_back: bool = False) -> None:
        """`open_one` opens an engine, not started. `comes_back`: one whose model runs elsewhere and is found again by
        the engine itself, so that it is neither asked for its health here nor replaced."""
        self._open, self._stall_s, self._comes_back = open_one, stall_s, comes_back
        self._engine = open_one()
        self._watching: asyncio.Task[None] | None = None
        self._alarm = asyncio.Event()
        self._down = False
        self.restarts = 0
        """How often it was replaced."""
        self.on_down: Callable[[str], object] = lambda reason: None
        """Called when it runs no longer, with why."""
        self.on_up: Callable[[], object] = lambda: None
        """Called when another has taken its place."""
        self.on_lost: Callable[[], object] = lambda: None
        """Called when none can in this process."""

    @property
    def current(self) -> Engine:
        """The engine that runs now, or ran last."""
        return self._engine

    @property
    def is_up(self) -> bool:
        """Whether there is one that runs, as far as is known."""
        return not self._down

    @property
    def model(self) -> str:
        return self._engine.model

    @property
    def software(self) -> str:
        return self._engine.software

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def abilities(self) -> frozenset[Ability]:
        return self._engine.abilities

    async def start(self) -> None:
        await self._engine.start()
        if not self._comes_back:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        return await self._engine.encode(prompt, answer)

    async def decode(self, token_ids: list[int]) -> str:
        return await self._engine.decode(token_ids)

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        self._require_up()
        with self._noticing():
            async with aclosing(self._engine.generate(request_id, prompt, sampling, adapter=adapter)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        self._require_up()
        with self._noticing():
            return await self._engine.embed(request_id, texts, dimensions=dimensions)

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        self._require_up()
        with self._noticing():
            return await self._engine.score(request_id, query, documents)

    async def abort(self, request_id: str) -> None:
        await self._engine.abort(request_id)

    def state(self) -> EngineState:
        return self._engine.state()

    def wait_s(self, tokens: int) -> float:
        return math.inf if self._down else self._engine.wait_s(tokens)

    async def health(self) -> None:
        self._require_up()
        await self._engine.health()

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        await self._engine.close()

    def _require_up(self) -> None:
        if self._down:
            raise EngineDead(f"the engine of {self.model} is being replaced")

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except EngineDead:
            self._alarm.set()  # looked at now, not at the next round
            raise

    async def _watch(self) -> None:
        steps, since = None, time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):  # Python 3.11's wait_for may swallow a cancellation
                    await self._alarm.wait()
            self._alarm.clear()
            state, now = self._engine.state(), time.monotonic()
            if state.steps is None or state.steps != steps or not state.running + state.waiting:
                steps, since = state.steps, now
            try:
                await self._engine.health()
                if now - since > self._stall_s:
                    raise EngineDead(f"the engine of {self.model} made no step for {now - since:.0f} s")
            except EngineDead as error:
                await self._replace(error.message)
                steps, since = None, time.monotonic()

    async def _replace(self, reason: str) -> None:
        log.error("engine_down", model=self.model, reason=reason)
        self._down = True
        self.on_down(reason)
        closing = asyncio.ensure_future(self._engine.close())
        done, _ = await asyncio.wait({closing}, timeout=CLOSE_S)
        if not done:
            log.error("engine_lost", model=self.model)
            self.on_lost()
            return
        if (error := closing.exception()) is not None:
            log.warning("engine_close_failed", model=self.model, error=repr(error))
        attempt = 0
        while True:
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1
            engine = self._open()
            try:
                await engine.start()
            except EngineError as error:
                log.error("engine_not_restarted", model=self.model, attempt=attempt, error=error.message)
                continue
            break
        self._engine, self._down = engine, False
        self.restarts += 1
        log.info("engine_restarted", model=self.model, attempt=attempt)
        self.on_up()
