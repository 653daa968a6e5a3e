"""What the network adds to a message: a bare round trip, the floor of a durable task, and a real task, in one run.

    python -m bench.overhead [--bidders 1 8] [--rounds 3] [--write]

Each round starts servers and processes anew, the floor's and modelnet's in turn, and measures beside each the bare
round trip on the same server. Printed: the median over the rounds, and the ratios round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nats
import uvloop
from nats.aio.client import Client as Bus

import modelnet
from bench.lifecycle_floor import FloorClient
from modelnet.bus.embedded import EmbeddedNats
from modelnet.messages import Final
from modelnet.processes import PARENT

WARM_UP, SEQUENTIAL, ROUND_TRIPS, BURST = 300, 500, 1000, 3000
IN_FLIGHT = (32, 128)
STRATEGIES = ("auction", "spot")


class Measured(NamedTuple):
    """One kind of call in one round."""

    p50_ms: float
    p99_ms: float
    rates: dict[int, float]
    bare_p50_ms: float
    bare_p99_ms: float
    stages: dict[str, float]


async def measure(call: Callable[[], Awaitable[object]], bare: Callable[[], Awaitable[object]]) -> Measured:
    """Sequential latency, then rates at several numbers in flight."""
    for _ in range(WARM_UP):
        await call()
    times, bare_times = [], []
    finals = []
    for _ in range(SEQUENTIAL):
        started = time.perf_counter()
        finals.append(await call())
        times.append((time.perf_counter() - started) * 1e3)
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        await bare()
        bare_times.append((time.perf_counter() - started) * 1e3)
    rates = {}
    for flight in IN_FLIGHT:
        gate = asyncio.Semaphore(flight)

        async def one(gate: asyncio.Semaphore = gate) -> None:
            async with gate:
                await call()

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(BURST)))
        rates[flight] = BURST / (time.perf_counter() - started)
    times.sort()
    bare_times.sort()
    return Measured(
        p50_ms=times[len(times) // 2],
        p99_ms=times[int(len(times) * 0.99)],
        rates=rates,
        bare_p50_ms=bare_times[len(bare_times) // 2],
        bare_p99_ms=bare_times[int(len(bare_times) * 0.99)],
        stages=stages([final for final in finals if isinstance(final, Final)]),
    )


def stages(finals: list[Final]) -> dict[str, float]:
    """Median of each of the Final's timings, in ms."""
    if not finals:
        return {}
    fields = ("queued_ms", "negotiation_ms", "running_ms", "total_ms")
    return {field: statistics.median(getattr(final.timings, field) for final in finals) for field in fields}


def spawn(args: list[str], mark: bytes, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A child process, once it has printed `mark`. It ends with this one, if it is one of modelnet's."""
    child = subprocess.Popen(
        [sys.executable, "-m", *args],
        env={**os.environ, **env, PARENT: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert child.stdout is not None
    said: list[str] = []
    for line in child.stdout:
        if mark in line:
            # What it says later is read too: it would stand still with a full pipe.
            threading.Thread(target=deque, args=(child.stdout, 0), daemon=True).start()
            return child
        said.append(line.decode(errors="replace"))
    raise SystemExit(f"{' '.join(args)} ended before it was ready:\n{''.join(said)[-3000:]}")


async def floor(bidders: int) -> dict[str, Measured]:
    """One round of the floor: each strategy."""
    async with server() as url:
        nc = await nats.connect(url)
        client = FloorClient(nc)
        await client.prepare()
        env = {"FLOOR_URL": url}
        parts = [["worker", str(i)] for i in range(bidders)] + [["negotiator", str(bidders)], ["echo", "0"]]
        children = [spawn(["bench.lifecycle_floor", *part], b"ready", env) for part in parts]
        try:
            return {
                strategy: await measure(partial(client.task, spot=strategy == "spot"), bare_on(nc))
                for strategy in STRATEGIES
            }
        finally:
            end(children)
            await nc.close()


async def real(bidders: int) -> dict[str, Measured]:
    """One round of modelnet: each strategy."""
    async with server() as url:
        env = {"MODELNET_URL": url, "FLOOR_URL": url, "MODELNET_LOG_LEVEL": "info"}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        for i in range(bidders):
            number = {"EMPTY_NUMBER": str(i)}
            children.append(spawn(["modelnet.run", "bench.empty_worker:app"], b"workers_joined", env | number))
        children.append(spawn(["bench.lifecycle_floor", "echo", "0"], b"ready", env))
        try:
            async with modelnet.connect(url) as net:

                async def call(strategy: str) -> Final:
                    task = await net.submit("bench.empty", {"x": "y" * 200}, strategy=strategy)
                    return await task.result()

                return {strategy: await measure(partial(call, strategy), bare_on(net.bus)) for strategy in STRATEGIES}
        finally:
            end(children)


def bare_on(nc: Bus) -> Callable[[], Awaitable[object]]:
    """A bare request and reply of 200 bytes."""
    return lambda: nc.request("echo", b"x" * 200, timeout=5)


def end(children: list[subprocess.Popen[bytes]]) -> None:
    """Kill the children; nothing of theirs is needed any more."""
    for child in children:
        child.kill()
    for child in children:
        child.wait()


class server:  # noqa: N801 - reads as a function
    """A nats-server of its own, its data removed afterwards."""

    async def __aenter__(self) -> str:
        self._data = Path(tempfile.mkdtemp(prefix="modelnet-bench-"))
        self._nats = EmbeddedNats(self._data)
        await self._nats.start()
        return self._nats.url

    async def __aexit__(self, *_: object) -> None:
        await self._nats.stop()
        shutil.rmtree(self._data, ignore_errors=True)


def report(bidders: int, floors: list[dict[str, Measured]], reals: list[dict[str, Measured]]) -> str:
    """The tables of one number of bidders."""
    head = f"{bidders} bidder{'s' if bidders > 1 else ''}, a process each"
    return "\n\n".join(
        f"{head}; {strategy}\n{table([one[strategy] for one in floors], [one[strategy] for one in reals])}"
        for strategy in STRATEGIES
    )


def table(floors: list[Measured], reals: list[Measured]) -> str:
    """One strategy's figures."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    def row(name: str, of: list[Measured]) -> str:
        rates = "".join(f"{median([m.rates[n] for m in of]):>15.0f}" for n in IN_FLIGHT)
        return f"{name:<22}{median([m.p50_ms for m in of]):>9.2f}{median([m.p99_ms for m in of]):>9.2f}{rates}"

    bare = floors + reals
    lines = [
        f"{'':<22}{'p50 ms':>9}{'p99 ms':>9}" + "".join(f"{f'{n} at once/s':>15}" for n in IN_FLIGHT),
        f"{'bare request/reply':<22}{median([m.bare_p50_ms for m in bare]):>9.2f}"
        f"{median([m.bare_p99_ms for m in bare]):>9.2f}",
        row("floor (raw nats-py)", floors),
        row("modelnet", reals),
    ]
    latency = [r.p50_ms / f.p50_ms for f, r in zip(floors, reals, strict=True)]
    bare_ratio = [r.p50_ms / r.bare_p50_ms for r in reals]
    lines.append(f"modelnet / floor, p50: {median(latency):.2f} ({', '.join(f'{x:.2f}' for x in latency)})")
    lines.append(f"modelnet / bare, p50: {median(bare_ratio):.1f}")
    for n in IN_FLIGHT:
        rate = [r.rates[n] / f.rates[n] for f, r in zip(floors, reals, strict=True)]
        lines.append(f"modelnet / floor, rate at {n}: {median(rate):.2f} ({', '.join(f'{x:.2f}' for x in rate)})")
    where = {name: median([m.stages[name] for m in reals]) for name in reals[0].stages}
    lines.append("where a task's time goes, median: " + ", ".join(f"{k} {v:.2f}" for k, v in where.items()))
    return "\n".join(lines)


async def main() -> None:
    """Run all rounds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bidders", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/overhead.txt too")
    args = parser.parse_args()
    out = [
        f"bench/overhead.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{args.rounds} rounds of {SEQUENTIAL} sequential tasks and {BURST} at each rate; medians"
    ]
    print(out[0], flush=True)
    for bidders in args.bidders:
        floors, reals = [], []
        for _ in range(args.rounds):
            floors.append(await floor(bidders))
            reals.append(await real(bidders))
        out.append(report(bidders, floors, reals))
        print("\n" + out[-1], flush=True)
    if args.write:
        Path(__file__).with_name("results").joinpath("overhead.txt").write_text("\n\n".join(out) + "\n")


if __name__ == "__main__":
    uvloop.run(main())
