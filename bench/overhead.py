"""What the network adds to a message: a bare round trip, the floor of a durable task, and a real task, in one run.

    python -m bench.overhead [--bidders 1 8] [--rounds 3] [--write]

Each round starts servers and processes anew. Both networks are up at once, each on a server of its own, and take turns
of about a second, of which each begins as often; ratios are of neighbouring turns. Printed: medians over all turns of
all rounds, and of the ratios their quartiles. The bare round trip is measured in each turn on the turn's server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from collections.abc import AsyncIterator, Awaitable, Callable
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

WARM_UP, TURNS = 300, 7
SEQUENTIAL, ROUND_TRIPS = 120, 240
BURSTS = {32: 500, 128: 900}
"""Tasks of a turn by how many are in flight."""
STRATEGIES = ("auction", "spot")

Call = Callable[[], Awaitable[object]]


class Turn(NamedTuple):
    """One kind of call for about a second."""

    times_ms: list[float]
    bare_ms: list[float]
    rates: dict[int, float]
    """By how many are in flight: calls per second."""
    finals: list[Final]

    @property
    def p50_ms(self) -> float:
        """Median of the sequential calls."""
        return statistics.median(self.times_ms)


class Network(NamedTuple):
    """One that is up: a call for each strategy, and a bare round trip."""

    calls: dict[str, Call]
    bare: Call


async def turn(call: Call, bare: Call) -> Turn:
    """Sequential latency, then rates at several numbers in flight."""
    times_ms, finals = await timed(call, SEQUENTIAL)
    bare_ms, _ = await timed(bare, ROUND_TRIPS)
    rates = {}
    for flight, count in BURSTS.items():
        gate = asyncio.Semaphore(flight)

        async def one(gate: asyncio.Semaphore = gate) -> None:
            async with gate:
                await call()

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        rates[flight] = count / (time.perf_counter() - started)
    return Turn(times_ms, bare_ms, rates, [final for final in finals if isinstance(final, Final)])


async def timed(call: Call, count: int) -> tuple[list[float], list[object]]:
    """Calls one by one: the time of each in ms, and what they gave."""
    times_ms, gave = [], []
    for _ in range(count):
        started = time.perf_counter()
        gave.append(await call())
        times_ms.append((time.perf_counter() - started) * 1e3)
    return times_ms, gave


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


@contextlib.asynccontextmanager
async def floor(bidders: int) -> AsyncIterator[Network]:
    """The floor."""
    async with server() as url:
        nc = await nats.connect(url)
        client = FloorClient(nc)
        await client.prepare()
        env = {"FLOOR_URL": url}
        parts = [["worker", str(i)] for i in range(bidders)] + [["negotiator", str(bidders)], ["echo", "0"]]
        children = [spawn(["bench.lifecycle_floor", *part], b"ready", env) for part in parts]
        try:
            yield Network({name: partial(client.task, spot=name == "spot") for name in STRATEGIES}, bare_on(nc))
        finally:
            end(children)
            await nc.close()


@contextlib.asynccontextmanager
async def real(bidders: int) -> AsyncIterator[Network]:
    """modelnet."""
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

                yield Network({name: partial(call, name) for name in STRATEGIES}, bare_on(net.bus))
        finally:
            end(children)


Pair = tuple[Turn, Turn]
"""Neighbouring turns of the floor and of modelnet."""


async def one_round(bidders: int) -> dict[str, list[Pair]]:
    """Turns of both, by strategy."""
    pairs: dict[str, list[Pair]] = {}
    async with floor(bidders) as below, real(bidders) as above:
        for strategy in STRATEGIES:
            both = [(network.calls[strategy], network.bare) for network in (below, above)]
            for call, _ in both:
                await timed(call, WARM_UP)
            pairs[strategy] = []
            for number in range(TURNS):
                order = (0, 1) if number % 2 else (1, 0)
                found = {which: await turn(*both[which]) for which in order}
                pairs[strategy].append((found[0], found[1]))
    return pairs


def bare_on(nc: Bus) -> Call:
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


def table(pairs: list[Pair]) -> str:
    """One strategy's figures."""

    def row(name: str, of: list[Turn]) -> str:
        times = sorted(ms for one in of for ms in one.times_ms)
        rates = "".join(f"{statistics.median(one.rates[n] for one in of):>15.0f}" for n in BURSTS)
        return f"{name:<22}{statistics.median(times):>9.2f}{times[int(len(times) * 0.99)]:>9.2f}{rates}"

    def ratio(name: str, of: Callable[[Turn], float]) -> str:
        low, middle, high = statistics.quantiles([of(above) / of(below) for below, above in pairs], n=4)
        return f"modelnet / floor, {name}: {middle:.2f} (quartiles {low:.2f} and {high:.2f})"

    floors, reals = [below for below, _ in pairs], [above for _, above in pairs]
    bare = sorted(ms for pair in pairs for one in pair for ms in one.bare_ms)
    over_bare = statistics.median(one.p50_ms / statistics.median(one.bare_ms) for one in reals)
    where = stages([final for one in reals for final in one.finals])
    return "\n".join(
        [
            f"{'':<22}{'p50 ms':>9}{'p99 ms':>9}" + "".join(f"{f'{n} at once/s':>15}" for n in BURSTS),
            f"{'bare request/reply':<22}{statistics.median(bare):>9.2f}{bare[int(len(bare) * 0.99)]:>9.2f}",
            row("floor (raw nats-py)", floors),
            row("modelnet", reals),
            ratio("p50", lambda one: one.p50_ms),
            f"modelnet / bare, p50: {over_bare:.1f}",
            *(ratio(f"rate at {n}", lambda one, n=n: one.rates[n]) for n in BURSTS),  # type: ignore[misc]
            "where a task's time goes, median: " + ", ".join(f"{name} {ms:.2f}" for name, ms in where.items()),
        ]
    )


async def main() -> None:
    """Run all rounds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bidders", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/overhead.txt too")
    args = parser.parse_args()
    out = [
        f"bench/overhead.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{args.rounds} rounds of {TURNS} turns of {SEQUENTIAL} sequential tasks, then "
        + " and ".join(f"{count} with {flight} at once" for flight, count in BURSTS.items())
    ]
    print(out[0], flush=True)
    for bidders in args.bidders:
        rounds = [await one_round(bidders) for _ in range(args.rounds)]
        for strategy in STRATEGIES:
            head = f"{bidders} bidder{'s' if bidders > 1 else ''}, a process each; {strategy}"
            out.append(f"{head}\n{table([pair for pairs in rounds for pair in pairs[strategy]])}")
            print("\n" + out[-1], flush=True)
    if args.write:
        Path(__file__).with_name("results").joinpath("overhead.txt").write_text("\n\n".join(out) + "\n")


if __name__ == "__main__":
    uvloop.run(main())
