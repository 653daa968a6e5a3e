"""One attempt: a handler of any kind run as a stream of what it says. No bus here."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from modelnet.errors import Reject

__all__ = ["BadOutput", "Progress", "Said", "Threads", "say"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Yielded by a handler: how far it is."""

    fraction: float | None = None
    """0 to 1, if it can be told."""
    note: str | None = None


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
