"""What can be done to a network: each kind of fault as a coroutine that strikes, waits, and makes good again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.custody import TaskKey
from tests.chaos.fleet import Fleet, Party, Role
from tests.chaos.frames import Frame
from tests.chaos.launch import set_clock
from tests.chaos.liar import MODES
from tests.chaos.points import POINTS, Point, kill_at

__all__ = ["KINDS", "PAID", "Fault", "Kind", "MissedPoint"]

POINT_PATIENCE_S = 15.0
CLOCK_JUMP_S = 3600.0


class MissedPoint(Exception):
    """Raised when no task came to the point at which a process was to be killed: nothing was done."""


@dataclass(slots=True)
class Fault:
    """One fault: when, to whom, and which tasks it touched."""

    kind: str
    number: int
    target: str = ""
    struck_at: float = 0.0
    """Monotonic seconds, comparable between processes of one machine."""
    ended_at: float = 0.0
    touched: dict[TaskKey, float] = field(default_factory=dict)
    """When each task was touched first: at the strike, or when it came into the hands of a party in trouble."""

    def strike(self) -> None:
        """It happens now."""
        self.struck_at = time.monotonic()

    @property
    def record(self) -> dict[str, Any]:
        """For a line in a file."""
        times = {"struck_at": self.struck_at, "ended_at": self.ended_at}
        touched = [[*task, at] for task, at in self.touched.items()]
        return {"number": self.number, "kind": self.kind, "target": self.target, **times, "touched": touched}

    def touch(self, tasks: Iterable[TaskKey]) -> None:
        """These tasks are in the hands of whom it struck."""
        now = time.monotonic()
        for task in tasks:
            self.touched.setdefault(task, now)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a kind of fault has to work with."""

    fleet: Fleet
    fault: Fault
    party: Party | None
    chance: random.Random
    deadline_s: float

    @property
    def target(self) -> Party:
        """The party it strikes."""
        assert self.party is not None
        return self.party

    @property
    def lease_s(self) -> float:
        """How long whom it strikes may be silent before the tasks go to another."""
        sizes = self.fleet.sizes
        negotiator = self.party is not None and self.party.role == "negotiator"
        return sizes.ack_wait_s if negotiator else sizes.lease_s

    @contextlib.contextmanager
    def trouble(self) -> Iterator[None]:
        """While the target is in trouble, all that it has and gets is touched."""
        custody = self.target.custody
        self.fault.touch(custody.tasks)
        custody.on_take = lambda task: self.fault.touch([task])
        try:
            yield
        finally:
            custody.on_take = lambda _: None


async def _killed(scene: Scene) -> None:
    with scene.trouble():  # the server may hand it a task before it notices
        scene.target.signal(signal.SIGKILL)
        await scene.target.bury()
    await _come_back(scene)


async def _come_back(scene: Scene) -> None:
    await asyncio.sleep(scene.chance.uniform(0.0, min(scene.lease_s + 2.0, 6.0)))
    await scene.target.revive()


def _killed_at(point: Point) -> Callable[[Scene], Awaitable[None]]:
    async def strike(scene: Scene) -> None:
        party, reached = scene.target, asyncio.Event()

        def killed(frame: Frame) -> None:
            scene.fault.strike()
            party.trap = None
            reached.set()

        pid = party.pid
        assert pid is not None
        party.trap = kill_at(point, pid, killed)
        try:
            await asyncio.wait_for(reached.wait(), POINT_PATIENCE_S)
        except TimeoutError:
            party.trap = None
            raise MissedPoint from None
        with scene.trouble():
            await party.bury()
        await _come_back(scene)

    return strike


async def _frozen(scene: Scene) -> None:
    with scene.trouble():
        scene.target.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(scene.lease_s + scene.chance.uniform(1.0, 3.0))
        finally:
            scene.target.signal(signal.SIGCONT)


async def _cut(scene: Scene) -> None:
    with scene.trouble():
        scene.target.proxy.cut()
        await asyncio.sleep(scene.chance.uniform(0.1, scene.lease_s + 2.0))
        scene.target.proxy.mend()


async def _silent(scene: Scene) -> None:
    with scene.trouble():
        scene.target.proxy.hold()
        await asyncio.sleep(scene.chance.uniform(0.5, scene.lease_s + 2.0))
        scene.target.proxy.mend()


async def _delayed(scene: Scene) -> None:
    with scene.trouble():
        scene.target.proxy.delay_s = scene.chance.uniform(0.02, 0.3)
        await asyncio.sleep(scene.chance.uniform(2.0, 5.0))
        scene.target.proxy.mend()


async def _throttled(scene: Scene) -> None:
    with scene.trouble():
        scene.target.proxy.bytes_per_s = scene.chance.uniform(10_000, 60_000)
        await asyncio.sleep(scene.chance.uniform(2.0, 5.0))
        scene.target.proxy.mend()


async def _doubled(scene: Scene) -> None:
    with scene.trouble():
        scene.target.proxy.repeat_every = scene.chance.choice((1, 2, 5))
        await asyncio.sleep(scene.chance.uniform(2.0, 5.0))
        scene.target.proxy.mend()


async def _clock(scene: Scene) -> None:
    with scene.trouble():
        set_clock(scene.target.clock, scene.chance.choice((-CLOCK_JUMP_S, CLOCK_JUMP_S)))
        await asyncio.sleep(scene.chance.uniform(2.0, 5.0))
        set_clock(scene.target.clock, 0.0)


def _lying(mode: str) -> Callable[[Scene], Awaitable[None]]:
    async def strike(scene: Scene) -> None:
        name = f"liar-{scene.fault.number}"
        command = [sys.executable, "-m", "tests.chaos.liar", mode]
        liar = scene.fleet.party(name, "worker", command, b"liar_joined")
        liar.custody.on_take = lambda task: scene.fault.touch([task])
        scene.fault.target = name
        try:
            await liar.start()
            scene.fault.strike()
            # One that says it works on a task is believed until the task's deadline.
            await asyncio.sleep(scene.deadline_s if mode == "holder" else scene.lease_s + 2.0)
        finally:
            await liar.stop()

    return strike


async def _nats_killed(scene: Scene) -> None:
    await scene.fleet.nats.kill()
    await asyncio.sleep(scene.chance.uniform(0.0, 2.0))
    await scene.fleet.nats.revive()


async def _redis_killed(scene: Scene) -> None:
    await scene.fleet.redis.kill()
    await asyncio.sleep(scene.chance.uniform(0.0, 2.0))
    await scene.fleet.redis.revive()


async def _redis_frozen(scene: Scene) -> None:
    scene.fleet.redis.signal(signal.SIGSTOP)
    try:  # beyond every time-out of who asks it: what was asked is done all the same, and nobody hears
        await asyncio.sleep(scene.chance.uniform(0.5, 5.0))
    finally:
        scene.fleet.redis.signal(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    strike: Callable[[Scene], Awaitable[None]]
    roles: tuple[Role, ...] = ()
    """Whom it can strike; empty: nobody of the network's own."""
    everyone: bool = False
    """Whether it touches every task on the network."""
    weight: int = 2
    """How often it is drawn."""
    harmless: bool = False
    """Whether no task is meant to notice: it does not blur how long others take to recover from."""


KINDS: dict[str, Kind] = {
    "worker_killed": Kind(_killed, ("worker",), weight=8),
    "worker_frozen": Kind(_frozen, ("worker",), weight=5),
    "worker_cut": Kind(_cut, ("worker",), weight=3),
    "worker_silent": Kind(_silent, ("worker",), weight=3),
    **{f"worker_lies_{mode}": Kind(_lying(mode), weight=1) for mode in MODES},
    "negotiator_killed": Kind(_killed, ("negotiator",), weight=4),
    **{f"negotiator_killed_{name}": Kind(_killed_at(point), ("negotiator",)) for name, point in POINTS.items()},
    "negotiator_frozen": Kind(_frozen, ("negotiator",)),
    "negotiator_cut": Kind(_cut, ("negotiator",)),
    "negotiator_silent": Kind(_silent, ("negotiator",)),
    "client_cut": Kind(_cut, ("client",)),
    "nats_killed": Kind(_nats_killed, everyone=True),
    "redis_killed": Kind(_redis_killed, everyone=True, harmless=True),
    "link_delayed": Kind(_delayed, ("worker", "negotiator", "client")),
    "link_throttled": Kind(_throttled, ("worker", "negotiator", "client")),
    "link_doubled": Kind(_doubled, ("worker", "negotiator", "client"), harmless=True),
    "clock_jumped": Kind(_clock, ("worker", "negotiator"), harmless=True),
    "redis_frozen": Kind(_redis_frozen, everyone=True),
    "ledger_killed": Kind(_killed, ("ledger",), harmless=True),
    "ledger_frozen": Kind(_frozen, ("ledger",), harmless=True),
    "ledger_cut": Kind(_cut, ("ledger",), harmless=True),
    "model_killed": Kind(_killed, ("model",), weight=1),
}
"""Every kind. `model_killed` is drawn only where a vLLM worker runs, those of `PAID` only where money is paid."""

PAID = ("redis_frozen", "ledger_killed", "ledger_frozen", "ledger_cut")
