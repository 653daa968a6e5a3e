"""`make demo`: a whole network on this machine, the main job on it, and a report. Exits 0 if it all worked.

python -m examples.demo [--invoices N] [--at-once 12] [--budget 100]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import modelnet
from examples.invoices import ANSWERS, INVOICES, Resolved, read_lines, resolve
from modelnet.engines import vllm_available
from modelnet.errors import TaskError
from modelnet.messages import Final
from modelnet.network import Network

SMALLER_BUDGETS = (100, 18)
"""What quality is worth falls with the budget, prices do not: the cheap generalist wins more and more."""

SAMPLE = 48
"""Invoices resolved again at each smaller budget."""


class Run:
    """Some invoices at one budget: what came of each, shown while it happens."""

    def __init__(self, name: str, budget: int) -> None:
        self.name = name
        self.budget = budget
        self.resolved: list[Resolved] = []
        self.errors: list[str] = []
        self.seconds = 0.0

    @property
    def finals(self) -> list[Final]:
        """The Finals of all tasks."""
        return [final for one in self.resolved for final in one.finals]

    async def do(self, net: modelnet.Client, invoices: Sequence[dict[str, Any]], at_once: int, screen: Screen) -> None:
        """Resolve the invoices, `at_once` at a time."""
        gate, started = asyncio.Semaphore(at_once), time.perf_counter()
        screen.begin(self, len(invoices))

        async def one(invoice: dict[str, Any]) -> None:
            async with gate:
                try:
                    resolved = await resolve(net, invoice, budget=self.budget)
                except TaskError as error:
                    self.errors.append(f"{invoice['id']}: {error.message} [{error.wire_code}]")
                else:
                    self.resolved.append(resolved)
                self.seconds = time.perf_counter() - started
                screen.step(self, invoice)

        await asyncio.gather(*(one(invoice) for invoice in invoices))

    def right(self, answers: dict[str, dict[str, str]], *fields: str) -> int:
        """How many invoices have these fields right."""
        return sum(all(one.answer[name] == answers[one.id][name] for name in fields) for one in self.resolved)


class Screen:
    """What a person sees meanwhile: a bar and the latest awards on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._recent: list[str] = []
        self._live: Live | None = None
        self._task: Any = None
        self._total = 0

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show it for the while."""
        if not self._console.is_terminal:
            yield
            return
        with Live(self._draw(), console=self._console, refresh_per_second=8, transient=True) as self._live:
            yield
        self._live = None

    def begin(self, run: Run, total: int) -> None:
        """A run starts."""
        self._total = total
        self._task = self._bar.add_task(run.name, total=total)

    def step(self, run: Run, invoice: dict[str, Any]) -> None:
        """An invoice is done."""
        self._bar.advance(self._task)
        finals = run.resolved[-1].finals if run.resolved else []
        self._recent = [
            *self._recent,
            *(
                f"{final.capability:<22} {final.worker or '':<12} price {final.price!s:>3}  "
                f"{final.bids} bids  {final.timings.total_ms:6.0f} ms"
                for final in finals[:2]
            ),
        ][-8:]
        done = len(run.resolved) + len(run.errors)
        if self._live is not None:
            self._live.update(self._draw())
        elif done % 60 == 0 or done == self._total:
            rate = len(run.finals) / run.seconds
            self._console.print(f"  {run.name}: {done}/{self._total} invoices, {rate:.0f} tasks/s", highlight=False)

    def _draw(self) -> Group:
        return Group(self._bar, Panel("\n".join(self._recent) or "…", title="won", border_style="dim"))


def report(console: Console, runs: Sequence[Run], answers: dict[str, dict[str, str]]) -> None:
    """The result, as tables."""
    main = runs[0]
    table = Table(title="Who won what", title_justify="left")
    for heading in ("worker", "capability"):
        table.add_column(heading)
    for heading in ("tasks", "earned", "mean price", "median ms"):
        table.add_column(heading, justify="right")
    won: defaultdict[tuple[str, str], list[Final]] = defaultdict(list)
    for final in main.finals:
        won[final.worker or "", final.capability].append(final)
    for (worker, capability), finals in sorted(won.items(), key=lambda item: (item[0][1], -len(item[1]))):
        earned = sum(final.price or 0 for final in finals)
        median = statistics.median(final.timings.total_ms for final in finals)
        table.add_row(worker, capability, str(len(finals)), str(earned), f"{earned / len(finals):.1f}", f"{median:.0f}")
    console.print(table)

    table = Table(title="What the money bought", title_justify="left")
    table.add_column("")
    for heading in ("budget a task", "invoices", "date right", "total right", "both right", "paid an invoice"):
        table.add_column(heading, justify="right")
    for run in runs:
        count = len(run.resolved) + len(run.errors)
        paid = sum(final.price or 0 for final in run.finals)
        shares = [run.right(answers, *names) / count for names in (("issued",), ("total",), ("issued", "total"))]
        cells = [f"{share:.1%}" for share in shares]
        table.add_row(run.name, str(run.budget), str(count), *cells, f"{paid / max(len(run.resolved), 1):.0f}")
    console.print(table)

    finals = main.finals
    negotiation = [final.timings.negotiation_ms for final in finals]
    running = [final.timings.running_ms for final in finals]
    bids = Counter(final.bids for final in finals)
    console.print(
        f"{len(finals)} tasks in {main.seconds:.1f} s: [bold]{len(finals) / main.seconds:.0f} tasks/s[/bold], "
        f"bids a task: {', '.join(f'{n} ({count}x)' for n, count in sorted(bids.items()))}",
        highlight=False,
    )
    console.print(
        f"median time in negotiation {statistics.median(negotiation):.1f} ms, in models "
        f"{statistics.median(running):.1f} ms (under load: everything shares this machine)",
        highlight=False,
    )
    for run in runs:
        for line in run.errors[:5]:
            console.print(f"[red]failed[/red] {line}", highlight=False)


async def demo(arguments: argparse.Namespace, console: Console) -> int:
    """Start, run, report, stop."""
    invoices, answers = read_lines(INVOICES), {line["id"]: line for line in read_lines(ANSWERS)}
    invoices = invoices[: arguments.invoices]
    if not vllm_available():
        console.print("vLLM is not installed here: the same models run on the NumPy engine", style="yellow")
    started = time.perf_counter()
    console.print("starting NATS, Redis, a negotiator, a calculator and seven models…", highlight=False)
    with tempfile.TemporaryDirectory(prefix="modelnet-demo-") as folder:
        async with Network(data=Path(folder), report=lambda line: console.print(f"  {line}", highlight=False)) as up:
            console.print(f"ready after {time.perf_counter() - started:.1f} s", highlight=False)
            async with modelnet.connect(up.url) as net:
                runs = [Run("main job", arguments.budget), *(Run("again, for less", b) for b in SMALLER_BUDGETS)]
                screen = Screen(console)
                async with screen.shown():
                    for run in runs:
                        await run.do(net, invoices if run is runs[0] else invoices[:SAMPLE], arguments.at_once, screen)
            report(console, runs, answers)
            absent = up.absent
    console.print(f"all stopped; {time.perf_counter() - started:.1f} s in all", highlight=False)
    for name, reason in absent.items():
        console.print(f"[red]worker {name} was missing: {reason}[/red]")
    return 1 if absent or any(run.errors for run in runs) else 0


def main() -> int:
    """Entry of `python -m examples.demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--invoices", type=int, default=None, help="how many of the file; all if not given")
    parser.add_argument("--at-once", type=int, default=12, help="invoices resolved at the same time")
    parser.add_argument("--budget", type=int, default=1000, help="micro-credits per task in the main run")
    console = Console(width=None if sys.stdout.isatty() else 110)
    try:
        return uvloop.run(demo(parser.parse_args(), console))
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
