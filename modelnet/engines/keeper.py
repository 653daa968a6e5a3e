"""An engine that is kept running: one that dies, or stops making progress, is replaced by a new one of its kind; one
that has nothing to do sleeps, if it may, until something is asked of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

import structlog

from modelnet.engines.base import (
    Ability,
    Chunk,
    Embeddings,
    Engine,
    EngineState,
    Prompt,
    Sampling,
    Scores,
    Sleeper,
)
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
    """An `Engine` by whichever engine runs now. While there is none, its requests end with `EngineDead`; while it
    sleeps, they wait until it is awake."""

    def __init__(
        self,
        open_one: Callable[[], Engine],
        *,
        stall_s: float = STALL_S,
        sleep_s: float | None = None,
        comes_back: bool = False,
    ) -> None:
        """`open_one` opens an engine, not started. `sleep_s`: when nothing was asked of it for so long, its memory is
        given back: it is closed, unless it is a `Sleeper`. `comes_back`: one whose model runs elsewhere and is found
        again by the engine itself, so that it is neither asked for its health here nor replaced, nor sleeps."""
        self._open, self._stall_s, self._sleep_s, self._comes_back = open_one, stall_s, sleep_s, comes_back
        self._engine = open_one()
        self._watching: asyncio.Task[None] | None = None
        self._alarm = asyncio.Event()
        self._down = False
        self._in_hand, self._idle_since = 0, time.monotonic()
        self._asleep = False
        self._changing = asyncio.Lock()
        """Held by whoever closes, opens, wakes it or puts it to sleep."""
        self._waking: asyncio.Task[None] | None = None
        self._woken_at = self._wake_s = 0.0
        """When it was last begun to wake it, and how long that took; at first, how long it took to start."""
        self._failure: str | None = None
        """Why it did not wake."""
        self.restarts = 0
        """How often it was replaced."""
        self.on_down: Callable[[str], object] = lambda reason: None
        """Called when it runs no longer, with why."""
        self.on_up: Callable[[], object] = lambda: None
        """Called when another has taken its place."""
        self.on_asleep: Callable[[], object] = lambda: None
        """Called when it goes to sleep: what it had in its cache is lost."""
        self.on_lost: Callable[[], object] = lambda: None
        """Called when none can in this process."""

    @property
    def current(self) -> Engine:
        """The engine that runs now, or ran last."""
        return self._engine

    @property
    def is_up(self) -> bool:
        """Whether there is one that runs or sleeps, as far as is known."""
        return not self._down

    @property
    def wake_s(self) -> float:
        """Seconds until it is awake if it is asked now, as far as the last time tells; 0 while it is."""
        if not self._asleep:
            return 0.0
        gone_s = time.monotonic() - self._woken_at if self._waking is not None else 0.0
        return max(self._wake_s - gone_s, 0.0)

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
        began = time.monotonic()
        await self._engine.start()
        self._idle_since = time.monotonic()
        self._wake_s = self._idle_since - began
        if not self._comes_back:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        async with self._asking():
            return await self._engine.encode(prompt, answer)

    async def decode(self, token_ids: list[int]) -> str:
        async with self._asking():
            return await self._engine.decode(token_ids)

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        async with (
            self._asking(),
            aclosing(self._engine.generate(request_id, prompt, sampling, adapter=adapter)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        async with self._asking():
            return await self._engine.embed(request_id, texts, dimensions=dimensions)

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        async with self._asking():
            return await self._engine.score(request_id, query, documents)

    async def abort(self, request_id: str) -> None:
        await self._engine.abort(request_id)

    def state(self) -> EngineState:
        return self._engine.state()

    def wait_s(self, tokens: int) -> float:
        if self._down:
            return math.inf
        return 0.0 if self._asleep else self._engine.wait_s(tokens)

    async def health(self) -> None:
        self._require_up()
        if not self._asleep:
            await self._engine.health()

    async def awake(self) -> None:
        """Returns once it is. Raises `EngineDead` if there is none."""
        while self._asleep:
            if self._waking is None:
                self._woken_at = time.monotonic()
                self._waking = asyncio.get_running_loop().create_task(self._wake())
            await asyncio.wait({self._waking})  # which goes on for others if this one is cancelled
        self._require_up()

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self._waking is not None:
            await asyncio.wait({self._waking})
        self._asleep = False
        await self._engine.close()

    def _require_up(self) -> None:
        if self._down:
            raise EngineDead(f"the engine of {self.model} is being replaced")

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Something is asked of the engine, which is awake for it."""
        self._in_hand += 1
        try:
            await self.awake()
            try:
                yield
            except EngineDead:
                self._alarm.set()  # looked at now, not at the next round
                raise
        finally:
            self._in_hand -= 1
            self._idle_since = time.monotonic()

    # ------------------------------------------------------------------ watching

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
                await self._look(now - since)
            except EngineDead as error:
                await self._replace(error.message)
                steps, since = None, time.monotonic()

    async def _look(self, stalled_s: float) -> None:
        """Raises `EngineDead` if it must be replaced. Puts it to sleep if it may."""
        if self._failure is not None:
            raise EngineDead(self._failure)
        if self._asleep and self._sleeper is None:
            return  # it is closed
        await self._engine.health()
        if stalled_s > self._stall_s:
            raise EngineDead(f"the engine of {self.model} made no step for {stalled_s:.0f} s")
        if not self._asleep and self._sleep_s is not None:
            await self._fall_asleep(self._sleep_s)

    async def _replace(self, reason: str) -> None:
        log.error("engine_down", model=self.model, reason=reason)
        self._down = True
        self.on_down(reason)
        async with self._changing:
            self._asleep, self._failure = False, None
            if not await self._closed():
                return
            attempt = 0
            while True:
                await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                attempt += 1
                try:
                    await self._open_next()
                except EngineError as error:
                    log.error("engine_not_restarted", model=self.model, attempt=attempt, error=error.message)
                    continue
                break
            self._down, self._idle_since = False, time.monotonic()
        self.restarts += 1
        log.info("engine_restarted", model=self.model, attempt=attempt)
        self.on_up()

    async def _closed(self) -> bool:
        """Close it; False if that cannot be done."""
        closing = asyncio.ensure_future(self._engine.close())
        done, _ = await asyncio.wait({closing}, timeout=CLOSE_S)
        if not done:
            log.error("engine_lost", model=self.model)
            self.on_lost()
            return False
        if (error := closing.exception()) is not None:
            log.warning("engine_close_failed", model=self.model, error=repr(error))
        return True

    async def _open_next(self) -> None:
        """Another in its place, which knows how long steps take from the last. Raises `EngineError`."""
        engine = self._open()
        await engine.start()
        known, new = self._engine.state().step_times, engine.state().step_times
        if known is not None and new is not None:
            new.recall(known.save())
        self._engine = engine

    # ------------------------------------------------------------------ sleeping

    @property
    def _sleeper(self) -> Sleeper | None:
        """The engine, if it can do that itself; else it is closed, and another opened when it is to wake."""
        return self._engine if isinstance(self._engine, Sleeper) and self._engine.can_sleep else None

    async def _in_time(self, doing: Awaitable[None]) -> None:
        """Raises `EngineDead` if it hangs."""
        try:
            async with asyncio.timeout(self._stall_s):
                await doing
        except TimeoutError:
            raise EngineDead(f"the engine of {self.model} does not answer") from None

    async def _fall_asleep(self, sleep_s: float) -> None:
        """If nothing was asked of it for so long. Raises `EngineDead`."""
        async with self._changing:
            if self._in_hand or time.monotonic() - self._idle_since < sleep_s:
                return
            self._asleep = True
            self.on_asleep()
            if (sleeper := self._sleeper) is not None:
                await self._in_time(sleeper.sleep())
            elif not await self._closed():
                return
        log.info("engine_asleep", model=self.model, wakes_in_s=round(self._wake_s, 2))

    async def _wake(self) -> None:
        try:
            async with self._changing:
                if not self._asleep:  # it was replaced meanwhile
                    return
                if (sleeper := self._sleeper) is not None:
                    await self._in_time(sleeper.wake())
                else:
                    await self._open_next()
            self._idle_since = time.monotonic()
            self._wake_s = self._idle_since - self._woken_at
            log.info("engine_awake", model=self.model, took_s=round(self._wake_s, 2))
        except EngineError as error:
            self._failure, self._down = f"it did not wake: {error.message}", True
            self._alarm.set()
        finally:
            self._asleep, self._waking = False, None
