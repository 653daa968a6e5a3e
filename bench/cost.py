"""What a task of empty work costs: CPU of each party, and tasks per second; beside those of another revision, in turn.

    python -m bench.cost [--against REVISION] [--strategy auction] [--rounds 20] [--write]

Eight bidders, a process each, on one negotiator. Both trees' networks are up at once, each on a server of its own, with
this tree's packages installed, and take turns of a second or two; the ratios are of neighbouring turns, which of the
two comes first alternates. CPU tells more than rates on a busy machine.
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
BURSTS = {1: 150, 32: 500, 128: 700}
"""Tasks of a turn by how many are in flight."""

Row = dict[str, float]
"""What was measured at one number in flight: ms of CPU a task of each of the `PARTIES`, and the `rate`."""
PARTIES = ("server", "negotiator", "workers", "client", "all")


async def serve(strategy: str) -> None:
    """A network of the tree that this process imports: a turn for each line of stdin, its row as a line of stdout."""
    # A revision from before strategies knows auctions only.
    options: dict[str, Any] = {} if strategy == "auction" else {"strategy": strategy}
    bus = server()
    async with bus as url:
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
                print("ready", flush=True)
                # Another revision's own: it is that one's bench.overhead that is imported here.
                pids = [bus._nats.pid or 0, *(child.pid for child in children)]
                while line := await asyncio.to_thread(sys.stdin.readline):
                    print(json.dumps(await burst(call, int(line), BURSTS[int(line)], pids)), flush=True)
        finally:
            end(children)


async def burst(call: Any, flight: int, count: int, pids: list[int]) -> Row:
    """`count` tasks, `flight` of them at once."""
    gate = asyncio.Semaphore(flight)

    async def one() -> None:
        async with gate:
            await call()

    before, mine, started = [cpu_s(pid) for pid in pids], time.process_time(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    took_s, own_s = time.perf_counter() - started, time.process_time() - mine
    used = [cpu_s(pid) - already for pid, already in zip(pids, before, strict=True)]
    row = dict(zip(PARTIES, (used[0], used[1], sum(used[2:]), own_s, sum(used) + own_s), strict=True))
    return {party: seconds / count * 1e3 for party, seconds in row.items()} | {"rate": count / took_s}


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used; in the kernel's ticks, mostly of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Tree:
    """A tree's network, in a process that imports from there."""

    def __init__(self, folder: Path, strategy: str) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--strategy", strategy]
        env = os.environ | {"PYTHONPATH": str(folder)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=folder, env=env, stdin=pipe, stdout=pipe, text=True)
        self.rows: dict[int, list[Row]] = {flight: [] for flight in BURSTS}
        self._read()

    def turn(self, flight: int) -> None:
        """One burst."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{flight}\n")
        self._process.stdin.flush()
        self.rows[flight].append(json.loads(self._read()))

    def close(self) -> None:
        """Let it end its processes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        raise SystemExit("a network ended")


def export(revision: str, folder: Path) -> str:
    """Put a revision's files into a folder; its short hash."""
    here = Path(__file__).resolve().parent.parent
    archive = subprocess.run(["git", "archive", revision], cwd=here, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    short = ["git", "rev-parse", "--short", revision]
    return subprocess.run(short, cwd=here, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def report(name: str, tree: Tree) -> str:
    """A tree's medians."""
    lines = [f"{name:<20}" + "".join(f"{party:>12}" for party in (*PARTIES, "tasks/s"))]
    for flight, rows in tree.rows.items():
        cells = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        costs = "".join(f"{cells[party]:>12.2f}" for party in PARTIES)
        lines.append(f"{f'{flight} at once':<20}{costs}{cells['rate']:>12.0f}")
    return "\n".join(lines)


def ratios(other: Tree, ours: Tree) -> str:
    """This tree's over the other's, turn by turn: median and quartiles."""
    lines = []
    for flight in BURSTS:
        for key, name in (("all", "CPU a task"), ("rate", "tasks/s")):
            found = [mine[key] / that[key] for that, mine in zip(other.rows[flight], ours.rows[flight], strict=True)]
            low, middle, high = statistics.quantiles(found, n=4)
            lines.append(f"this / that, {name}, {flight} at once: {middle:.2f} (quartiles {low:.2f} and {high:.2f})")
    return "\n".join(lines)


def main() -> None:
    """Run all rounds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="another revision, to be measured in turn with this tree")
    parser.add_argument("--strategy", default="auction", help="auction, spot, …")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each tree at each number in flight")
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/cost.txt too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve(args.strategy))
        return
    out = [
        f"bench/cost.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{args.strategy}, {BIDDERS} bidders, {args.rounds} turns; medians, ms of CPU a task"
    ]
    with tempfile.TemporaryDirectory(prefix="modelnet-bench-") as folder:
        named: dict[str, Tree] = {}
        try:
            if args.against:
                name = f"that: {export(args.against, Path(folder))}"
                named[name] = Tree(Path(folder), args.strategy)
            named["this"] = Tree(Path(__file__).resolve().parent.parent, args.strategy)
            for number in range(args.rounds):
                for flight in BURSTS:
                    for tree in list(named.values())[:: -1 if number % 2 else 1]:
                        tree.turn(flight)
        finally:
            for tree in named.values():
                tree.close()
    out += [report(name, tree) for name, tree in named.items()]
    if args.against:
        out.append(ratios(*named.values()))
    print("\n\n".join(out), flush=True)
    if args.write:
        Path(__file__).with_name("results").joinpath("cost.txt").write_text("\n\n".join(out) + "\n")


if __name__ == "__main__":
    main()
