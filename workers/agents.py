"""The network as agents of the NATS agent protocol: `modelnet up --worker workers.agents:app`, beside other workers.

It does no work itself: prompts become tasks. Any number of these processes share the prompts. Needs the extra `agents`.
"""

from __future__ import annotations

import contextlib

import structlog
from faststream import FastStream

from modelnet.agents.nats_agents import HEARTBEAT_S, LOOK_S, Agents
from modelnet.bus.broker import make_broker, specification
from modelnet.client import Client
from modelnet.log import setup_logging
from modelnet.presence import Presence
from modelnet.settings import Settings, settings

__all__ = ["app", "make_app"]

log = structlog.get_logger("agents")


def make_app(config: Settings, *, heartbeat_s: int = HEARTBEAT_S, look_s: float = LOOK_S) -> FastStream:
    """The bridge as a FastStream app."""
    clients = list[Client]()
    open_ = contextlib.AsyncExitStack()

    async def reconnected() -> None:
        for client in clients:
            client.reconnects += 1

    broker = make_broker(config, "modelnet-agents", on_reconnect=reconnected)
    app = FastStream(broker, specification=specification("client"))

    @app.on_startup
    async def prepare() -> None:
        setup_logging(config)

    @app.after_startup
    async def join() -> None:
        client = Client(broker.connection, config)
        clients.append(client)
        presence = await open_.enter_async_context(Presence(client))
        await open_.enter_async_context(Agents(client, presence, heartbeat_s=heartbeat_s, look_s=look_s))
        log.info("workers_joined", workers=["agents"])

    @app.on_shutdown
    async def leave() -> None:
        await open_.aclose()

    return app


app = make_app(settings())
