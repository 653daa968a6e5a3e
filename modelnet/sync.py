"""The client for scripts and notebooks that do not await: the same calls, blocking.

with modelnet.sync.connect() as net:
    task = net.submit("normalize.date.de", {"text": "dritter März zweitausendeinundzwanzig"}, budget=10)
    for event in task.stream():
        ...
    final = task.result()

The connection lives on a loop of its own in a background thread, so it works inside a notebook's running loop too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from modelnet import client as asynchronous
from modelnet.client import LiveWorker
from modelnet.errors import ConnectionFailed
from modelnet.handle import TaskHandle as AsyncTaskHandle
from modelnet.history import TaskSummary, TaskTrace
from modelnet.messages import Contract, Final
from modelnet.reader import StreamEvent
from modelnet.settings import Settings

__all__ = ["Client", "TaskHandle", "connect"]

T = TypeVar("T")


class _LoopThread:
    """An event loop in a thread, for calls from threads that have none or are inside another."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="modelnet-sync", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run on the loop and wait; an interrupted or late wait cancels the work. Raises `TimeoutError`."""
        if not self._thread.is_alive():
            work.close()
            raise ConnectionFailed("the connection is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if not future.done():
                future.cancel()
                raise TimeoutError(f"nothing within {timeout_s:g} s") from None
            raise
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
        if not self._loop.is_running():
            self._loop.close()


class TaskHandle:
    """A task on the network; see `modelnet.TaskHandle`."""

    def __init__(self, handle: AsyncTaskHandle, thread: _LoopThread) -> None:
        self._handle = handle
        self._thread = thread
        self.id = handle.id
        self.tenant = handle.tenant

    @property
    def text(self) -> str:
        """The text streamed so far to the reader in hand."""
        return self._handle.text

    def stream(
        self, *, from_start: bool = True, resume_after: StreamEvent | int | None = None
    ) -> Iterator[StreamEvent]:
        """Everything from the start, then live, without a gap or a repeat, ending with the Final.

        `resume_after`: the last event that was seen; `from_start=False`: only what comes from now on.
        """
        events = self._handle.stream(from_start=from_start, resume_after=resume_after)

        async def following() -> StreamEvent | None:
            return await anext(events, None)

        async def end() -> None:
            await events.aclose()

        try:
            while (event := self._thread.call(following())) is not None:
                yield event
        finally:
            self._thread.call(end())

    def result(self, timeout_s: float | None = None) -> Final:
        """The Final, once it stands. Raises `TaskFailed`, `TaskExpired`, `TaskCancelled`, or `TimeoutError`."""
        return self._thread.call(self._handle.result(), timeout_s)

    def final(self, timeout_s: float | None = None) -> Final:
        """The Final, once it stands, whatever its status. Raises `TimeoutError`."""
        return self._thread.call(self._handle.final(), timeout_s)

    def cancel(self) -> bool:
        """Ask for the task to be cancelled. False if it had ended already."""
        return self._thread.call(self._handle.cancel())


class Client:
    """A connection to a modelnet network; see `modelnet.Client`. Made by `connect()`, closed by `close()` or `with`."""

    def __init__(self, url: str | None = None, *, config: Settings | None = None) -> None:
        self._thread = _LoopThread()
        try:
            self._client = self._thread.call(_connect(url, config))
        except BaseException:
            self._thread.stop()
            raise

    def submit(self, capability: str, input: Mapping[str, Any], **options: Any) -> TaskHandle:
        """Publish a task and return once the stream has stored it; options as for `modelnet.Client.submit`."""
        handle = self._thread.call(self._client.submit(capability, input, **options))
        return TaskHandle(handle, self._thread)

    def run(self, capability: str, input: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Submit, wait, and return the output; raises `TaskError` if it does not complete."""
        return self._thread.call(self._client.run(capability, input, **options))

    def task(self, id: str, *, tenant: str | None = None) -> TaskHandle:
        """A task submitted before, here or elsewhere."""
        return TaskHandle(self._client.task(id, tenant=tenant), self._thread)

    def workers(self) -> list[LiveWorker]:
        """Everybody who answers a roll call."""
        return self._thread.call(self._client.workers())

    def contracts(self) -> list[Contract]:
        """Every contract ever announced, by capability."""
        return self._thread.call(self._client.contracts())

    def tasks(self, *, since_s: float | None = None, tenant: str | None = None) -> list[TaskSummary]:
        """Tasks of a tenant, oldest first."""
        return self._thread.call(self._client.tasks(since_s=since_s, tenant=tenant))

    def trace(self, id: str, *, tenant: str | None = None) -> TaskTrace:
        """Journal, auctions and attempts of a task. Raises `UnknownTask`."""
        return self._thread.call(self._client.trace(id, tenant=tenant))

    def close(self) -> None:
        """Close the connection and end its thread; harmless twice."""
        try:
            self._thread.call(self._client.close())
        except ConnectionFailed:
            return
        self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _connect(url: str | None, config: Settings | None) -> asynchronous.Client:
    client: asynchronous.Client = await asynchronous.connect(url, config=config)
    return client


def connect(url: str | None = None, *, config: Settings | None = None) -> Client:
    """A blocking connection; arguments and errors as for `modelnet.connect`."""
    return Client(url, config=config)
