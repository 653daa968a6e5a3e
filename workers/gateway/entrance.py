"""The entrance: who comes in, and with how large a body. Middleware around all rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelnet.settings import Settings
from modelnet.store.tenants import KEY_PREFIX

from .keys import Guest
from .lobby import Lobby, Room
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
    """Puts `guest` into the request's state, or refuses: 401, 403, 413, 429, 503."""

    def __init__(self, app: ASGIApp, *, config: Settings, rooms: Sequence[Room]) -> None:
        self._app, self._config = app, config
        self._public = (*ALWAYS_PUBLIC, *(path for room in rooms for path in room.public))
        self._keys_required = config.gateway_keys_required
        self._nobody = Guest(config.tenant)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            if not self._is_public(scope["path"]):
                scope["state"]["guest"], limits = await self._guest(scope, headers)
                if limits:
                    send = _with_headers(send, limits)
            if scope["type"] == "http":
                receive = self._bounded(headers, receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_public(self, path: str) -> bool:
        return any(path == one or (one.endswith("*") and path.startswith(one[:-1])) for one in self._public)

    async def _guest(self, scope: Scope, headers: Headers) -> tuple[Guest, dict[str, str]]:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        # Where none is needed, OpenAI's clients send one all the same, whatever its text.
        if self._keys_required or key.startswith(KEY_PREFIX):
            if not key:
                raise Refusal(401, "invalid_api_key", "this gateway asks for a key: Authorization: Bearer KEY")
            lobby: Lobby = scope["state"]["lobby"]
            return await lobby.keys.guest(key)
        self._refuse_strangers(headers)
        return self._nobody, {}

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


def _with_headers(send: Send, more: Mapping[str, str]) -> Send:
    raw = [(name.encode(), value.encode()) for name, value in more.items()]

    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *raw]}
        await send(message)

    return adding


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"a request's body may have {most} bytes", headers={"connection": "close"})
