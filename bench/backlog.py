"""What a backlog is worth: how much of the time a worker's slots are at work while tasks wait for them.

    python -m bench.backlog [--rounds 3] [--write]

One negotiator and one worker process. For each number of slots and each backlog so many tasks are kept in flight that
some always wait. Printed: the rate as a share of what the slots could do without a pause, and the median latency of
one task after another, where no backlog can matter; medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import uvloop

import modelnet
from bench.backlog_workers import BACKLOGS, SHAPES
from bench.overhead import end, server, spawn
from modelnet.client import Client

SECONDS = 3.0
"""A burst is the work of so long."""
SEQUENTIAL = 50


async def burst(net: Client, capability: str, slots: int, ms: int) -> float:
    """The share of the slots' time that was worked."""
    most = slots / ms * 1e3
    count = int(most * SECONDS)
    gate = asyncio.Semaphore(4 * slots + 16)

    async def one() -> None:
        async with gate:
            await (await net.submit(capability, {})).result()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - started) / most


async def latency_ms(net: Client, capability: str) -> float:
    """Median of one task after another."""
    times = []
    for _ in range(SEQUENTIAL):
        started = time.perf_counter()
        await (await net.submit(capability, {})).result()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


async def measure(rounds: int) -> list[str]:
    """The whole run; lines of the report."""
    shares, latencies = defaultdict[tuple[int, int, int], list[float]](list), defaultdict[str, list[float]](list)
    async with server() as url:
        env = {"MODELNET_URL": url, "MODELNET_LOG_LEVEL": "info"}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        children.append(spawn(["modelnet.run", "bench.backlog_workers:app"], b"workers_joined", env))
        try:
            async with modelnet.connect(url) as net:
                for _ in range(rounds):
                    for slots, ms in SHAPES:
                        for backlog in BACKLOGS:
                            capability = f"bench.s{slots}.m{ms}.b{backlog}"
                            latencies[capability].append(await latency_ms(net, capability))
                            shares[slots, ms, backlog].append(await burst(net, capability, slots, ms))
        finally:
            end(children)
    lines = [f"{'at work, and ms one by one':<28}" + "".join(f"{f'backlog {backlog}':>16}" for backlog in BACKLOGS)]
    for slots, ms in SHAPES:
        line = f"{f'{slots} slots, tasks of {ms} ms':<28}"
        for backlog in BACKLOGS:
            share = statistics.median(shares[slots, ms, backlog])
            line += f"{share:>9.0%}{statistics.median(latencies[f'bench.s{slots}.m{ms}.b{backlog}']):>7.1f}"
        lines.append(line)
    return lines


async def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/backlog.txt too")
    args = parser.parse_args()
    head = (
        f"bench/backlog.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{args.rounds} rounds; medians"
    )
    report = "\n".join([head, *await measure(args.rounds)])
    print(report)
    if args.write:
        Path(__file__).with_name("results").joinpath("backlog.txt").write_text(report + "\n")


if __name__ == "__main__":
    uvloop.run(main())
