"""The campaign's network: servers and parties as processes of their own, each party behind a proxy of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis
from modelnet.processes import ChildProcess, StartFailed
from tests.chaos.custody import Custody, NegotiatorCustody, WorkerCustody
from tests.chaos.frames import Frame
from tests.chaos.launch import CLOCK, set_clock
from tests.chaos.proxy import Direction, Proxy, Verdict

__all__ = ["Fleet", "Party", "Role", "Server", "Sizes"]

Role = Literal["negotiator", "worker", "client", "model", "ledger"]

LAUNCH = [sys.executable, "-m", "tests.chaos.launch"]

_CUSTODY: dict[Role, type[Custody]] = {
    "negotiator": NegotiatorCustody,
    "worker": WorkerCustody,
    "model": WorkerCustody,
    "client": Custody,
    "ledger": Custody,
}

_STARTS = 10
"""How often a party's process is started before the campaign gives up."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the network is, and how soon it notices."""

    negotiators: int = 3
    workers: int = 6
    clients: int = 2
    beat_s: float = 1.0
    missed_beats: int = 3
    ack_wait_s: float = 10.0
    ledgers: int = 0
    """Ledger workers; with any, workers have owners and prices that are worth paying."""

    @property
    def lease_s(self) -> float:
        """A worker silent for so long counts as lost."""
        return self.beat_s * self.missed_beats


class Server:
    """nats-server or Redis, which comes back on its port and with its data."""

    def __init__(self, make: Callable[[int | None], EmbeddedNats | EmbeddedRedis]) -> None:
        self._make = make
        self._running = make(None)
        self.port = self._running.port

    async def start(self) -> None:
        """Start it the first time."""
        await self._running.start()

    async def kill(self) -> None:
        """End it with kill -9; it stays away until `revive`."""
        pid = self._running.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await self._running.stop()  # told before the watcher can see the end: it does not start it again

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._running.pid is not None:
            os.kill(self._running.pid, number)

    async def revive(self) -> None:
        """Start it again."""
        self._running = self._make(self.port)
        assert self._running.port == self.port, "another program took the port meanwhile"
        await self._running.start()

    async def stop(self) -> None:
        """End it in good order."""
        await self._running.stop()


class Party:
    """A process behind its proxy. Whatever is done to it, `busy` says whether a fault has it in hand."""

    def __init__(
        self,
        name: str,
        role: Role,
        command: Sequence[str],
        ready: bytes,
        *,
        nats: Server,
        folder: Path,
        env: Mapping[str, str],
    ) -> None:
        self.name, self.role = name, role
        self.busy = False
        self.clock = folder / f"{name}.clock"
        self.proxy = Proxy(nats.port, watch=self._watch)
        self.custody: Custody = _CUSTODY[role]()
        self.trap: Callable[[Direction, Frame], Verdict | None] | None = None
        self._command, self._ready, self._folder, self._env = list(command), ready, folder, dict(env)
        self._child: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start the proxy and the process behind it."""
        set_clock(self.clock, 0.0)
        await self.proxy.start()
        await self.revive()

    async def revive(self) -> None:
        """Start the process, the first time or anew, once what is left of the last one is gone."""
        await self.bury()
        env = {**self._env, "MODELNET_URL": f"nats://127.0.0.1:{self.proxy.port}", CLOCK: str(self.clock)}
        for tries_left in reversed(range(_STARTS)):
            self._child = ChildProcess(
                self.name, self._command, log_dir=self._folder, ready=self._ready, restart=False, env=env
            )
            try:
                await self._child.start(timeout_s=120.0)
                break
            except StartFailed:  # its server was away, or went away meanwhile: what supervises it tries again
                if not tries_left:
                    raise

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.pid is not None:
            os.kill(self.pid, number)

    async def bury(self) -> None:
        """Wait for the end of a process that was killed, and of its connections."""
        if self._child is not None:
            await self._child.stop(grace_s=0.1)
            self._child = None
            await self.proxy.idle()
        self.custody.clear()

    async def ended(self) -> None:
        """Wait until the process has ended by itself."""
        if self._child is not None and self._child._watcher is not None:
            await asyncio.wait({self._child._watcher})

    async def stop(self) -> None:
        """End process and proxy."""
        self.signal(signal.SIGCONT)
        if self._child is not None:
            await self._child.stop(grace_s=10.0)
        await self.proxy.stop()

    def _watch(self, direction: Direction, frame: Frame) -> Verdict:
        self.custody.see(direction, frame)
        verdict = self.trap(direction, frame) if self.trap is not None else None
        return verdict or Verdict.PASS


class Fleet:
    """All of it, in one folder."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes
        self.nats = Server(lambda port: EmbeddedNats(folder / "nats", port=port))
        self.redis = Server(lambda port: EmbeddedRedis(folder / "redis", port=port))
        self._redis_proxy = Proxy(self.redis.port, frames=False)
        self.parties: list[Party] = []
        self.executions = folder / "executions.log"

    async def start(self) -> None:
        """Servers, negotiators and workers; clients join with `add`."""
        await asyncio.gather(self.nats.start(), self.redis.start())
        await self._redis_proxy.start()
        for number in range(self.sizes.negotiators):
            command = [*LAUNCH, "workers.negotiator:app"]
            await self.add(f"negotiator-{number}", "negotiator", command, b"negotiator_started")
        for number in range(self.sizes.workers):
            name = f"worker-{number}"
            env = {"MODELNET_OWNER": self.owners[name], "CHAOS_PAID": "1"} if self.owners else {}
            await self.add(name, "worker", [*LAUNCH, "tests.chaos.worker:app"], b"workers_joined", env)
        for number in range(self.sizes.ledgers):
            await self.add(f"ledger-{number}", "ledger", [*LAUNCH, "workers.ledger:app"], b"ledger_started")

    @property
    def owners(self) -> dict[str, str]:
        """Who owns each worker, where money is paid: some have two."""
        workers = range(self.sizes.workers) if self.sizes.ledgers else ()
        return {f"worker-{number}": f"owner-{number % max(self.sizes.workers - 1, 1)}" for number in workers}

    def party(
        self, name: str, role: Role, command: Sequence[str], ready: bytes, env: Mapping[str, str] | None = None
    ) -> Party:
        """A party that has not started."""
        told = {
            "MODELNET_REDIS_URL": f"redis://127.0.0.1:{self._redis_proxy.port}/0",
            "MODELNET_BEAT_S": f"{self.sizes.beat_s}",
            "MODELNET_MISSED_BEATS": f"{self.sizes.missed_beats}",
            "MODELNET_ACK_WAIT_S": f"{self.sizes.ack_wait_s}",
            "MODELNET_LOG_LEVEL": "info",
            "MODELNET_LOG_FORMAT": "json",
            "MODELNET_TENANT": name,
            "CHAOS_NAME": name,
            "CHAOS_LOG": str(self.executions),
        }
        return Party(name, role, command, ready, nats=self.nats, folder=self.folder, env=told | dict(env or {}))

    async def add(
        self, name: str, role: Role, command: Sequence[str], ready: bytes, env: Mapping[str, str] | None = None
    ) -> Party:
        """Let a party join."""
        party = self.party(name, role, command, ready, env)
        self.parties.append(party)
        await party.start()
        return party

    def of(self, role: Role) -> list[Party]:
        """All parties of a role."""
        return [party for party in self.parties if party.role == role]

    def free(self, role: Role) -> list[Party]:
        """Those that no fault has in hand."""
        return [party for party in self.of(role) if not party.busy]

    async def stop(self) -> None:
        """End everything that was started, parties first."""
        await asyncio.gather(*(party.stop() for party in self.parties), return_exceptions=True)
        await asyncio.gather(self.nats.stop(), self.redis.stop(), self._redis_proxy.stop(), return_exceptions=True)
