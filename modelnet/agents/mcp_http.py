"""Where the network's MCP tools answer over streamable HTTP, in all versions of the protocol that the SDK serves.

A client of 2026-07-28 needs no session: any process answers any request. Clients of earlier versions have a session in
one process; another tells them that it is unknown, and they begin a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from modelnet.agents.mcp_tools import TenantOf, Tools
from modelnet.client import Client
from modelnet.presence import Presence

__all__ = ["PATH", "McpEndpoint"]

PATH = "/mcp"


def _of_http(tenant_of: Callable[[Request], str]) -> TenantOf:
    def of_call(ctx: ServerRequestContext[Any, Any]) -> str:
        assert ctx.request is not None
        return tenant_of(ctx.request)

    return of_call


class McpEndpoint:
    """An ASGI app for one path. It serves while `running` is entered."""

    def __init__(
        self,
        client: Client,
        presence: Presence,
        *,
        tenant_of: Callable[[Request], str],
        origins: Collection[str] = (),
        max_body_bytes: int = 4 << 20,
    ) -> None:
        """`tenant_of`: whose request it is, once it has been let in. `origins`: pages whose scripts may call it."""
        self._tenant_of, self._origins = tenant_of, frozenset(origins)
        self.tools = Tools(client, presence, tenant_of=_of_http(tenant_of))
        self._sessions = StreamableHTTPSessionManager(self.tools.server, max_request_body_size=max_body_bytes)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Enter this while the app serves."""
        return self._sessions.run()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request = Request(scope)
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins:
            # A page that a browser shows must not reach a server that only its reader can reach.
            await PlainTextResponse("this origin is not allowed", status_code=403)(scope, receive, send)
            return
        # A session is of the tenant that began it: to others it is unknown.
        token = AccessToken(token="", client_id=self._tenant_of(request), scopes=[])
        await self._sessions.handle_request({**scope, "user": AuthenticatedUser(token)}, receive, send)
