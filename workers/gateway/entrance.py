"""The entrance: who comes in, and with how large a body. Middleware around all rooms."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelnet.settings import Settings

from .lobby import Room
from .refusal import Refusal

__all__ = ["Entrance", "is_loopback"]

ALWAYS_PUBLIC = ("/healthz", "/readyz")


def is_loopback(host: str | None) -> bool:
    """Whether a host name can only be this machine's own."""
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


class Entrance:
    """Puts `tenant` into the request's state, or refuses: 401, 403, 413."""

    def __init__(self, app: ASGIApp, *, config: Settings, rooms: Sequence[Room]) -> None:
        self._app, self._config = app, config
        self._public = (*ALWAYS_PUBLIC, *(path for room in rooms for path in room.public))
        self._keys_required = config.gateway_keys_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            if not self._is_public(scope["path"]):
                scope["state"]["tenant"] = self._tenant(headers)
            if scope["type"] == "http":
                receive = self._bounded(headers, receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_public(self, path: str) -> bool:
        return any(path == one or (one.endswith("/") and path.startswith(one)) for one in self._public)

    def _tenant(self, headers: Headers) -> str:
        if self._keys_required:
            raise Refusal(401, "invalid_api_key", "this gateway asks for a key: Authorization: Bearer KEY")
        self._refuse_strangers(headers)
        return self._config.tenant

    def _refuse_strangers(self, headers: Headers) -> None:
        """Without keys a web page that a person of this machine looks at must not be served.

        Browsers name the page in `Origin`; one whose name was made to resolve to this machine shows in `Host`.
        """
        origin = headers.get("origin")
        names = [urlsplit(f"//{headers.get('host', '')}").hostname, *([urlsplit(origin).hostname] if origin else ())]
        if not all(is_loopback(name) for name in names):
            raise Refusal(403, "origin_refused", "without a key only this machine's own programs and pages are served")

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        most = self._config.gateway_max_body_bytes
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _too_large(most)
            return message

        return bounded


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"a request's body may have {most} bytes", headers={"connection": "close"})
