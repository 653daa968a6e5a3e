"""One attempt: a handler of any kind run as a stream of what it says, and its text deltas coalesced. No bus here."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Self

from modelnet.errors import Reject
from modelnet.messages import TokenLogprob, ToolCallPart

__all__ = ["BadOutput", "DeltaBuffer", "Piece", "Progress", "Said", "Threads", "say"]

COALESCE_S = 0.02
COALESCE_CHARS = 512
DELTAS_PER_S = min(4000, 100 * (os.cpu_count() or 1))
"""Of all attempts of a worker together, beside those that are full: what many streams cost is their messages, and a
small machine is to spend its cores on the model."""
DELTA_CHARS = 32_768
"""Longest delta: at most six bytes a character in JSON, so well below what a server takes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Yielded by a handler: how far it is."""

    fraction: float | None = None
    """0 to 1, if it can be told."""
    note: str | None = None


class Piece(str):
    """Yielded instead of plain text by a handler that knows tokens: text with the ids that were drawn for it.

    An empty one may carry ids: their text comes with the next.
    """

    tokens: tuple[int, ...] | None
    answer: int
    logprobs: tuple[TokenLogprob, ...] | None
    tool_calls: tuple[ToolCallPart, ...]
    restarts: bool

    def __new__(
        cls,
        text: str,
        tokens: Sequence[int] | None = None,
        *,
        answer: int = 0,
        logprobs: Sequence[TokenLogprob] | None = None,
        tool_calls: Sequence[ToolCallPart] = (),
        restarts: bool = False,
    ) -> Self:
        """`tokens`, `logprobs`: None where they are not known. `answer`: which of several. `restarts`: nobody
        could go on behind this text alone."""
        piece = super().__new__(cls, text)
        piece.tokens = tuple(tokens) if tokens is not None else None
        piece.answer = answer
        piece.logprobs = tuple(logprobs) if logprobs is not None else None
        piece.tool_calls = tuple(tool_calls)
        piece.restarts = restarts
        return piece


class BadOutput(Reject):
    """A handler returned or yielded what no handler may, or an output that breaks its contract."""

    code = "bad_output"

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


Said = str | Progress | dict[str, Any]
"""What a handler may say: text to append, progress, or its output."""

_END = object()


async def say(
    handler: Callable[..., Any], context: Any, value: dict[str, Any], pool: Executor, begun: str = ""
) -> AsyncIterator[Said]:
    """Run a handler and yield what it says, its output last; plain functions and generators run in `pool`.

    A handler returns a dict, or yields str, Progress and at most one dict, last. With only strings the output is
    `{"text": joined}`, behind what had `begun` before it. Anything else raises `BadOutput`.
    """
    texts: list[str] = [begun] if begun else []
    output: dict[str, Any] | None = None
    async for said in _raw(handler, context, value, pool):
        if output is not None:
            raise BadOutput("something was yielded after the output")
        if isinstance(said, str):
            if not said.isascii():
                _require_unicode(said)
            if getattr(said, "answer", 0) == 0:
                texts.append(said)
        elif isinstance(said, dict):
            output = said
            continue
        elif not isinstance(said, Progress):
            raise BadOutput(f"a handler gives dict, str or Progress, not {type(said).__name__}")
        yield said
    if output is None:
        if not texts:
            raise BadOutput("the handler gave no output")
        output = {"text": "".join(texts)}
    try:
        json.dumps(output, allow_nan=False, ensure_ascii=False, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadOutput(f"the output is no JSON object: {error}") from None
    yield output


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadOutput(f"the text is not Unicode: {error}") from None


async def _raw(
    handler: Callable[..., Any], context: Any, value: dict[str, Any], pool: Executor
) -> AsyncIterator[object]:
    if inspect.isasyncgenfunction(handler):
        stream = handler(context, value)
        try:
            async for said in stream:
                yield said
        finally:
            await stream.aclose()
    elif inspect.isgeneratorfunction(handler):
        async for said in _threaded(handler(context, value), pool):
            yield said
    elif inspect.iscoroutinefunction(handler):
        yield await handler(context, value)
    else:
        result = await asyncio.get_running_loop().run_in_executor(pool, _call, handler, context, value)
        if inspect.isawaitable(result):  # a callable object whose call is asynchronous
            result = await result
        yield result


def _call(handler: Callable[..., object], context: Any, value: dict[str, Any]) -> object:
    try:
        return handler(context, value)
    except (
        StopIteration
    ) as error:  # no future takes one, and whoever awaits it would wait for ever (python/cpython#112182)
        raise RuntimeError("the handler raised StopIteration") from error


async def _threaded(generator: Iterator[object], pool: Executor) -> AsyncIterator[object]:
    loop = asyncio.get_running_loop()
    try:
        while (said := await loop.run_in_executor(pool, next, generator, _END)) is not _END:
            yield said
    finally:
        generator.close() if not getattr(generator, "gi_running", False) else None  # type: ignore[attr-defined]


class Threads(Executor):
    """Runs each call in a thread of its own that does not keep the process alive.

    A pool would be used up by handlers that never return: a thread cannot be ended, and the interpreter waits for the
    threads of a pool when it exits.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start the call."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future


@dataclass(slots=True)
class _Gathered:
    """What is held of one answer."""

    index: int
    texts: list[str] = field(default_factory=list)
    tokens: list[int] | None = field(default_factory=list)
    early: list[int] = field(default_factory=list)
    """Ids whose text has not come yet."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: list[ToolCallPart] = field(default_factory=list)
    restarts: bool = False
    size: int = 0
    first: bool = True
    """Whether nothing was sent of it yet."""

    def add(self, piece: Piece) -> None:
        self.texts.append(piece)
        self.size += len(piece)
        if piece.tokens is None or self.tokens is None:
            self.tokens = None
        else:
            self.tokens += (*self.early, *piece.tokens)
        self.early = []
        self.logprobs += piece.logprobs or ()
        self.tool_calls += piece.tool_calls
        self.restarts |= piece.restarts

    def take(self) -> list[Piece]:
        """What is held, in pieces that a server takes; none if there is nothing."""
        if not (self.texts or self.logprobs or self.tool_calls):
            return []
        text, tokens, logprobs, calls = "".join(self.texts), self.tokens, self.logprobs, self.tool_calls
        self.texts, self.tokens, self.logprobs, self.tool_calls, self.size = [], [], [], [], 0
        self.first = False
        whole = len(text) <= DELTA_CHARS
        return [
            Piece(
                text[start : start + DELTA_CHARS],
                tokens if whole else None,
                answer=self.index,
                logprobs=(logprobs or None) if start == 0 else None,
                tool_calls=calls if start == 0 else (),
                restarts=self.restarts,
            )
            for start in range(0, max(len(text), 1), DELTA_CHARS)
        ]


class DeltaBuffer:
    """Joins text deltas: an answer's first goes at once, later ones after 20 ms or 512 characters, what is first.

    Where a worker has so many attempts at work that this came to more than `DELTAS_PER_S`, the 20 ms become as much
    longer.
    """

    def __init__(self, flush: Callable[[Piece], Awaitable[None]], crowd: Callable[[], int] = lambda: 1) -> None:
        """`crowd`: how many attempts the worker has at work."""
        self._flush, self._crowd = flush, crowd
        self._answers: dict[int, _Gathered] = {}
        self._timer: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def add(self, text: str) -> None:
        """Take a delta, a `Piece` perhaps."""
        piece = text if isinstance(text, Piece) else Piece(text)
        answer = self._answers.get(piece.answer)
        if answer is None:
            answer = self._answers[piece.answer] = _Gathered(piece.answer)
        if not (piece or piece.logprobs or piece.tool_calls):
            answer.early += piece.tokens or ()
            return
        answer.add(piece)
        if answer.first or answer.size >= COALESCE_CHARS:
            await self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().create_task(self._later())

    async def _later(self) -> None:
        await asyncio.sleep(max(COALESCE_S, self._crowd() / DELTAS_PER_S))
        self._timer = None
        await self.flush()

    async def flush(self) -> None:
        """Send what is held. Must be called before anything else of the attempt is sent."""
        async with self._lock:
            for piece in [piece for answer in self._answers.values() for piece in answer.take()]:
                await self._flush(piece)

    def close(self) -> None:
        """Send nothing more."""
        self._answers.clear()
        if self._timer is not None:
            self._timer.cancel()
