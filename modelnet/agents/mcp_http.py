"""Where the network's MCP tools answer over streamable HTTP, in all versions of the protocol that the SDK serves.

A client of 2026-07-28 needs no session: any process answers any request. Clients of earlier versions have a session in
one process; another tells them that it is unknown, and they begin a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from modelnet.agents.caller import Caller
from modelnet.agents.mcp_tools import CallerOf, Tools
from modelnet.client import Client
from modelnet.presence import Presence

__all__ = ["PATH", "McpEndpoint"]

PATH = "/mcp"


def _of_http(caller_of: Callable[[Request], Caller]) -> CallerOf:
    def of_call(ctx: ServerRequestContext[Any, Any]) -> Caller:
        assert ctx.request is not None
        return caller_of(ctx.request)

    return of_call


class McpEndpoint:
    """An ASGI app for one path. It serves while `running` is entered."""

    def __init__(
        self,
        client: Client,
        presence: Presence,
        *,
        caller_of: Callable[[Request], Caller],
        closing: asyncio.Event,
        allows_origin: Callable[[str], bool] = lambda _: False,
        max_body_bytes: int = 4 << 20,
    ) -> None:
        """`caller_of`: whose request it is, once it has been let in. `closing`: streams that have no end of their own
        end when this is set. `allows_origin`: whether scripts of a page from there may call."""
        self._caller_of, self._closing, self._allows_origin = caller_of, closing, allows_origin
        self.tools = Tools(client, presence, caller_of=_of_http(caller_of))
        self._sessions = StreamableHTTPSessionManager(self.tools.server, max_request_body_size=max_body_bytes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Enter this while the app serves."""
        ending = asyncio.create_task(self._end_streams())
        try:
            async with self._sessions.run():
                yield
        finally:
            ending.cancel()

    async def _end_streams(self) -> None:
        await self._closing.wait()
        self.tools.stop_listening()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request = Request(scope)
        origin = request.headers.get("origin")
        if origin is not None and not self._allows_origin(origin):
            # A page that a browser shows must not reach a server that only its reader can reach.
            await PlainTextResponse("this origin is not allowed", status_code=403)(scope, receive, send)
            return
        # A session is of the tenant that began it: to others it is unknown.
        user = AuthenticatedUser(AccessToken(token="", client_id=self._caller_of(request).tenant, scopes=[]))
        heard = self._until_closing(receive) if request.method == "GET" else receive
        await self._sessions.handle_request({**scope, "user": user}, heard, send)

    def _until_closing(self, receive: Receive) -> Receive:
        """A session's own stream has no end: to it the gateway's is the client's."""

        async def heard() -> Message:
            message = asyncio.ensure_future(receive())
            closing = asyncio.ensure_future(self._closing.wait())
            try:
                await asyncio.wait({message, closing}, return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                closing.cancel()

        return heard
