"""The gateway as an ASGI app, and as the process that serves it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator, Sequence
from typing import Any

import structlog
import uvicorn
from faststream import FastStream
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import modelnet
from modelnet.bus.broker import make_broker, specification
from modelnet.client import Client
from modelnet.errors import ModelnetError
from modelnet.log import setup_logging
from modelnet.ready import Readiness
from modelnet.settings import Settings
from modelnet.store.tenants import Tenants

from .console import console
from .entrance import Entrance
from .keys import Keys
from .lobby import Lobby, Room, lobby_of
from .openai import openai_room
from .refusal import Refusal

__all__ = ["create_app", "default_rooms", "make_app"]

log = structlog.get_logger("gateway")


def default_rooms() -> tuple[Room, ...]:
    """The rooms of every gateway, by protocol."""
    rooms: tuple[Room, ...] = (openai_room(), console())
    try:
        from .agents import agents_room
    except ModuleNotFoundError as missing:
        log.warning("room_left_out", room="agents", reason=f"the package {missing.name!r} is not installed")
        return rooms
    return (*rooms, agents_room())


def create_app(config: Settings, *, rooms: Sequence[Room] | None = None, net: Client | None = None) -> Starlette:
    """The ASGI app. `net`: the connection to use; without one it connects when it starts, and closes that at its end.

    `rooms`: instead of all. Raises `ConnectionFailed` at start if no server is there.
    """
    rooms = default_rooms() if rooms is None else tuple(rooms)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(modelnet.connect(config=config)) if net is None else net
            keys = Keys(Tenants(config.redis))
            stack.push_async_callback(keys.close)
            lobby = Lobby(config, client, keys)
            for room in rooms:
                if room.lifespan is not None:
                    await stack.enter_async_context(room.lifespan(lobby))
            app.state.lobby = lobby
            yield {"lobby": lobby, "readiness": Readiness(lambda: [client.bus], config)}
            await lobby.settle()

    return Starlette(
        routes=[
            Route("/healthz", _alive),
            Route("/readyz", _ready),
            *(route for room in rooms for route in room.routes),
        ],
        middleware=[Middleware(Entrance, config=config, rooms=rooms)],
        exception_handlers={Refusal: _refuse, HTTPException: _refuse_plainly, Exception: _fail},
        lifespan=lifespan,
    )


async def _alive(_: Request) -> Response:
    """The process answers."""
    return Response(b'{"alive": true}\n', media_type="application/json")


async def _ready(request: Request) -> Response:
    """Tasks can be taken: something was stored, over the gateway's own connection."""
    readiness: Readiness = request.state.readiness
    state = await readiness.state() if not lobby_of(request).closing.is_set() else {"ready": False, "code": "closing"}
    return Response(to_json(state) + b"\n", 200 if state["ready"] else 503, media_type="application/json")


async def _refuse(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def _refuse_plainly(_: Request, error: Exception) -> Response:
    """What the router refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, "not_found" if error.status_code == 404 else "refused", error.detail)
    refusal.headers.update(error.headers or {})
    return refusal.response()


async def _fail(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=request.url.path, error=repr(error), exc_info=error)
    return Refusal(500, "internal", "the gateway failed at this request; its log says why").response()


class _Server(uvicorn.Server):
    """Leaves signals to the process, and says when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """None: FastStream has them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin."""
        await super().startup(sockets)
        self.serving.set()


def make_app(config: Settings) -> FastStream:
    """The gateway's process as a FastStream app: its connection, and a server on MODELNET_GATEWAY_LISTEN."""
    client: Client | None = None
    asgi: Starlette
    server: _Server | None = None
    serving: asyncio.Task[None] | None = None

    async def reconnected() -> None:
        if client is not None:
            client.reconnects += 1

    broker = make_broker(config, "modelnet-gateway", on_reconnect=reconnected)
    app = FastStream(broker, specification=specification("gateway"))

    @app.on_startup
    async def prepare() -> None:
        setup_logging(config)

    @app.after_startup
    async def open_doors() -> None:
        nonlocal client, asgi, server, serving
        client = Client(broker.connection, config)
        asgi = create_app(config, net=client)
        listener = _listen(config)
        server = _Server(
            uvicorn.Config(
                asgi,
                http="httptools",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=int(config.drain_s),
            )
        )
        serving = asyncio.create_task(server.serve([listener]))
        started = asyncio.create_task(server.serving.wait())
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if not server.serving.is_set():
            raise ModelnetError("the gateway did not start; its log says why", code="start_failed")
        log.info("gateway_started", address=listener.getsockname()[:2], keys=config.gateway_keys_required)

    @app.on_shutdown
    async def close_doors() -> None:
        if server is not None and serving is not None:
            asgi.state.lobby.closing.set()
            server.should_exit = True
            await serving

    return app


def _listen(config: Settings) -> socket.socket:
    """The socket on MODELNET_GATEWAY_LISTEN. Raises `ModelnetError` if it cannot be had."""
    host, _, port = config.gateway_listen.rpartition(":")
    host = host.strip("[]")
    try:
        return socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise ModelnetError(f"the gateway cannot listen on {config.gateway_listen}: {error}", code="address") from None
