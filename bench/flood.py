"""A flood of one tenant's tasks: what becomes of memory, of other tenants' tasks, and of urgent ones.

    python -m bench.flood [--tasks 50000] [--write]

One negotiator, one worker of 16 slots whose handler takes 5 ms, a process each. One tenant publishes all its tasks at
once; meanwhile, twice a second, a task each of a tenant in another bucket of the stream, of a tenant in the flooder's
own bucket, and of the flooder with priority 9. Printed: their latencies, the backlog's rate, each process's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

import modelnet
from bench.overhead import end, server, spawn
from modelnet.bus.replay import last_of
from modelnet.bus.streams import stream_messages
from modelnet.client import Client

PUBLISHERS = 64
SAME_BUCKET, OTHER_BUCKET = "tenant-1", "tenant-20"
PROBES: dict[str, dict[str, Any]] = {
    "a tenant in another bucket": {"tenant": OTHER_BUCKET},
    "a tenant in the same bucket": {"tenant": SAME_BUCKET},
    "the same tenant, priority 9": {"tenant": "flood", "priority": 9},
}


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def flood(net: Client, count: int) -> float:
    """Publish `count` tasks; seconds that took."""
    left = iter(range(count))

    async def publish() -> None:
        for _ in left:
            await net.submit("bench.slow", {"x": "y" * 200}, tenant="flood", deadline_s=3600, follow=False)

    started = time.perf_counter()
    await asyncio.gather(*(publish() for _ in range(PUBLISHERS)))
    return time.perf_counter() - started


async def probe(net: Client, latencies: dict[str, list[float]], stop: asyncio.Event) -> None:
    """Submit a task of each kind twice a second until told to stop, and note how long each took."""

    async def one(name: str, options: dict[str, Any]) -> None:
        started = time.perf_counter()
        await (await net.submit("bench.slow", {"x": "y"}, **options)).result()
        latencies[name].append(time.perf_counter() - started)

    running: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        running |= {asyncio.create_task(one(name, options)) for name, options in PROBES.items()}
        try:
            await asyncio.wait_for(stop.wait(), 0.5)
        except TimeoutError:
            continue
    await asyncio.gather(*running)


async def measure(count: int) -> list[str]:
    """The whole run; lines of the report."""
    async with server() as url:
        env = {"MODELNET_URL": url, "MODELNET_LOG_LEVEL": "info"}
        negotiator = spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)
        worker = spawn(["modelnet.run", "bench.slow_worker:app"], b"workers_joined", env)
        children = [negotiator, worker]
        try:
            async with modelnet.connect(url) as net:
                processes = {"negotiator": negotiator.pid, "worker": worker.pid}
                before = {name: memory_mib(pid) for name, pid in processes.items()}
                most = dict(before)
                latencies: dict[str, list[float]] = defaultdict(list)
                stop = asyncio.Event()
                probing = asyncio.create_task(probe(net, latencies, stop))
                started = time.perf_counter()
                publishing_s = await flood(net, count)
                backlog = await stream_messages(net.bus, "TASKS")
                while await last_of(net.bus, "TASKS", "task.*.*.flood.>") is not None:
                    for name, pid in processes.items():
                        most[name] = max(most[name], memory_mib(pid))
                    await asyncio.sleep(0.25)
                total_s = time.perf_counter() - started
                stop.set()
                await probing
        finally:
            end(children)
    lines = [
        f"{count} tasks published in {publishing_s:.1f} s ({count / publishing_s:.0f}/s); {backlog} of them were "
        f"waiting then; all done after {total_s:.1f} s ({count / total_s:.0f}/s)",
        f"{'seconds from submit to Final':<32}{'p50':>8}{'p99':>8}{'most':>8}{'count':>8}",
    ]
    for name in PROBES:
        found = sorted(latencies[name])
        p99 = found[min(int(len(found) * 0.99), len(found) - 1)]
        lines.append(f"{name:<32}{found[len(found) // 2]:>8.2f}{p99:>8.2f}{found[-1]:>8.2f}{len(found):>8}")
    lines.append(
        "memory, MiB: " + ", ".join(f"{name} {before[name]:.0f} before, {most[name]:.0f} at most" for name in most)
    )
    return lines


async def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/flood.txt too")
    args = parser.parse_args()
    head = f"bench/flood.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
    report = "\n".join([head, *await measure(args.tasks)])
    print(report)
    if args.write:
        Path(__file__).with_name("results").joinpath("flood.txt").write_text(report + "\n")


if __name__ == "__main__":
    uvloop.run(main())
