"""StorageGuard: what `modelnet up` does when the disk under its NATS server runs full, and when it has room again.

Below a floor of free space the task stream takes nothing new: publishers are refused at once, and what is left of the
disk is for tasks that were accepted. If a write fails all the same, nats-server (2.15) neither answers publishers nor
writes to that stream again until it is restarted, so it is restarted: closed while there is no room, open once there
is. A purge that meets the full disk makes it wait for itself, for ever (fileStore.PurgeEx): then it says nothing any
more, and is restarted as well.
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

_SILENCES = 3
"""So often in a row a server that has answered before may say nothing of its health."""

State = Literal["open", "braked", "closed"]
Health = Literal["fine", "write_error", "silent", "away"]


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
        """Process id of a server that was told to end."""
        self._answered: int | None = None
        """Process id of the server that answered last: one that recovers its streams may take its time."""
        self._silences = 0

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
        if (wrong := await self._wrong()) is not None:
            if self._server.pid not in (None, self._mending):
                self._mending = self._server.pid
                self._restart("open" if ample else "closed", free, wrong)
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

    async def _wrong(self) -> str | None:
        """Why the server cannot go on, if it cannot."""
        pid, health = self._server.pid, await asyncio.to_thread(_health, self._server.monitor_url)
        if health == "silent":
            self._silences += 1
            hangs = pid is not None and pid == self._answered and self._silences >= _SILENCES
            return "it does not answer" if hangs else None
        self._silences = 0
        if health != "away":
            self._answered = pid
        return "a write has failed" if health == "write_error" else None

    def _restart(self, state: State, free: int, reason: str) -> None:
        self._server.limit_storage(1 if state == "closed" else None)
        self._server.restart()
        log.warning("server_restarted", reason=reason, free_bytes=free)
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


def _health(monitor_url: str) -> Health:
    """What the server says of itself. `write_error`: a stream could not be written; `away`: it may be starting."""
    try:
        urllib.request.urlopen(f"{monitor_url}/healthz", timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as answer:
        return "write_error" if b"write error" in answer.read() else "fine"
    except TimeoutError:
        return "silent"
    except OSError as error:
        return "silent" if isinstance(getattr(error, "reason", None), TimeoutError) else "away"
    return "fine"
