"""What syncing before each acknowledgement costs: publish latency, and tasks through the whole network, in one run.

    python -m bench.durability [--rounds 5] [--bidders 4] [--folder DIR] [--write]

Each round starts servers and processes anew, once as `process` (nats-server's default, a sync every two minutes) and
once as `power` (`sync_interval: always`), in turn which comes first. Printed: medians over the rounds, and the ratios
round by round; and what an `fsync` of 4 KiB took on the same disk before each round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import nats
import uvloop

import modelnet
from bench.overhead import end, spawn
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.streams import setup_bus

PUBLISHED, WARM_UP, SEQUENTIAL, BURST, IN_FLIGHT = 1000, 100, 300, 1000, 32
BODY = b"x" * 1000


class Measured(NamedTuple):
    """One level in one round."""

    publish_p50_ms: float
    publish_p99_ms: float
    publishes_s: float
    task_p50_ms: float
    tasks_s: float


async def measure(folder: Path, bidders: int, *, sync_always: bool) -> Measured:
    """A server of its own: first bare publishing to TASKS, then a network on it."""
    server = EmbeddedNats(folder, sync_always=sync_always)
    await server.start()
    try:
        publishing = await publish(server.url)
        env = {"MODELNET_URL": server.url, "MODELNET_LOG_LEVEL": "info"}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        try:
            for number in range(bidders):
                one = {"EMPTY_NUMBER": str(number)}
                children.append(spawn(["modelnet.run", "bench.empty_worker:app"], b"workers_joined", env | one))
            return Measured(*publishing, *await work(server.url))
        finally:
            end(children)
    finally:
        await server.stop()


async def publish(url: str) -> tuple[float, float, float]:
    """Acknowledged publishes to TASKS: median and 99th percentile in ms, one at a time; rate with many at once."""
    nc = await nats.connect(url)
    await setup_bus(nc)

    async def one(name: str) -> None:
        ack = await nc.request(f"task.1.bench.{name}.bench.nothing", BODY, timeout=30)
        assert b'"error"' not in ack.data, ack.data

    times = []
    for number in range(PUBLISHED):
        started = time.perf_counter()
        await one(f"a{number}")
        times.append((time.perf_counter() - started) * 1e3)
    times = sorted(times[WARM_UP:])
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def gated(name: str) -> None:
        async with gate:
            await one(name)

    started = time.perf_counter()
    await asyncio.gather(*(gated(f"b{number}") for number in range(PUBLISHED)))
    rate = PUBLISHED / (time.perf_counter() - started)
    await nc.request("$JS.API.STREAM.PURGE.TASKS", b"", timeout=30)
    await nc.close()
    return times[len(times) // 2], times[int(len(times) * 0.99)], rate


async def work(url: str) -> tuple[float, float]:
    """Whole tasks: median in ms, one at a time; rate with many at once."""
    async with modelnet.connect(url) as net:

        async def call() -> None:
            await (await net.submit("bench.empty", {"x": "y" * 200}, deadline_s=120)).result()

        for _ in range(WARM_UP):
            await call()
        times = []
        for _ in range(SEQUENTIAL):
            started = time.perf_counter()
            await call()
            times.append((time.perf_counter() - started) * 1e3)
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def gated() -> None:
            async with gate:
                await call()

        started = time.perf_counter()
        await asyncio.gather(*(gated() for _ in range(BURST)))
        return statistics.median(times), BURST / (time.perf_counter() - started)


def fsync_ms(folder: Path, count: int = 200) -> float:
    """Median of appending 4 KiB and syncing it."""
    times = []
    path = folder / "fsync"
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1e3)
    path.unlink()
    return statistics.median(times)


def report(process: list[Measured], power: list[Measured]) -> str:
    """A line for each figure: both levels, and power / process round by round."""
    names = {
        "publish_p50_ms": "publish to TASKS, p50 ms",
        "publish_p99_ms": "publish to TASKS, p99 ms",
        "publishes_s": f"publishes/s, {IN_FLIGHT} at once",
        "task_p50_ms": "a whole task, p50 ms",
        "tasks_s": f"tasks/s, {IN_FLIGHT} at once",
    }
    lines = [f"{'':<26}{'process':>10}{'power':>10}  power / process"]
    for field, name in names.items():
        before, after = ([getattr(one, field) for one in level] for level in (process, power))
        ratios = [a / b for a, b in zip(after, before, strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"{name:<26}{statistics.median(before):>10.2f}{statistics.median(after):>10.2f}  "
            f"{statistics.median(ratios):.2f} ({each})"
        )
    return "\n".join(lines)


async def main() -> None:
    """Run all rounds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bidders", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: that of temporary files")
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/durability.txt too")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="modelnet-bench-", dir=args.folder))
    out = [
        f"bench/durability.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {args.rounds} rounds, {args.bidders} bidders; medians"
    ]
    print(out[0], flush=True)
    try:
        found: dict[bool, list[Measured]] = {False: [], True: []}
        syncs = []
        for number in range(args.rounds):
            syncs.append(fsync_ms(folder))
            for sync_always in (False, True) if number % 2 == 0 else (True, False):
                data = folder / f"{number}-{sync_always}"
                found[sync_always].append(await measure(data, args.bidders, sync_always=sync_always))
                shutil.rmtree(data, ignore_errors=True)
        each = ", ".join(f"{took:.2f}" for took in syncs)
        out.append(f"fsync of 4 KiB on this disk: {statistics.median(syncs):.2f} ms ({each})")
        out.append(report(found[False], found[True]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + "\n\n".join(out[1:]), flush=True)
    if args.write:
        Path(__file__).with_name("results").joinpath("durability.txt").write_text("\n\n".join(out) + "\n")


if __name__ == "__main__":
    uvloop.run(main())
