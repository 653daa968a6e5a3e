"""What the gateway's rooms share, and what a room is: one protocol's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from modelnet.client import Client
from modelnet.settings import Settings

from .directory import Directory
from .keys import Guest, Keys

__all__ = ["Lobby", "Room", "guest_of", "lobby_of", "tenant_of"]

log = structlog.get_logger("gateway")


@dataclass(slots=True)
class Lobby:
    """One gateway, as its rooms see it: `request.state.lobby`."""

    config: Settings
    net: Client
    keys: Keys
    """The gateway's connection. What is done for a tenant says so: `net.submit(…, tenant=tenant_of(request))`."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway begins to stop: streams without an end of their own end then."""
    directory: Directory = field(init=False)
    _running: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.directory = Directory(self.net)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something that nobody waits for."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("not_done", error=repr(error))

    async def settle(self, patience_s: float = 2.0) -> None:
        """Wait for what was spawned."""
        if self._running:
            await asyncio.wait(self._running, timeout=patience_s)


@dataclass(frozen=True, slots=True)
class Room:
    """The routes of one protocol, mounted at the root."""

    routes: Sequence[BaseRoute]
    public: tuple[str, ...] = ()
    """Paths that need no key. One that ends in `*` stands for all that begin so."""
    lifespan: Callable[[Lobby], AbstractAsyncContextManager[None]] | None = None
    """Entered before the first request and left after the last one."""


def lobby_of(request: HTTPConnection) -> Lobby:
    """The gateway that a request came to."""
    found: Lobby = request.state.lobby
    return found


def tenant_of(request: HTTPConnection) -> str:
    """Who asks, and pays. Of public paths nobody knows."""
    return guest_of(request).tenant


def guest_of(request: HTTPConnection) -> Guest:
    """Who asks, as one who may be told how many tokens it used."""
    found: Guest = request.state.guest
    return found
