"""A whole network on the loop of a test: negotiators and workers as the apps that they are, and ears on the bus."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from faststream import FastStream
from nats.aio.client import Client as Bus
from nats.aio.msg import Msg

import modelnet
from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import EmbeddedRedis
from modelnet.client import Client
from modelnet.handle import TaskHandle
from modelnet.reader import StreamEvent
from modelnet.settings import Settings
from workers import ledger
from workers.ledger import LedgerWorker
from workers.negotiator import Negotiator, make_app

__all__ = ["Ear", "Network", "Store", "fast", "require_an_end", "until"]

PATIENCE_S = 20.0
"""Longest wait for anything; a test that meets it has failed."""


def fast(url: str, **changes: Any) -> Settings:
    """Settings of a network whose beats come often, so that a negotiator soon knows who lives."""
    settings = Settings(url=url, beat_s=0.2, missed_beats=5, log_level="error", log_format="json")
    # No Redis unless a test brings its own: one that happens to run here is not to learn of our workers.
    return settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0", **changes})


async def until(event: asyncio.Event) -> None:
    """Wait for an event, but not for ever."""
    await asyncio.wait_for(event.wait(), PATIENCE_S)


async def require_an_end(ask: Callable[[], Awaitable[object]], turns: int) -> None:
    """Whoever asks again and again must end when it is cancelled after so many turns of the event loop."""

    async def for_ever() -> None:
        while True:
            await ask()

    asking = asyncio.create_task(for_ever())
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.cancel()
    done, _ = await asyncio.wait({asking}, timeout=PATIENCE_S)
    assert done, f"it goes on after a cancellation at turn {turns}"
    assert asking.cancelled()


class Ear:
    """All that one subscription hears, in order."""

    def __init__(self, bus: Bus, subject: str) -> None:
        self.heard: list[Msg] = []
        self._bus, self._subject = bus, subject
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._sub = await self._bus.subscribe(self._subject, cb=self._hear)
        await self._bus.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sub.unsubscribe()

    async def _hear(self, msg: Msg) -> None:
        async with self._news:
            self.heard.append(msg)
            self._news.notify_all()

    async def until(self, enough: Callable[[list[Msg]], bool]) -> list[Msg]:
        """Wait until what was heard is enough; all of it."""
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: enough(self.heard)), PATIENCE_S)
            return list(self.heard)

    async def next(self, wanted: Callable[[Msg], bool] = lambda _: True) -> Msg:
        """Wait for a message that comes from now on."""
        known = len(self.heard)
        await self.until(lambda heard: any(wanted(msg) for msg in heard[known:]))
        return next(msg for msg in self.heard[known:] if wanted(msg))


class Network:
    """One server's network. Whatever joins through it has left when it is closed."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self._stack = AsyncExitStack()
        self._apps: dict[object, FastStream] = {}
        self.on_reconnect: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        self.bus = await self._stack.enter_async_context(_Connection(self.config, self._reconnected))
        self.client: Client = await self._stack.enter_async_context(modelnet.connect(config=self.config))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.clear()
        await self._stack.aclose()

    async def clear(self) -> None:
        """Let everybody leave, the last to come first."""
        for party in reversed(list(self._apps)):
            await self.stop(party)

    async def _reconnected(self) -> None:
        self.on_reconnect()

    @property
    def negotiators(self) -> list[Negotiator]:
        """Those that run."""
        return [party for party in self._apps if isinstance(party, Negotiator)]

    @property
    def workers(self) -> list[modelnet.Worker]:
        """Those that have joined."""
        return [party for party in self._apps if isinstance(party, modelnet.Worker)]

    async def negotiator(self, **changes: Any) -> Negotiator:
        """Start a negotiator; it returns once workers who live have been heard, or would have been."""
        config = self.config.model_copy(update=changes)
        negotiator = Negotiator(config)
        await self._start(negotiator, make_app(config, negotiator))
        return negotiator

    async def ledger_worker(self) -> LedgerWorker:
        """Start a ledger worker."""
        worker = LedgerWorker(self.config)
        await self._start(worker, ledger.make_app(self.config, worker))
        return worker

    async def join(self, *workers: modelnet.Worker) -> None:
        """Let workers join; it returns once they are known to whoever hears beats."""
        for worker in workers:
            await self._start(worker, modelnet.worker_app(worker))

    async def _start(self, party: object, app: FastStream) -> None:
        await app.start()
        self._apps[party] = app

    async def stop(self, party: object) -> None:
        """Let a negotiator or a worker leave in good order."""
        await self._apps.pop(party).stop()

    def ear(self, subject: str) -> Ear:
        """Listen on a subject, on a connection that is nobody else's."""
        return Ear(self.bus, subject)

    def worker(self, name: str, **options: Any) -> modelnet.Worker:
        """A worker of this network that has not joined yet."""
        return modelnet.Worker(name, config=self.config, **options)


class Store:
    """A Redis that goes and comes back, on its port and with its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedRedis(folder)

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._server.url

    async def start(self) -> None:
        """Start it, or again."""
        self._server = EmbeddedRedis(self._folder, port=self._server.port)
        await self._server.start()

    async def kill(self) -> None:
        """Kill -9; it stays away."""
        assert self._server.pid is not None
        os.kill(self._server.pid, signal.SIGKILL)
        await self._server.stop()


class _Connection:
    """A bare connection to the bus."""

    def __init__(self, config: Settings, on_reconnect: Callable[[], Awaitable[None]]) -> None:
        self._config, self._on_reconnect = config, on_reconnect

    async def __aenter__(self) -> Bus:
        self._bus = await connect(self._config, "bystander", on_reconnect=self._on_reconnect)
        return self._bus

    async def __aexit__(self, *_: object) -> None:
        await close(self._bus)


async def events(task: TaskHandle) -> list[StreamEvent]:
    """A task's whole stream."""
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in task.stream()]
