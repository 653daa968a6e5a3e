"""What a task of empty work costs: CPU of each party, and tasks per second; beside those of another revision, in turn.

    python -m bench.cost [--against REVISION] [--strategy auction] [--rounds 4] [--write]

Eight bidders, a process each, on one negotiator. Rounds of both trees alternate, each on servers of its own, with this
tree's packages installed; the ratios are of neighbouring rounds. CPU tells more than rates on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

import modelnet
from bench.overhead import end, server, spawn

BIDDERS, WARM_UP = 8, 300
BURSTS = {1: 300, 32: 2000, 128: 3000}
"""Tasks by how many are in flight."""

Row = dict[str, float]
"""What was measured at one number in flight: `negotiator`, `workers`, `client`, `all` in ms of CPU a task, `rate`."""


async def measure(strategy: str) -> dict[int, Row]:
    """One round of the tree that this process imports."""
    # A revision from before strategies knows auctions only.
    options: dict[str, Any] = {} if strategy == "auction" else {"strategy": strategy}
    async with server() as url:
        env = {"MODELNET_URL": url, "MODELNET_LOG_LEVEL": "info"}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        for number in range(BIDDERS):
            bidder = env | {"EMPTY_NUMBER": str(number)}
            children.append(spawn(["modelnet.run", "bench.empty_worker:app"], b"workers_joined", bidder))
        try:
            async with modelnet.connect(url) as net:

                async def call() -> None:
                    await (await net.submit("bench.empty", {"x": "y" * 200}, **options)).result()

                for _ in range(WARM_UP):
                    await call()
                return {flight: await burst(call, flight, count, children) for flight, count in BURSTS.items()}
        finally:
            end(children)


async def burst(call: Any, flight: int, count: int, children: list[subprocess.Popen[bytes]]) -> Row:
    """`count` tasks, `flight` of them at once."""
    gate = asyncio.Semaphore(flight)

    async def one() -> None:
        async with gate:
            await call()

    before, mine, started = [cpu_s(child.pid) for child in children], time.process_time(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    took_s, own_s = time.perf_counter() - started, time.process_time() - mine
    used = [cpu_s(child.pid) - already for child, already in zip(children, before, strict=True)]
    row = {"negotiator": used[0], "workers": sum(used[1:]), "client": own_s, "all": sum(used) + own_s}
    return {party: seconds / count * 1e3 for party, seconds in row.items()} | {"rate": count / took_s}


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used; in the kernel's ticks, mostly of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def round_of(tree: Path, strategy: str) -> dict[int, Row]:
    """One round of a tree, in a process that imports from there."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", "--strategy", strategy]
    done = subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"a round of {tree} failed")
    return {int(flight): row for flight, row in json.loads(done.stdout.splitlines()[-1]).items()}


def export(revision: str, folder: Path) -> str:
    """Put a revision's files into a folder; its short hash."""
    here = Path(__file__).resolve().parent.parent
    archive = subprocess.run(["git", "archive", revision], cwd=here, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    short = ["git", "rev-parse", "--short", revision]
    return subprocess.run(short, cwd=here, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def report(name: str, rounds: list[dict[int, Row]]) -> str:
    """A tree's medians."""
    lines = [f"{name:<20}" + "".join(f"{party:>12}" for party in ("negotiator", "workers", "client", "all", "tasks/s"))]
    for flight in BURSTS:
        cells = {key: statistics.median(one[flight][key] for one in rounds) for key in rounds[0][flight]}
        costs = "".join(f"{cells[party]:>12.2f}" for party in ("negotiator", "workers", "client", "all"))
        lines.append(f"{f'{flight} at once':<20}{costs}{cells['rate']:>12.0f}")
    return "\n".join(lines)


def ratios(others: list[dict[int, Row]], ours: list[dict[int, Row]]) -> str:
    """This tree's over the other's, round by round."""
    lines = []
    for flight in BURSTS:
        for key, name in (("all", "CPU a task"), ("rate", "tasks/s")):
            found = [mine[flight][key] / other[flight][key] for other, mine in zip(others, ours, strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in found)
            lines.append(f"this / that, {name}, {flight} at once: {statistics.median(found):.2f} ({each})")
    return "\n".join(lines)


def main() -> None:
    """Run all rounds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="another revision, to be measured in turn with this tree")
    parser.add_argument("--strategy", default="auction", help="auction, spot, …")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/cost.txt too")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(uvloop.run(measure(args.strategy))))
        return
    here = Path(__file__).resolve().parent.parent
    out = [
        f"bench/cost.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{args.strategy}, {BIDDERS} bidders, {args.rounds} rounds; medians, ms of CPU a task"
    ]
    with tempfile.TemporaryDirectory(prefix="modelnet-bench-") as folder:
        others, ours = [], []
        that = export(args.against, Path(folder)) if args.against else ""
        for _ in range(args.rounds):
            if that:
                others.append(round_of(Path(folder), args.strategy))
            ours.append(round_of(here, args.strategy))
    if that:
        out += [report(f"that: {that}", others), report("this", ours), ratios(others, ours)]
    else:
        out.append(report("this", ours))
    print("\n\n".join(out))
    if args.write:
        Path(__file__).with_name("results").joinpath("cost.txt").write_text("\n\n".join(out) + "\n")


if __name__ == "__main__":
    main()
