"""The room of agents: the network as an A2A agent, below /a2a with its card at the well-known path, and as MCP tools at
/mcp. Needs the extra `agents`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from a2a.utils.constants import AGENT_CARD_WELL_KNOWN_PATH
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from modelnet.agents import a2a_routes, mcp_http
from modelnet.agents.caller import Caller
from modelnet.messages import Final
from modelnet.presence import Presence

from .entrance import is_loopback
from .lobby import Lobby, Room, guest_of, lobby_of

__all__ = ["agents_room"]


class _Desk:
    """Serves while the gateway does: what answers here knows the network, and is made when that is reached."""

    router: Router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.router(scope, receive, send)


def agents_room() -> Room:
    """The room."""
    desk = _Desk()

    @asynccontextmanager
    async def open_desk(lobby: Lobby) -> AsyncIterator[None]:
        async with Presence(lobby.net, patient=True) as presence:
            tools = mcp_http.McpEndpoint(
                lobby.net,
                presence,
                caller_of=_caller_of,
                allows_origin=lambda origin: is_loopback(urlsplit(origin).hostname),
                max_body_bytes=lobby.config.gateway_max_body_bytes,
                closing=lobby.closing,
            )
            agent = a2a_routes.a2a_routes(
                lobby.net, presence, caller_of=_caller_of, url_of=_url_of, keys=lobby.config.gateway_keys_required
            )
            desk.router = Router([*agent, Route(mcp_http.PATH, tools)])
            async with tools.running():
                yield

    paths = (AGENT_CARD_WELL_KNOWN_PATH, a2a_routes.PATH, f"{a2a_routes.PATH}/{{rest:path}}", mcp_http.PATH)
    return Room([Route(path, desk) for path in paths], public=(AGENT_CARD_WELL_KNOWN_PATH,), lifespan=open_desk)


def _caller_of(request: Request) -> Caller:
    guest, lobby = guest_of(request), lobby_of(request)

    def count(final: Final) -> None:
        if final.usage is not None:
            lobby.spawn(guest.used(final.usage.prompt_tokens + final.usage.completion_tokens))

    return Caller(guest.tenant, count if guest.counted else None)


def _url_of(request: Request) -> str:
    """What the sender of a request knows this gateway by."""
    return str(request.base_url).rstrip("/")
