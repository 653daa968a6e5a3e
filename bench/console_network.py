"""A synthetic network for bench/console.py: the messages of many workers and tasks, and nobody behind them.

    python -m bench.console_network URL WORKERS RATE SECONDS

Beats and offers of all workers once a second; RATE times a second what a task leaves on the bus: the Task, a
transcript of five bids, an Awarded and a Final. Messages are made once and their names filled in, so that the player
costs little beside what it plays to. Prints how many tasks it has played.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

import uvloop
from nats.aio.client import Client as Bus

from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.connection import close, connect
from modelnet.messages import (
    Awarded,
    Beat,
    CapabilityCard,
    Contract,
    Final,
    Offer,
    RunningAttempt,
    ScoredBid,
    Task,
    Timings,
    Transcript,
    WorkerCard,
    new_id,
)
from modelnet.settings import Settings

CAPABILITIES = [f"work.kind-{n}" for n in range(10)]
SLOTS = 8
TASK, AUCTION = "TASK" * 8, "AUCT" * 8
BIDS = 5


class Player:
    """Plays one network."""

    def __init__(self, bus: Bus, workers: int) -> None:
        self._bus = bus
        self._workers = [f"worker-{n:03}" for n in range(workers)]
        self._kind = {name: CAPABILITIES[n % len(CAPABILITIES)] for n, name in enumerate(self._workers)}
        self._draw = random.Random(7)
        self._templates = {kind: self._messages(kind) for kind in CAPABILITIES}
        self.played = 0

    async def join(self) -> None:
        """Put contract and cards of all into the catalogue."""
        catalogue = Catalogue(self._bus)
        for kind in CAPABILITIES:
            contract = Contract(capability=kind, input={"type": "object"}, output={"type": "object"})
            await catalogue.announce(contract)
            for name in self._workers:
                if self._kind[name] == kind:
                    card = CapabilityCard(pattern=kind, contract=contract.digest, price=5, quality=0.9)
                    told = WorkerCard(worker=name, capabilities=(card,), slots=SLOTS, instance="bench")
                    await self._bus.publish(f"$KV.CATALOGUE.worker.{name}", told.encode())
        await self._bus.flush()

    async def beat(self, seconds: float) -> None:
        """All workers' beats and offers, spread over each second."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.monotonic()
            for n, name in enumerate(self._workers):
                hand = self._draw.randint(0, SLOTS)
                running = tuple(RunningAttempt(tenant="bench", task=f"t{n}", attempt=1) for n in range(hand))
                beat = Beat(worker=name, instance="bench", slots=SLOTS, running=running)
                offer = Offer(
                    worker=name,
                    capability=self._kind[name],
                    price=self._draw.randint(3, 9),
                    p50_ms=self._draw.uniform(10, 20),
                    p90_ms=50,
                    free=SLOTS - hand,
                )
                await self._bus.publish(subjects.beat(name), beat.encode())
                await self._bus.publish(subjects.offer(self._kind[name], name), offer.encode())
                if n % 25 == 24:
                    await asyncio.sleep(max(started + n / len(self._workers) - time.monotonic(), 0))
            await asyncio.sleep(max(started + 1 - time.monotonic(), 0))

    async def work(self, rate: float, seconds: float) -> None:
        """The traces of tasks, at an even rate."""
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            while self.played < elapsed * rate:
                await self._task()
            await asyncio.sleep(0.01)

    async def purge(self, seconds: float) -> None:
        """Take what was published out of the task stream, as negotiators do who finish tasks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self._bus.request("$JS.API.STREAM.PURGE.TASKS", b"{}", timeout=5)
            await asyncio.sleep(0.2)

    async def _task(self) -> None:
        self.played += 1
        kind, task = self._draw.choice(CAPABILITIES), new_id()
        for subject, body in self._templates[kind]:
            filled = body.replace(TASK.encode(), task.encode()).replace(AUCTION.encode(), task.encode())
            await self._bus.publish(subject.replace(TASK, task), filled)

    def _messages(self, kind: str) -> list[tuple[str, bytes]]:
        """A task's messages with its id left open."""
        serving = [name for name in self._workers if self._kind[name] == kind] or self._workers
        names = [serving[n % len(serving)] for n in range(BIDS)]
        bids = tuple(
            ScoredBid(
                worker=name,
                owner="local",
                price=5 + n,
                p50_ms=20,
                p90_ms=50,
                quality=0.9,
                value=90,
                score=85 - 4 * n,
                eligible=True,
            )
            for n, name in enumerate(names)
        )
        transcript = Transcript(
            auction=AUCTION,
            task=TASK,
            tenant="bench",
            capability=kind,
            negotiator="bench",
            attempt=1,
            closed_by="all_answered",
            asked=BIDS,
            window_ms=2,
            remaining_ms=1000,
            budget=100,
            value=100,
            value_of_time=0.1,
            min_quality=0,
            bids=bids,
            winner=names[0],
            price=9,
        )
        awarded = Awarded(task=TASK, attempt=1, worker=names[0], auction=AUCTION, price=9, negotiator="bench")
        final = Final(
            task=TASK,
            tenant="bench",
            capability=kind,
            status="completed",
            output={"text": "done"},
            worker=names[0],
            price=9,
            attempts=1,
            bids=BIDS,
            negotiator="bench",
            timings=Timings(queued_ms=1, negotiation_ms=3, running_ms=20, total_ms=24),
        )
        task = Task(id=TASK, tenant="bench", capability=kind, input={"text": "x" * 100})
        return [
            (subjects.task(task), task.encode()),
            (subjects.audit("bench", TASK), transcript.encode()),
            (subjects.journal("bench", TASK, "status"), awarded.encode()),
            (subjects.journal("bench", TASK, "final"), final.encode()),
        ]


async def play(url: str, workers: int, rate: float, seconds: float) -> int:
    """Play, and return how many tasks were played."""
    bus = await connect(Settings(url=url), "bench-network")
    try:
        player = Player(bus, workers)
        await player.join()
        print("joined", flush=True)
        await asyncio.gather(player.beat(seconds), player.work(rate, seconds), player.purge(seconds))
        await bus.flush()
        return player.played
    finally:
        await close(bus)


if __name__ == "__main__":
    print(uvloop.run(play(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
