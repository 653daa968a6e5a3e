"""The requests of an engine that reads its answers, item by item, from an asynchronous generator on its own loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from modelnet.engines.errors import DuplicateRequest

__all__ = ["Request", "Requests", "Silent"]

Item = TypeVar("Item")


class Silent(Exception):
    """Nothing came in time."""


class Request(Generic[Item]):
    """One that runs: what is read, and how it is stopped from outside."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.aborted = False
        self.streaming = False
        """Whether its first token has come."""
        self._source: AsyncGenerator[Item, None] | None = None
        self._reading: asyncio.Timeout | None = None

    def read(self, source: AsyncGenerator[Item, None]) -> None:
        """Read from here."""
        self._source = source

    async def next(self, until: float | None = None) -> Item | None:
        """The next item; None at the end, or once it was aborted. `until`: of the monotonic clock; `Silent` is raised
        then."""
        if self.aborted or self._source is None:
            return None
        loop = asyncio.get_running_loop()
        when = None if until is None else until - time.monotonic() + loop.time()
        try:
            async with asyncio.timeout_at(when) as self._reading:
                return await anext(self._source, None)
        except TimeoutError:
            if self.aborted:
                return None
            raise Silent from None
        finally:
            self._reading = None

    async def abort(self) -> None:
        """Stop reading, and close what was read from."""
        self.aborted = True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())
        elif self._source is not None:
            await self._source.aclose()


class Requests(Generic[Item]):
    """Those that run, by id."""

    def __init__(self) -> None:
        self._running: dict[str, Request[Item]] = {}
        self._ended: deque[float] = deque(maxlen=4096)
        """When the last ones ended, on time.monotonic."""

    @contextmanager
    def one(self, request_id: str) -> Iterator[Request[Item]]:
        """A new one, while it runs. Raises `DuplicateRequest`."""
        if request_id in self._running:
            raise DuplicateRequest(f"a request {request_id!r} is running in this engine")
        request = self._running[request_id] = Request[Item]()
        try:
            yield request
        finally:
            del self._running[request_id]
            self._ended.append(time.monotonic())

    async def abort(self, request_id: str) -> None:
        """Abort one; an unknown id is no error."""
        request = self._running.get(request_id)
        if request is not None and not request.aborted:
            await request.abort()

    async def abort_all(self) -> None:
        """Abort all that run."""
        for request_id in list(self._running):
            await self.abort(request_id)

    @property
    def count(self) -> int:
        """How many run and were not aborted."""
        return sum(not one.aborted for one in self._running.values())

    def lately(self, within_s: float) -> int:
        """How many run, or did so shortly ago: of those a server may not know yet that they have ended."""
        since = time.monotonic() - within_s
        return len(self._running) + sum(at >= since for at in self._ended)

    @property
    def streaming(self) -> int:
        """How many of them have said something."""
        return sum(one.streaming and not one.aborted for one in self._running.values())
