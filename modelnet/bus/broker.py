"""The FastStream side of the bus: a broker with this project's connection options, and what its documents say."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from faststream import AckPolicy
from faststream.nats import NatsBroker
from faststream.specification import AsyncAPI
from nats.aio.client import ErrorCallback
from nats.errors import ConnectionClosedError, ConnectionReconnectingError

from modelnet.settings import Settings

from .channels import describe
from .connection import Connection, close, connection_options

__all__ = ["make_broker", "specification"]


class Broker(NatsBroker):
    """A broker whose subscriptions outlive their handlers' errors, and that can be stopped while its server is away.

    FastStream raises some NATS errors again from its error callback, among them that of a publish without a subject.
    That is right while it connects; later nats-py ends the subscription whose handler failed, without a word. And
    nats-py refuses to drain a connection that is lost. Its connection is a `Connection`.
    """

    def __init__(self, *, error_cb: ErrorCallback, **options: Any) -> None:
        super().__init__(error_cb=error_cb, **options)
        self._on_error = error_cb

    async def connect(self) -> Connection:
        """Connect, once."""
        connection: Connection = await super().connect()
        connection._error_cb = self._on_error
        return connection

    async def _connect(self) -> Connection:
        connection = Connection()
        await connection.connect(**self._connection_kwargs)
        self.config.connect(connection)
        return connection

    async def stop(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> None:
        """Stop its subscribers, drain the connection if it stands, and close it."""
        connection = self._connection
        if connection is not None and not connection.is_connected:
            self._connection = None
        with contextlib.suppress(ConnectionReconnectingError, ConnectionClosedError):  # lost while it stopped
            await super().stop(exc_type, exc_val, exc_tb)
        if connection is not None:
            await close(connection)


def make_broker(settings: Settings, name: str, *, on_reconnect: Callable[[], Awaitable[None]]) -> NatsBroker:
    """A broker that waits for its server and reconnects for ever. It declares no streams: `setup_bus` owns them."""
    options = connection_options(settings, name, on_reconnect=on_reconnect)
    return Broker(**options, graceful_timeout=15.0, ack_policy=AckPolicy.MANUAL, logger=None)


def specification(role: str) -> AsyncAPI:
    """The AsyncAPI document of one role: every subject it receives on or sends to, the hot path included."""
    return describe(role)
