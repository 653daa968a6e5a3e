"""`modelnet batch`: a file of inputs through the network, resumable, each line done once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelnet.cli.session import (
    Json,
    Tenant,
    Url,
    configured,
    parse_duration,
    parse_object,
    parse_selector,
    print_json,
    run,
)
from modelnet.errors import BusFull, MalformedInput, ModelnetError, TooLarge, UsageError

if TYPE_CHECKING:
    from modelnet.cli.outcome import Outcomes
    from modelnet.client import Client

__all__ = ["batch"]

_SHOWN_FAILURES = 20
_FULL_PAUSE_S = 0.5


def batch(
    file: Annotated[Path, typer.Argument(help="JSONL: one input object a line.")],
    capability: Annotated[str, typer.Option("--capability", "-c", help="What is needed.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL to append to; lines it has are not done again.")],
    budget: Annotated[int | None, typer.Option(min=0, help="Most to pay for a line, in micro-credits.")] = None,
    deadline: Annotated[str | None, typer.Option(help="Per line: 5s, 500ms, 2m, or seconds.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 (can wait) to 9 (urgent). Default 5.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="model=…, worker=…, owner=…, labels.KEY=…")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="As --require, for what must not hold.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Lines under way at once.")] = 32,
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Run every line of a file. Ctrl-C stops it; the same command goes on where it stopped."""
    options = {
        "budget": budget,
        "deadline_s": parse_duration(deadline),
        "priority": priority,
        "require": parse_selector(require),
        "exclude": parse_selector(exclude),
    }

    async def work() -> int:
        import modelnet
        from modelnet.cli.outcome import Outcomes

        config = configured(url, tenant)
        total = sum(1 for _ in _read(file))
        with Outcomes(out, file) as outcomes:
            job = _Batch(capability, options, outcomes)
            before, started = len(outcomes.done), time.monotonic()
            try:
                async with modelnet.connect(config=config) as net:
                    await job.do(net, file, concurrency, total)
            except (asyncio.CancelledError, ModelnetError):
                left = total - len(outcomes.done)
                typer.echo(f"stopped with {left} of {total} lines left; the same command goes on from here", err=True)
                raise
            outcomes.finish()
        _report(outcomes, total, before, time.monotonic() - started, as_json=as_json)
        return 1 if outcomes.failures else 0

    run(work())


class _Batch:
    """One run over the lines that are left."""

    def __init__(self, capability: str, options: dict[str, Any], outcomes: Outcomes) -> None:
        self._capability = capability
        self._options = options
        self._outcomes = outcomes

    async def do(self, net: Client, file: Path, concurrency: int, total: int) -> None:
        """Do the lines, `concurrency` at once. Raises the first error that is not a line's own."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        done = self._outcomes.done
        left = ((number, line) for number, line in _read(file) if not self._outcomes.has(number, line))
        console = Console(stderr=True)
        columns = (
            TextColumn(self._capability),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failed]}", style="red"),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=total, completed=len(done), failed="")

            async def lane() -> None:
                for number, line in left:
                    await self._line(net, number, line)
                    failed = len(self._outcomes.failures)
                    progress.update(bar, completed=len(done), failed=f"{failed} failed" if failed else "")

            lanes = [asyncio.create_task(lane()) for _ in range(min(concurrency, total))]
            try:
                await asyncio.gather(*lanes)
            finally:
                for task in lanes:
                    task.cancel()
                await asyncio.gather(*lanes, return_exceptions=True)

    async def _line(self, net: Client, number: int, line: str) -> None:
        # The same line of the same run is the same task: after an interruption its answer is fetched, not made anew.
        identity = "\x00".join((self._outcomes.run, self._capability, repr(self._options), str(number), line))
        id = hashlib.sha256(identity.encode()).hexdigest()[:32]
        try:
            value = parse_object(line, "the line")
        except MalformedInput as error:
            self._outcomes.refuse(number, line, error)
            return
        while True:
            try:
                task = await net.submit(self._capability, value, id=id, **self._options)
                break
            except BusFull:
                await asyncio.sleep(_FULL_PAUSE_S)
            except (UsageError, TooLarge) as error:  # the line's own fault; any other ends the batch
                self._outcomes.refuse(number, value, error)
                return
        self._outcomes.add(number, value, await task.final())


def _report(outcomes: Outcomes, total: int, before: int, took_s: float, *, as_json: bool) -> None:
    """How it went, failures last."""
    failures = sorted(outcomes.failures.items())
    fresh = len(outcomes.done) - before
    if as_json:
        print_json(
            {
                "kind": "batch",
                "lines": total,
                "done_before": before,
                "completed": len(outcomes.done) - len(failures),
                "failed": [number for number, _ in failures],
                "price": outcomes.price,
                "took_s": took_s,
            }
        )
        return
    rate = f", {fresh / took_s:.0f} a second" if fresh and took_s else ""
    typer.echo(
        f"{total} lines, {before} done before, {len(failures)} failed, "
        f"{outcomes.price} micro-credits, {took_s:.1f} s{rate}",
        err=True,
    )
    for number, reason in failures[:_SHOWN_FAILURES]:
        typer.echo(f"  line {number}: {reason}", err=True)
    if len(failures) > _SHOWN_FAILURES:
        typer.echo(f"  … and {len(failures) - _SHOWN_FAILURES} more, see the output file", err=True)
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.flush()


def _read(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, numbered from 1."""
    try:
        with file.open(encoding="utf-8") as source:
            for number, line in enumerate(source, start=1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is no UTF-8 text") from None
