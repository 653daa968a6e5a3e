"""The console under load: does a browser keep up with 500 workers and 1,000 tasks a second, and what does that cost?

    python -m bench.console [--workers 500] [--rate 1000] [--seconds 8] [--rounds 3] [--write]

A real server, a real gateway and a headless Chromium with the console's pages open, one after the other; the network
that they show is played (bench/console_network.py). Each round looks twice, without tasks and with RATE of them a
second. Printed, as medians over the rounds: times between the browser's frames, long tasks (above 50 ms) of its main
thread, frames and bytes that the gateway has sent, and the processor time of the gateway's process. All of it shares
the machine: server, player, gateway, and a browser that draws without a GPU. Needs chromium, node and npm.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from bench.flood import memory_mib
from bench.overhead import end, server, spawn
from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import HeldPort
from modelnet.bus.streams import setup_bus
from modelnet.settings import Settings
from tests.console.browser import Browser, why_not

PAGES = {"network": "", "auctions": "/auctions", "tasks": "/tasks", "market": "/market"}
SETTLE_S = 3.0
"""Time for the page to be drawn, and the rates to be known, before it is measured."""

_MEASURE = """
(async () => {
  const { picture } = await import("/console/static/live.js");
  const frames = [], long = [];
  const observer = new PerformanceObserver((list) => list.getEntries().forEach((one) => long.push(one.duration)));
  observer.observe({ entryTypes: ["longtask"] });
  const before = { frames: picture.frames, bytes: picture.bytes };
  const end = performance.now() + SECONDS * 1000;
  await new Promise((done) => {
    let last = performance.now();
    const next = (now) => {
      frames.push(now - last);
      last = now;
      if (now < end) requestAnimationFrame(next); else done();
    };
    requestAnimationFrame(next);
  });
  observer.disconnect();
  return { frames, long, got: picture.frames - before.frames, bytes: picture.bytes - before.bytes,
           tasks_s: picture.head.tasks_s, workers: picture.head.workers, heard: picture.head.sampled.auctions };
})()
"""


@asynccontextmanager
async def playing(url: str, workers: int, rate: float, seconds: float) -> AsyncIterator[None]:
    """The synthetic network, in a process of its own."""
    command = [sys.executable, "-m", "bench.console_network", url, str(workers), str(rate), str(seconds)]
    player = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert player.stdout is not None
        await player.stdout.readline()
        yield
    finally:
        if player.returncode is None:
            player.terminate()
        await player.wait()


def processor_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: list[float], q: float) -> float:
    """A quantile by rank; 0 for none."""
    found = sorted(values)
    return found[min(int(len(found) * q), len(found) - 1)] if found else 0.0


async def look(browser: Browser, base: str, page: str, seconds: float, pid: int) -> dict[str, float]:
    """Have one page open for a while; what was measured."""
    opened = await browser.open(f"{base}/console#{PAGES[page]}")
    await opened.until("document.querySelector('.figures, .page') !== null")
    await asyncio.sleep(SETTLE_S)
    before = processor_s(pid)
    found: dict[str, Any] = await opened.eval(_MEASURE.replace("SECONDS", str(seconds)))
    used = processor_s(pid) - before
    errors = await opened.do("said")
    await opened.do("close")
    assert not errors, errors
    return {
        "frame p50 ms": quantile(found["frames"], 0.5),
        "frame p99 ms": quantile(found["frames"], 0.99),
        "worst frame ms": max(found["frames"]),
        "long tasks a minute": len(found["long"]) * 60 / seconds,
        "longest task ms": max(found["long"], default=0.0),
        "frames sent a second": found["got"] / seconds,
        "KiB a second": found["bytes"] / seconds / 1024,
        "gateway's processor %": 100 * used / seconds,
        "tasks/s shown": found["tasks_s"] or 0.0,
        "workers shown": found["workers"],
        "share of auctions heard": found["heard"],
    }


async def measure(args: argparse.Namespace) -> list[str]:
    """The whole run; lines of the report."""
    found: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    async with server() as url:
        bus = await connect(Settings(url=url), "bench-console")
        await setup_bus(bus)
        await close(bus)
        held = HeldPort()
        port = held.number
        env = {"MODELNET_URL": url, "MODELNET_GATEWAY_LISTEN": f"127.0.0.1:{port}", "MODELNET_LOG_LEVEL": "info"}
        gateway = spawn(["modelnet.run", "workers.gateway:app"], b"gateway_started", env)
        lasts = (args.seconds + SETTLE_S + 5) * len(PAGES)
        try:
            async with Browser() as browser:
                for _ in range(args.rounds):
                    for rate in (0.0, args.rate):
                        async with playing(url, args.workers, rate, lasts):
                            for page in PAGES:
                                base = f"http://127.0.0.1:{port}"
                                found[page, rate].append(await look(browser, base, page, args.seconds, gateway.pid))
            memory = memory_mib(gateway.pid)
        finally:
            end([gateway])
            held.release()
    names = list(next(iter(found.values()))[0])
    columns = [(page, rate) for page in PAGES for rate in (0.0, args.rate)]
    heads = [f"{page} {'idle' if not rate else f'{rate:g}/s'}" for page, rate in columns]
    lines = [f"{args.workers} workers; {args.rounds} rounds of {args.seconds:g} s; medians over the rounds", ""]
    lines.append(f"{'':<26}" + "".join(f"{head:>16}" for head in heads))
    for name in names:
        cells = [statistics.median(one[name] for one in found[column]) for column in columns]
        lines.append(f"{name:<26}" + "".join(f"{cell:>16.1f}" if cell < 1000 else f"{cell:>16.0f}" for cell in cells))
    lines.append(f"memory of the gateway's process at the end: {memory:.0f} MiB")
    return lines


async def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--rate", type=float, default=1000.0, help="tasks a second")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each page and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/console.txt too")
    args = parser.parse_args()
    if reason := why_not():
        sys.exit(f"error: {reason}")
    head = f"bench/console.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
    report = "\n".join([head, *await measure(args)])
    print(report)
    if args.write:
        Path(__file__).with_name("results").joinpath("console.txt").write_text(report + "\n")


if __name__ == "__main__":
    uvloop.run(main())
