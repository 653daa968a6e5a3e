"""Readiness: whether a process can do its part now, for compose and Kubernetes: GET /ready is 200 or 503, with JSON.

Asked on the process's own loop and over its own connections, by storing something: a process that hangs, has lost its
server, or stands before a full disk is not ready.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import structlog
from faststream import FastStream
from faststream.nats import NatsBroker
from nats.aio.client import Client

from modelnet.bus.durability import Assurance, verify_durability
from modelnet.bus.storage import check_storage
from modelnet.errors import ModelnetError
from modelnet.settings import Settings

__all__ = ["Readiness"]

log = structlog.get_logger("ready")

PATIENCE_S = 5.0
_KEPT_S = 1.0
_VERIFIED_S = 60.0


class Readiness:
    """Answers for one process once it has started."""

    def __init__(self, connections: Callable[[], Sequence[Client]], config: Settings) -> None:
        """`connections`: those to the bus that the process works over."""
        self._connections, self._config = connections, config
        self._server: ThreadingHTTPServer | None = None
        self._asking = asyncio.Lock()
        self._said: tuple[float, dict[str, Any]] | None = None
        self._assured: tuple[float, list[Assurance]] | None = None

    @classmethod
    def of(cls, app: FastStream, config: Settings) -> Self:
        """That of an app's process."""
        return cls(lambda: [broker.connection for broker in app.brokers if isinstance(broker, NatsBroker)], config)

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it answers, if it does."""
        if self._server is None:
            return None
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    async def open(self) -> None:
        """Begin to answer, if MODELNET_READY_LISTEN says where. An address that is taken ends the process."""
        if not self._config.ready_listen:
            return
        host, _, port = self._config.ready_listen.rpartition(":")
        loop = asyncio.get_running_loop()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 - named by http.server; `self` is the readiness
                if handler.path != "/ready":
                    handler.send_error(404)
                    return
                asked = asyncio.run_coroutine_threadsafe(self.state(), loop)
                try:
                    state = asked.result(PATIENCE_S)
                except Exception as error:
                    asked.cancel()
                    state = {
                        "ready": False,
                        "code": "hangs",
                        "reason": f"{type(error).__name__} after {PATIENCE_S:g} s",
                    }
                body = json.dumps(state).encode() + b"\n"
                handler.send_response(200 if state["ready"] else 503)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(handler, *_: object) -> None:  # noqa: N805
                return

        self._server = ThreadingHTTPServer((host, int(port)), Handler)
        threading.Thread(target=self._server.serve_forever, name="ready", daemon=True).start()
        log.info("ready_listening", address=self.address)

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.shutdown)
            server.server_close()

    def forget(self) -> None:
        """Look anew the next time, however soon that is."""
        self._said = None

    async def state(self) -> dict[str, Any]:
        """What is answered: `ready`, and if not `code` and `reason`; the durability named, and what of it holds."""
        async with self._asking:  # who asks often gets what was found a moment ago
            if self._said is None or time.monotonic() - self._said[0] > _KEPT_S:
                self._said = time.monotonic(), await self._look()
            return self._said[1]

    async def _look(self) -> dict[str, Any]:
        try:
            connections = self._connections()
            for connection in connections:
                await check_storage(connection)
            found: dict[str, Any] = {"ready": True}
        except ModelnetError as error:
            found = {"ready": False, "code": error.wire_code, "reason": error.message}
            return found | {"durability": self._config.durability}
        return found | {"durability": self._config.durability, "assured": await self._assurances(connections[-1])}

    async def _assurances(self, connection: Client) -> dict[str, bool | None]:
        if self._assured is None or time.monotonic() - self._assured[0] > _VERIFIED_S:
            assured = await verify_durability(connection, self._config)
            self._assured = time.monotonic(), assured
            for one in assured:
                if not one.holds:
                    log.warning("durability_not_assured", named=self._config.durability, what=one.what, why=one.detail)
        return {one.what: one.holds for one in self._assured[1]}
