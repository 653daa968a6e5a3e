"""The campaign: a network under load, faults drawn from a seed, then peace until every task has had time to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.faults import KINDS, PAID, Fault, Kind, MissedPoint, Scene
from tests.chaos.fleet import Fleet, Party, Sizes
from tests.chaos.model import prepare_model
from tests.chaos.money import Bank
from tests.chaos.tally import Tally, take_stock

__all__ = ["Campaign", "Plan"]

SPARED = {"negotiator": 1, "worker": 2, "client": 0, "model": 0, "ledger": 0}
"""How many of each role no fault may have in hand at any time: what is promised is survival of some, not of none."""

QUIET_S = 2.0
"""Load before the first fault, so that what a task takes by itself is known."""

GUARD_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    seed: int
    minutes: float = 10.0
    tasks: int = 20_000
    faults: int = 200
    sizes: Sizes = field(default_factory=Sizes)
    deadline_s: float = 60.0
    kinds: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in ("model_killed", *PAID))
    vllm: bool = False

    @property
    def paid(self) -> bool:
        """Whether tenants have accounts: then only correctness counts, as tasks wait for a ledger that is away."""
        return self.sizes.ledgers > 0


class Campaign:
    """One run of a plan in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._plan, self._folder, self._say = plan, folder, say
        self._chance = random.Random(plan.seed)
        self._fleet = Fleet(folder, plan.sizes)
        self._records = folder / "records.jsonl"
        self._free = asyncio.Condition()
        self._faults: list[Fault] = []
        self._missed = 0
        self._deaths: list[str] = []
        self._bank = Bank(self._fleet) if plan.paid else None

    async def run(self) -> Tally:
        """All of it; every process that it started has ended when it returns, however it does."""
        load_s = self._plan.minutes * 60
        try:
            await self._fleet.start()
            model_tasks = await prepare_model(self._fleet) if self._plan.vllm else None
            if self._bank is not None:
                await self._bank.open()
            self._say(f"{len(self._fleet.parties)} parties are up; load begins")
            began = time.monotonic()
            await self._start_load(load_s, model_tasks)
            async with asyncio.TaskGroup() as group:
                guards = [group.create_task(self._guard())]
                if self._bank is not None:
                    guards.append(group.create_task(self._bank.watch()))
                async with asyncio.TaskGroup() as strikes:
                    await self._strike_all(strikes, load_s)
                self._say(f"{len(self._faults)} faults are over; waiting for every task's end")
                for client in self._fleet.of("client"):
                    client.signal(signal.SIGUSR1)
                await asyncio.gather(*(client.ended() for client in self._fleet.of("client")))
                for guard in guards:
                    guard.cancel()
            return await take_stock(
                self._fleet,
                records=self._records,
                faults=self._faults,
                missed_points=self._missed,
                deaths=self._deaths,
                patience_s=self._plan.deadline_s + 20.0,
                took_s=time.monotonic() - began,
                bank=self._bank,
            )
        finally:
            await self._fleet.stop()

    async def _start_load(self, load_s: float, model_tasks: Path | None) -> None:
        plan, clients = self._plan, self._plan.sizes.clients
        for number in range(clients):
            share = plan.tasks // clients + (number < plan.tasks % clients)
            command = [sys.executable, "-m", "tests.chaos.load", "--tasks", str(share)]
            command += ["--rate", f"{share / load_s}", "--seed", str(plan.seed * 1000 + number)]
            command += ["--out", str(self._records), "--deadline-s", str(plan.deadline_s)]
            if model_tasks is not None:
                command += ["--model-tasks", str(model_tasks)]
            await self._fleet.add(f"client-{number}", "client", command, b"load_started")

    async def _guard(self) -> None:
        """Start again, and write down, who died though no fault had it in hand."""
        while True:
            await asyncio.sleep(GUARD_S)
            for party in self._fleet.parties:
                if party.pid is None and not party.busy and party.role != "client":
                    self._deaths.append(party.name)
                    self._say(f"{party.name} died by itself: see {self._folder / party.name}.log")
                    party.busy = True
                    await party.revive()
                    await self._release(party)

    # ------------------------------------------------------------------ faults

    async def _strike_all(self, strikes: asyncio.TaskGroup, load_s: float) -> None:
        """Draw the faults and start each at its time, or as soon after as somebody is free to be struck."""
        plan, clock = self._plan, asyncio.get_running_loop().time
        start, room = clock() + QUIET_S, load_s - QUIET_S
        drawn = self._draw()
        moments = sorted(self._chance.uniform(0.0, room) for _ in drawn)
        # Moments that are drawn freely lie in heaps: half way between those and an even spread.
        even = [room * (n + 0.5) / plan.faults for n in range(plan.faults)]
        for number, (kind, moment, regular) in enumerate(zip(drawn, moments, even, strict=True)):
            chance = random.Random(self._chance.getrandbits(64))
            await asyncio.sleep(max(start + (moment + regular) / 2 - clock(), 0.0))
            party = await self._choose(KINDS[kind], chance)
            fault = Fault(kind, number, party.name if party else "")
            scene = Scene(self._fleet, fault, party, chance, plan.deadline_s)
            strikes.create_task(self._strike(KINDS[kind], scene))

    def _draw(self) -> list[str]:
        """Kinds of faults by their weights, each at least once if there is room."""
        kinds = [*self._plan.kinds, *(["model_killed"] if self._plan.vllm else [])]
        bag = [kind for kind in kinds for _ in range(KINDS[kind].weight)]
        drawn = list(kinds)
        self._chance.shuffle(drawn)
        while len(drawn) < self._plan.faults:
            more = list(bag)
            self._chance.shuffle(more)
            drawn += more
        drawn = drawn[: self._plan.faults]
        self._chance.shuffle(drawn)
        return drawn

    async def _choose(self, kind: Kind, chance: random.Random) -> Party | None:
        """Somebody for it to strike, in hand from now on; waits while too many are in trouble."""
        if not kind.roles:
            return None

        def found() -> list[Party]:
            return [
                party
                for role in kind.roles
                if len(self._fleet.free(role)) > SPARED[role]
                for party in self._fleet.free(role)
                if party.pid is not None
            ]

        async with self._free:
            await self._free.wait_for(found)
            party = chance.choice(found())
            party.busy = True
            return party

    async def _strike(self, kind: Kind, scene: Scene) -> None:
        fault = scene.fault
        try:
            fault.strike()
            await kind.strike(scene)
            fault.ended_at = time.monotonic()
            self._faults.append(fault)
            self._say(json.dumps(fault.record))
        except MissedPoint:
            self._missed += 1
        finally:
            if scene.party is not None:
                await self._release(scene.party)

    async def _release(self, party: Party) -> None:
        async with self._free:
            party.busy = False
            self._free.notify_all()


async def interrupted(campaign: Campaign) -> Tally | None:
    """Run a campaign; Ctrl-C and SIGTERM end it and every process of it."""
    loop, job = asyncio.get_running_loop(), asyncio.ensure_future(campaign.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, job.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await job
    return None
