"""What the gateway's rooms share, and what a room is: one protocol's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from modelnet.client import Client
from modelnet.settings import Settings

__all__ = ["Lobby", "Room", "lobby_of", "tenant_of"]


@dataclass(slots=True)
class Lobby:
    """One gateway, as its rooms see it: `request.state.lobby`."""

    config: Settings
    net: Client
    """The gateway's connection. What is done for a tenant says so: `net.submit(…, tenant=request.state.tenant)`."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway begins to stop: streams without an end of their own end then."""


@dataclass(frozen=True, slots=True)
class Room:
    """The routes of one protocol, mounted at the root."""

    routes: Sequence[BaseRoute]
    public: tuple[str, ...] = ()
    """Paths that need no key. One that ends in `/` stands for all below it."""
    lifespan: Callable[[Lobby], AbstractAsyncContextManager[None]] | None = None
    """Entered before the first request and left after the last one."""


def lobby_of(request: HTTPConnection) -> Lobby:
    """The gateway that a request came to."""
    found: Lobby = request.state.lobby
    return found


def tenant_of(request: HTTPConnection) -> str:
    """Who asks, and pays. Of public paths nobody knows."""
    found: str = request.state.tenant
    return found
