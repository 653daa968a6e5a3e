"""What a worker stands for outside the network: connected, watched, and connected again with backoff when it is lost.
Meanwhile the worker takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import structlog

from modelnet.errors import ModelnetError, Reject
from modelnet.worker import Worker

__all__ = ["Upstream", "reason_of"]

log = structlog.get_logger("upstream")

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before it is connected again; the last one is repeated."""
START_S = 60.0
"""Longest wait for it to answer when it is connected. A server may install itself first."""
PROBE_S = 5.0
"""Between looks whether it is still there, where nothing else tells."""
PATIENCE_S = 15.0
"""Longest wait for the answer to such a look: one that is busy is not gone."""

S = TypeVar("S")


class Upstream(Generic[S]):
    """A connection of type `S` that comes and goes, and the worker that bids only while it is there."""

    def __init__(
        self,
        worker: Worker,
        connect: Callable[[Callable[[], None]], AbstractAsyncContextManager[S]],
        *,
        name: str,
        probe: Callable[[S], Awaitable[object]] | None = None,
        backoff_s: Sequence[float] = BACKOFF_S,
        probe_s: float = PROBE_S,
    ) -> None:
        """`connect(lost)` makes a connection, which calls `lost` when it notices its own end. `name`: what people call
        it in errors. `probe` raises if the other side is gone."""
        self._worker, self._connect, self._name, self._probe = worker, connect, name, probe
        self._backoff_s, self._probe_s = tuple(backoff_s), probe_s
        self._session: S | None = None
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect for the first time, and stay so until `close`. Raises `ModelnetError` if that fails."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(first))
        try:
            await first
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let it go."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    @property
    def session(self) -> S:
        """The connection. Raises `Reject` while there is none: another worker may be luckier."""
        if self._session is None:
            raise self.away("it is away")
        return self._session

    def away(self, why: str) -> Reject:
        """What an attempt ends with that needs it now."""
        return Reject(f"{self._name}: {why}", code="upstream_away", retryable=True)

    def lost(self) -> None:
        """Somebody has noticed that it is gone."""
        self._lost.set()

    async def _keep(self, first: asyncio.Future[None]) -> None:
        failures = 0
        while True:
            self._lost.clear()
            try:
                async with contextlib.AsyncExitStack() as stack:
                    async with asyncio.timeout(START_S):
                        session = await stack.enter_async_context(self._connect(self.lost))
                    self._session, failures = session, 0
                    if not first.done():
                        first.set_result(None)
                    await self._worker.resume()
                    log.info("upstream_connected", upstream=self._name)
                    await self._watch(session)
                    self._session = None
                    await self._worker.pause(f"{self._name} is lost")
                why = "the connection is lost"
            except Exception as error:  # whatever it is: it is tried again
                cause = _cause(error)
                why = f"no answer within {START_S:g} s" if isinstance(cause, TimeoutError) else reason_of(cause)
                if not first.done():
                    known = cause if isinstance(cause, ModelnetError) else None
                    first.set_exception(known or ModelnetError(f"{self._name}: {why}", code="no_upstream"))
                    return
            finally:
                self._session = None
            log.warning("upstream_lost", upstream=self._name, reason=why)
            await self._worker.pause(f"{self._name}: {why}")
            await asyncio.sleep(self._backoff_s[min(failures, len(self._backoff_s) - 1)])
            failures += 1

    async def _watch(self, session: S) -> None:
        """Until it is lost."""
        while True:
            try:
                async with asyncio.timeout(self._probe_s if self._probe is not None else None):
                    await self._lost.wait()
                return
            except TimeoutError:
                assert self._probe is not None
                async with asyncio.timeout(PATIENCE_S):
                    await self._probe(session)


def reason_of(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(_cause(error)).split())
    return text or type(error).__name__


def _cause(error: BaseException) -> BaseException:
    """The error itself, out of the groups that task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
