"""Network: everything a modelnet needs on one machine, as child processes: servers, negotiators, workers, a ledger,
a gateway.

It keeps its streams and logs in a data folder, writes `network.json` there so that commands find it, and leaves nothing
running, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from modelnet.bus.connection import connect
from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis, HeldPort
from modelnet.cores import keeping_off
from modelnet.errors import ModelnetError, UsageError
from modelnet.guard import StorageGuard
from modelnet.processes import ChildProcess, StartFailed
from modelnet.run import MODELS_APP, engine_cores
from modelnet.settings import NETWORK_FILE, Settings, settings

__all__ = ["DEFAULT_WORKERS", "MODEL_WORKERS", "AlreadyRunning", "Network", "WorkerProcess"]

log = structlog.get_logger("network")

_PORTS_FILE = "ports.json"
_LOCK_FILE = "lock"
_LOCK_PATIENCE_S = 20.0
_WORKER_START_S = 600.0
_LEDGER_AGAIN_S = 2.0
"""Long enough for an engine that compiles kernels when it first starts."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker to start: an app path (`workers.tools:app`) or a file, and what to put in its environment."""

    app: str
    env: Mapping[str, str] = field(default_factory=dict)
    required: bool = True
    """Whether the network does not start without it."""

    @property
    def name(self) -> str:
        """What its process and its log are called."""
        is_file = self.app.endswith((".py", ".toml"))
        return Path(self.app).stem if is_file else self.app.partition(":")[0].rpartition(".")[2]


MODEL_WORKERS = (WorkerProcess(MODELS_APP, required=False),)
DEFAULT_WORKERS = (WorkerProcess("workers.tools:app", required=False), *MODEL_WORKERS)


class AlreadyRunning(ModelnetError):
    """Raised when another process runs a network on the same data folder."""

    code = "already_running"


class Network:
    """`async with Network(data=…) as network:` starts it and waits until tasks can be taken; leaving stops it."""

    def __init__(
        self,
        *,
        data: Path | None = None,
        negotiators: int = 1,
        workers: Sequence[WorkerProcess] = DEFAULT_WORKERS,
        gateway: bool = False,
        config: Settings | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`gateway`: open its doors too, on MODELNET_GATEWAY_LISTEN if that is set, else on a free loopback port.

        Servers are started unless `config` names existing ones. `report` gets a line for a person at each step."""
        self._config = config or settings()
        self.data = (data or self._config.data).expanduser().resolve()
        self.url = self._config.url
        self.redis_url = self._config.redis_url
        self.monitor_url = self._config.monitor_url
        self.gateway_url = ""
        """Where the gateway answers, if there is one: without a path, and without a slash at its end."""
        self._with_gateway = gateway
        self._gateway_port: HeldPort | None = None
        self._guard: StorageGuard | None = None
        self._guarding: asyncio.Task[None] | None = None
        self._negotiator_count = negotiators
        self._worker_list = tuple(workers)
        self._report = report
        self._servers: list[ChildProcess] = []
        self._negotiators: list[ChildProcess] = []
        self._workers: list[ChildProcess] = []
        self._ledgers: list[ChildProcess] = []
        self._gateways: list[ChildProcess] = []
        self._ledger_start: asyncio.Task[None] | None = None
        self._lock: int | None = None
        self._cores = contextlib.ExitStack()
        """While entered, this process keeps off the cores that engines have to themselves."""
        self.absent: dict[str, str] = {}
        """Workers that did not start, and why."""

    @property
    def processes(self) -> list[ChildProcess]:
        """All children, servers first."""
        return [*self._servers, *self._negotiators, *self._workers, *self._ledgers, *self._gateways]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ------------------------------------------------------------------ starting

    async def start(self) -> None:
        """Start what is missing. Raises `AlreadyRunning`, `StartFailed`, or `ConnectionFailed` for servers given."""
        if self._config.durability == "replicated" and not self.url:
            raise StartFailed(
                "MODELNET_DURABILITY=replicated needs a cluster of three NATS servers (MODELNET_URL); the server "
                "started here is one"
            )
        logs = self.data / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        await self._take_lock()
        self._cores.enter_context(keeping_off(self._engine_cores()))  # what is started inherits that
        await self._start_servers(logs)
        names = _distinct([worker.name for worker in self._worker_list])
        # All at once: a worker waits for the network to stand, and most of its start is imports.
        await asyncio.gather(
            self._start_negotiators(logs),
            self._start_gateway(logs),
            *(self._start_worker(name, worker, logs) for name, worker in zip(names, self._worker_list, strict=True)),
        )
        # Nobody waits for it: what it has to settle stays in the journal until it has.
        self._ledger_start = asyncio.create_task(self._start_ledger(logs))
        if self._worker_list and not self._workers:
            self._report("no worker is running: tasks will wait for one")
        if self._guard is not None:
            self._guarding = asyncio.create_task(self._guard.run())
        self._write(
            NETWORK_FILE,
            {
                "url": self.url,
                "redis_url": self.redis_url,
                "monitor_url": self.monitor_url,
                "gateway_url": self.gateway_url,
                "pid": os.getpid(),
            },
        )

    def _engine_cores(self) -> set[int]:
        held = set[int]()
        for worker in self._worker_list:
            with contextlib.suppress(UsageError, ImportError):  # the worker says so itself, or is left out
                held |= engine_cores(worker.app)
        return held

    async def _take_lock(self) -> None:
        """Children inherit the lock: after a kill -9 it is free only once the last of them has let go of the data."""
        self._lock = os.open(self.data / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        waited = 0.0
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = self._read(_LOCK_FILE).get("pid")
                if waited >= _LOCK_PATIENCE_S or (isinstance(holder, int) and _alive(holder)):
                    os.close(self._lock)
                    self._lock = None
                    who = f"process {holder}" if holder else "another process"
                    raise AlreadyRunning(
                        f"{who} runs a network in {self.data}: stop it, or choose another folder with --data"
                    ) from None
                if not waited:
                    self._report("waiting for the processes of an earlier network to end")
                await asyncio.sleep(0.1)
                waited += 0.1
            else:
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, json.dumps({"pid": os.getpid()}).encode(), 0)
                return

    async def _start_servers(self, logs: Path) -> None:
        ports = self._read(_PORTS_FILE)
        held = () if self._lock is None else (self._lock,)
        if not self.url:
            nats = EmbeddedNats(
                self.data / "nats",
                port=ports.get("nats"),
                log_dir=logs,
                pass_fds=held,
                sync_always=self._config.durability == "power",
                monitored=True,
            )
            self._servers.append(nats)
            self.url, ports["nats"] = nats.url, nats.port
            self.monitor_url = nats.monitor_url
            self._guard = StorageGuard(nats, self._config)
        if not self.redis_url:
            redis = EmbeddedRedis(self.data / "redis", port=ports.get("redis"), log_dir=logs, pass_fds=held)
            self._servers.append(redis)
            self.redis_url, ports["redis"] = redis.url, redis.port
        self._write(_PORTS_FILE, ports)
        await asyncio.gather(*(server.start() for server in self._servers))
        probe = await connect(self._config.model_copy(update={"url": self.url}), "modelnet-up")
        await probe.close()
        for server in self._servers:
            self._report(f"{server.name} is up")

    async def _start_negotiators(self, logs: Path) -> None:
        for number in range(1, self._negotiator_count + 1):
            name = "negotiator" if self._negotiator_count == 1 else f"negotiator-{number}"
            self._negotiators.append(
                self._child(name, "workers.negotiator:app", logs, ready=b"negotiator_started", env={})
            )
        await asyncio.gather(*(negotiator.start() for negotiator in self._negotiators))
        if not self._negotiators:
            return
        self._report(
            "1 negotiator is up" if self._negotiator_count == 1 else f"{self._negotiator_count} negotiators up"
        )

    async def _start_gateway(self, logs: Path) -> None:
        if not self._with_gateway:
            return
        if "gateway_listen" in self._config.model_fields_set:
            listen = self._config.gateway_listen
        else:
            ports = self._read(_PORTS_FILE)
            self._gateway_port = HeldPort(ports.get("gateway"))
            ports["gateway"] = self._gateway_port.number
            self._write(_PORTS_FILE, ports)
            listen = f"127.0.0.1:{ports['gateway']}"
        env = {"MODELNET_GATEWAY_LISTEN": listen}
        gateway = self._child("gateway", "workers.gateway:app", logs, ready=b"gateway_started", env=env)
        self._gateways.append(gateway)
        await gateway.start()
        host, _, port = listen.rpartition(":")
        self.gateway_url = f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"
        self._report("the gateway is up")

    async def _start_ledger(self, logs: Path) -> None:
        """Until it runs: with a full disk it cannot start, and what is held must be settled afterwards."""
        told = False
        while True:
            ledger = self._child("ledger", "workers.ledger:app", logs, ready=b"ledger_started", env={})
            self._ledgers[:] = [ledger]
            try:
                await ledger.start()
            except StartFailed as failure:
                if not told:
                    reason = str(failure).strip().rpartition("\n")[2]
                    log = f"(all of it: {logs / 'ledger'}.log)"
                    self._report(
                        f"the ledger did not start, and is tried again; until then nothing is settled: {reason} {log}"
                    )
                    told = True
                await asyncio.sleep(_LEDGER_AGAIN_S)
            else:
                return

    async def _start_worker(self, name: str, worker: WorkerProcess, logs: Path) -> None:
        if not worker.required and not _importable(worker.app):
            self._leave_out(name, "it is not installed")
            return
        child = self._child(name, worker.app, logs, ready=b"workers_joined", env=worker.env)
        self._workers.append(child)
        try:
            await child.start(_WORKER_START_S)
        except StartFailed as failure:
            self._workers.remove(child)
            reason = str(failure).strip().rpartition("\n")[2].removeprefix("error: ")
            if worker.required:
                raise StartFailed(f"worker {name} did not start: {reason} (all of it: {logs / name}.log)") from failure
            self._leave_out(name, reason)
        else:
            self._report(f"worker {name} has joined")

    def _leave_out(self, name: str, reason: str) -> None:
        self.absent[name] = reason
        self._report(f"worker {name} is left out: {reason}")

    def _child(self, name: str, app: str, logs: Path, *, ready: bytes, env: Mapping[str, str]) -> ChildProcess:
        """A Python process of the network; it is told where the servers are."""
        where = {
            "MODELNET_URL": self.url,
            "MODELNET_DATA": str(self.data),
            "MODELNET_REDIS_URL": self.redis_url,
            "MODELNET_MONITOR_URL": self.monitor_url,
            "MODELNET_DURABILITY": self._config.durability,
            "MODELNET_LOG_FORMAT": "json",
        }
        command = [sys.executable, "-m", "modelnet.run", app]
        return ChildProcess(name, command, log_dir=logs, ready=ready, env={**where, **env})

    # ------------------------------------------------------------------ stopping

    async def stop(self, grace_s: float = 15.0) -> None:
        """Stop gateway, workers, negotiators, ledger, servers, in this order: each can finish what it owes the next."""
        if self._guarding is not None:
            self._guarding.cancel()
            await asyncio.gather(self._guarding, return_exceptions=True)
        if self._ledger_start is not None:
            self._ledger_start.cancel()
            await asyncio.gather(self._ledger_start, return_exceptions=True)
        for group in (self._gateways, self._workers, self._negotiators, self._ledgers, self._servers):
            await asyncio.gather(*(child.stop(grace_s) for child in group))
            group.clear()
        if self._gateway_port is not None:
            self._gateway_port.release()
        self._cores.close()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.data / NETWORK_FILE).unlink()
            os.close(self._lock)
            self._lock = None

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.data / name).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Whole or not at all: a reader must never see half a file."""
        fresh = self.data / f"{name}.new"
        fresh.write_text(json.dumps(content))
        fresh.replace(self.data / name)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each that came before."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def _importable(app: str) -> bool:
    if app.endswith(".py"):
        return True
    try:
        return importlib.util.find_spec(app.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
