"""Text as it is streamed: the pieces a handler says, and the deltas they are joined to, so that messages stay few."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from modelnet.messages import TokenLogprob, ToolCallPart

__all__ = ["DeltaBuffer", "Piece", "interval_s"]

COALESCE_S = 0.02
COALESCE_CHARS = 512
DELTAS_PER_S = min(4000, 100 * (os.cpu_count() or 1))
"""Of all attempts of a worker together, beside those that are full: what many streams cost is their messages, and a
small machine is to spend its cores on the model."""
DELTA_CHARS = 32_768
"""Longest delta: at most six bytes a character in JSON, so well below what a server takes."""


def interval_s(crowd: int) -> float:
    """How far apart the deltas of an attempt should be, in seconds, where so many are at work."""
    return max(COALESCE_S, crowd / DELTAS_PER_S)


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
    """Joins text deltas: an answer's first goes at once, and so does what comes 20 ms behind the one before or later;
    what comes sooner waits until then, or for 512 characters.

    Where a worker has so many attempts at work that this came to more than `DELTAS_PER_S`, the 20 ms become as much
    longer.
    """

    def __init__(self, flush: Callable[[Piece], Awaitable[None]], crowd: Callable[[], int] = lambda: 1) -> None:
        """`crowd`: how many attempts the worker has at work."""
        self._flush, self._crowd = flush, crowd
        self._answers: dict[int, _Gathered] = {}
        self._timer: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._flushed_at = 0.0

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
            now, due = time.monotonic(), self._flushed_at + interval_s(self._crowd())
            if due <= now:
                await self.flush()
            else:  # in step with other attempts: what goes out in one turn of the loop is one write
                tick = math.ceil(due / COALESCE_S) * COALESCE_S
                self._timer = asyncio.get_running_loop().create_task(self._later(tick - now))

    async def _later(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._timer = None
        await self.flush()

    async def flush(self) -> None:
        """Send what is held. Must be called before anything else of the attempt is sent."""
        async with self._lock:
            self._flushed_at = time.monotonic()
            for piece in [piece for answer in self._answers.values() for piece in answer.take()]:
                await self._flush(piece)

    def close(self) -> None:
        """Send nothing more."""
        self._answers.clear()
        if self._timer is not None:
            self._timer.cancel()
