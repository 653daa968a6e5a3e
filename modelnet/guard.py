"""StorageGuard: what `modelnet up` does when the disk under its NATS server runs full, and when it has room again.

Below a floor of free space the task stream takes nothing new: publishers are refused at once, and what is left of the
disk is for tasks that were accepted. If a write fails all the same, nats-server (2.15) neither answers publishers nor
writes to that stream again until it is restarted, so it is restarted: closed while there is no room, open once there
is.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from typing import Any, Literal

import nats.errors
import structlog
from nats.aio.client import Client

from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.streams import stream_config
from modelnet.errors import ConnectionFailed
from modelnet.settings import Settings

__all__ = ["FLOOR_BYTES", "StorageGuard"]

log = structlog.get_logger("guard")

FLOOR_BYTES = 64 << 20
"""Free space below which no task is accepted; above twice as much they are again."""

TICK_S = 0.5
_TIMEOUT_S = 2.0

State = Literal["open", "braked", "closed"]


class StorageGuard:
    """Watches one embedded server's disk."""

    def __init__(self, server: EmbeddedNats, config: Settings, *, floor_bytes: int = FLOOR_BYTES) -> None:
        """`server` has to be monitored."""
        self._server = server
        self._config = config.model_copy(update={"url": server.url})
        self._floor = floor_bytes
        self._nc: Client | None = None
        self.state: State = "open"
        """`braked`: no new tasks; `closed`: nothing at all is stored."""
        self._mending: int | None = None
        """Process id of a server that was told to end for a failed write."""

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except (OSError, ConnectionFailed, nats.errors.Error) as error:
                    log.warning("guard_failed", error=repr(error))
                await asyncio.sleep(TICK_S)
        finally:
            if self._nc is not None:
                await close(self._nc)

    async def look(self) -> None:
        """Look once, and do what is to be done."""
        free = shutil.disk_usage(self._server.data).free
        low, ample = free < self._floor, free >= 2 * self._floor
        if await asyncio.to_thread(_write_failed, self._server.monitor_url):
            if self._server.pid not in (None, self._mending):
                self._mending = self._server.pid
                self._restart("open" if ample else "closed", free)
        elif self.state == "closed":
            if ample:
                self._server.limit_storage(None)
                self._server.reload()
                self._become("open", free)
        elif low:
            await self._bound_tasks(1)  # each time: a negotiator that starts lifts it
            self._become("braked", free)
        elif self.state == "braked" and ample:
            await self._bound_tasks(None)
            self._become("open", free)

    def _restart(self, state: State, free: int) -> None:
        self._server.limit_storage(1 if state == "closed" else None)
        self._server.restart()
        log.warning("server_restarted", reason="a write has failed", free_bytes=free)
        self._become(state, free)

    def _become(self, state: State, free: int) -> None:
        if state != self.state:
            self.state = state
            (log.info if state == "open" else log.warning)("storage_state", state=state, free_bytes=free)

    async def _bound_tasks(self, most_bytes: int | None) -> None:
        """What is stored stays: the stream discards what is new."""
        if self._nc is None:
            self._nc = await connect(self._config, "modelnet-guard")
        body: dict[str, Any] = stream_config("TASKS") | ({} if most_bytes is None else {"max_bytes": most_bytes})
        reply = await self._nc.request("$JS.API.STREAM.UPDATE.TASKS", json.dumps(body).encode(), timeout=_TIMEOUT_S)
        if error := json.loads(reply.data).get("error"):
            raise ConnectionFailed(f"the task stream cannot be bounded: {error.get('description')}")


def _write_failed(monitor_url: str) -> bool:
    """Whether the server says that a stream could not be written. A server that says nothing may be starting."""
    try:
        urllib.request.urlopen(f"{monitor_url}/healthz", timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as answer:
        return b"write error" in answer.read()
    except OSError:
        return False
    return False
