"""The same policies in simulation and over the real bus: whether the simulation of bench/market.py tells the truth.

    python -m bench.market_bus [--seconds 12] [--seed 100] [--write]

Workers of set speeds, whose work is to sleep, on a real nats-server with a real negotiator; a second of the simulation
goes by in `SCALE` seconds. A router's choice reaches the bus as `require.worker`: it keeps its own book of who has what
in hand, as routers do, and its workers take whatever they are sent. The market's tasks require nothing. All answers are
good, since the bus has nobody who could tell.

Printed: welfare by policy, both ways, and Spearman's rank correlation. What differs beyond scale: the bus takes its own
time for each task, and shares two cores with everything here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from faststream import FastStream

import modelnet
from bench.marketplace import BLOCK, NOISE, End, Job, Network, Work, arrivals, capacity, network, play
from bench.overhead import end as end_children
from bench.overhead import server, spawn
from bench.routers import BASELINES, Market, Push
from modelnet.capability import Estimate, Handler
from modelnet.contracts import sketch
from modelnet.messages import Features

__all__ = ["main", "spearman"]

Json = dict[str, Any]

SCALE = 0.35
"""Real seconds for a second of the simulation."""

LOAD = 0.7
CAPABILITY = "bench.job"
FASTEST = 2.0
"""Speed of the fastest workers that are taken over: faster ones would bring more tasks than the cores can carry."""

PATIENT = 10_000
"""Backlog of a worker that takes whatever a router sends it."""

WARM_UP = 0.15
_P90 = math.exp(1.2815515655446004 * NOISE)

_NUMBER: Json = {"type": "number", "x-public": True}
CONTRACT: Json = {
    "input": {
        "type": "object",
        "properties": dict.fromkeys(("number", "prefix", "prompt", "shared", "tokens"), _NUMBER),
        "required": ["number", "prefix", "prompt", "shared", "tokens"],
    },
    "output": {"type": "object"},
}


def world(seed: int, seconds: float) -> Network:
    """The workers of bench/market.py up to `FASTEST`, and the tasks of so many real seconds. All answers are good."""
    chance = np.random.default_rng(seed)
    sellers = [
        replace(seller, quality=1.0, claimed_quality=None)
        for seller in network(seed, 1, LOAD).sellers
        if seller.speed <= FASTEST
    ]
    rate = LOAD * capacity(sellers)
    tasks = int(rate * seconds / SCALE)
    shape = (tasks, len(sellers))
    jobs = arrivals(chance, tasks, rate, prefixes=200)
    noise = np.exp(chance.normal(0, NOISE, shape))
    return Network(sellers, jobs, noise, chance.random(shape), chance.random(shape))


# ---------------------------------------------------------------------- the workers' process


def job_of(input: Json) -> Job:
    """What a worker needs to know of a task, from its input."""
    known = {name: int(input[name]) for name in ("number", "prefix", "prompt", "shared", "tokens")}
    return Job(at=0.0, value=0, deadline_s=0.0, **known)


def worker(work: Work, net: Network, costs: Path, *, patient: bool) -> modelnet.Worker:
    """A worker that sleeps as long as the simulated one would work, and writes down what that cost."""
    seller = work.seller
    backlog = PATIENT if patient else seller.backlog
    found = modelnet.Worker(seller.name, owner=seller.owner, slots=seller.slots, backlog=backlog)

    def estimate(features: Features) -> tuple[float, float]:
        median_ms = work.median_s(job_of(sketch(features.shape))) * SCALE * 1e3 * seller.claim
        return median_ms, median_ms * _P90

    async def handle(ctx: modelnet.Context, input: Json) -> Json:
        job = job_of(input)
        run_s = work.median_s(job) * float(net.noise[job.number, work.number])
        work.remember(job)
        crashed = net.crash[job.number, work.number] < seller.crashes
        if crashed:
            run_s /= 2
        began = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(run_s * SCALE)
        finally:
            took_s = (asyncio.get_running_loop().time() - began) / SCALE
            with costs.open("a") as out:
                out.write(json.dumps([job.number, took_s * seller.cost_per_s]) + "\n")
        if crashed:
            raise RuntimeError("crashed")
        return {}

    made: Estimate = estimate
    handler: Handler = handle
    found.capability(
        CAPABILITY, contract=CONTRACT, price=lambda input: work.price(job_of(input)), quality=1.0, estimate=made
    )(handler)
    return found


def serve(seed: int, seconds: float, costs: Path, *, patient: bool) -> FastStream:
    """All workers as one process."""
    net = world(seed, seconds)
    workers = [Work(seller, number) for number, seller in enumerate(net.sellers)]
    return modelnet.worker_app(*(worker(work, net, costs, patient=patient) for work in workers))


# ---------------------------------------------------------------------- the publisher's side


class Book:
    """What a router knows: who has which of its tasks in hand."""

    def __init__(self, net: Network) -> None:
        self.workers = [Work(seller, number) for number, seller in enumerate(net.sellers)]

    def sent(self, work: Work, job: Job) -> None:
        """A worker has one more."""
        work.blocks += (job.prompt + job.tokens) // BLOCK
        if work.running < work.seller.slots:
            self._begun(work, job)
        else:
            work.queue.append(job)

    def _begun(self, work: Work, job: Job) -> None:
        work.running += 1
        work.prefill += (job.prompt - work.hit(job)) // BLOCK
        work.remember(job)

    def ended(self, work: Work, job: Job) -> None:
        """A worker has one fewer; the next in its queue begins."""
        work.blocks -= (job.prompt + job.tokens) // BLOCK
        if job in work.queue:
            work.queue.remove(job)
            return
        work.running -= 1
        work.prefill = max(work.prefill - job.prompt // BLOCK, 0)
        if work.queue:
            self._begun(work, work.queue.popleft())


async def publish(net: modelnet.Client, job: Job, left_s: float, worker: str | None) -> modelnet.TaskHandle:
    """One task, for whoever wins it or for one worker."""
    input = {name: getattr(job, name) for name in ("number", "prefix", "prompt", "shared", "tokens")}
    return await net.submit(
        CAPABILITY,
        input,
        budget=job.value,
        value_of_time=job.value_of_time / SCALE,
        deadline_s=max(left_s, 1e-3),
        require={"worker": worker} if worker else None,
    )


async def run_one(net: modelnet.Client, job: Job, began: float, book: Book, router: Push | None) -> End:
    """A task's life; times are the simulation's."""
    clock = asyncio.get_running_loop().time
    failed = frozenset[int]()
    answered = False
    number: int | None = None
    while True:
        left_s = began + (job.at + job.deadline_s) * SCALE - clock()
        if left_s <= 0:
            break
        work = None
        if router is not None:
            number, _ = router.place(job, book.workers, failed, 0.0) or (None, 0)
            assert number is not None
            work = book.workers[number]
            book.sent(work, job)
        task = await publish(net, job, left_s, work.seller.name if work else None)
        final = await task.final()
        if work is not None:
            book.ended(work, job)
        answered = final.status == "completed"
        if answered or work is None or final.status != "failed" or len(failed) == 2:
            break
        failed |= {work.number}
    time_s = min((clock() - began) / SCALE - job.at, job.deadline_s)
    return End(job, answered, answered, time_s if answered else job.deadline_s, 0.0, 0, number)


async def over_the_bus(seed: int, seconds: float, router: Push | None) -> float:
    """Welfare per task, in micro-credits, of one policy; None is the market."""
    world_ = world(seed, seconds)
    async with server() as url, workers_of(url, seed, seconds, patient=router is not None) as costs:
        async with modelnet.connect(url) as net:
            clock = asyncio.get_running_loop().time
            book, began = Book(world_), clock() + 0.2

            async def live(job: Job) -> End:
                await asyncio.sleep(max(began + job.at * SCALE - clock(), 0.0))
                return await run_one(net, job, began, book, router)

            ends = await asyncio.gather(*(live(job) for job in world_.jobs))
        spent = dict[int, float]()
        for line in costs.read_text().splitlines():
            number, cost = json.loads(line)
            spent[number] = spent.get(number, 0.0) + cost
    return welfare([replace(one, cost=spent.get(one.job.number, 0.0)) for one in ends])


@asynccontextmanager
async def workers_of(url: str, seed: int, seconds: float, *, patient: bool) -> AsyncIterator[Path]:
    """A negotiator and all workers; yields the file that their costs are written to."""
    with tempfile.TemporaryDirectory(prefix="modelnet-bench-") as folder:
        costs = Path(folder) / "costs.jsonl"
        costs.touch()
        told = {"BENCH_BUS": json.dumps([seed, seconds, str(costs), patient])}
        env = {"MODELNET_URL": url, "MODELNET_LOG_LEVEL": "info"}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        try:
            children.append(spawn(["modelnet.run", "bench.market_bus:app"], b"workers_joined", env | told))
            yield costs
        finally:
            end_children(children)


def welfare(ends: list[End]) -> float:
    """Mean over the tasks after the first, in micro-credits."""
    counted = ends[int(len(ends) * WARM_UP) :]
    return sum(one.welfare for one in counted) / len(counted)


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation of two lists without ties."""

    def ranks(values: list[float]) -> list[int]:
        order = sorted(range(len(values)), key=values.__getitem__)
        return [order.index(place) for place in range(len(values))]

    n = len(first)
    squares = sum((a - b) ** 2 for a, b in zip(ranks(first), ranks(second), strict=True))
    return 1 - 6 * squares / (n * (n * n - 1))


async def compare(seed: int, seconds: float) -> list[tuple[str, float, float]]:
    """(policy, welfare simulated, welfare over the bus), best in simulation first."""
    found = []
    for kind in (None, *BASELINES):
        net = world(seed, seconds)
        simulated = Market(net, scarcity=False) if kind is None else kind(net, seed)
        router = None if kind is None else kind(net, seed)
        in_theory = welfare(play(net, simulated).ends)
        in_practice = await over_the_bus(seed, seconds, router)
        found.append((simulated.name, in_theory, in_practice))
        print(f"{simulated.name:<24}{in_theory:>12.1f}{in_practice:>12.1f}", flush=True)
    return sorted(found, key=lambda row: -row[1])


def main() -> None:
    """Run, print, and with --write keep the output under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of arrivals, for each policy")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    net = world(args.seed, args.seconds)
    print(f"{'':<24}{'simulation':>12}{'bus':>12}", flush=True)
    rows = uvloop.run(compare(args.seed, args.seconds))
    correlation = spearman([row[1] for row in rows], [row[2] for row in rows])
    out = [
        f"bench/market_bus.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}: {len(net.jobs)} tasks, {len(net.sellers)} workers, load {LOAD:.0%}, "
        f"{args.seconds:.0f} s for each policy",
        "",
        f"{'welfare per task':<24}{'simulation':>12}{'bus':>12}",
        *(f"{name:<24}{theory:>12.1f}{practice:>12.1f}" for name, theory, practice in rows),
        "",
        f"rank correlation (Spearman): {correlation:.2f}",
    ]
    print("\n" + "\n".join(out))
    if args.write:
        Path(__file__).with_name("results").joinpath("market_bus.txt").write_text("\n".join(out) + "\n")


if "BENCH_BUS" in os.environ:
    _seed, _seconds, _costs, _patient = json.loads(os.environ["BENCH_BUS"])
    app = serve(_seed, _seconds, Path(_costs), patient=_patient)

if __name__ == "__main__":
    main()
