"""`modelnet reputation`: what the network knows of a worker, and how its estimate comes about."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelnet.cli.session import Json, configured, make_table, print_json, run, wide_console

if TYPE_CHECKING:
    from modelnet.market import TrackRecord

__all__ = ["reputation"]


def reputation(
    worker: Annotated[str, typer.Argument(help="The worker's id.")],
    as_json: Json = False,
) -> None:
    """Explain the estimate of a worker's quality and of its claims of time, for each capability."""

    async def work() -> int:
        from modelnet.store.reputation import ReputationBook

        async with ReputationBook(configured(None).redis) as book:
            records = await book.of([worker])
        found = {capability: explained(record, time.time()) for (_, capability), record in sorted(records.items())}
        if as_json:
            for capability, facts in found.items():
                print_json({"worker": worker, "capability": capability, **facts})
        elif not found:
            typer.echo(f"nothing is known of {worker} yet: it is a newcomer, judged by its own claims")
        else:
            _show(found)
        return 0

    run(work())


def explained(record: TrackRecord, now: float) -> dict[str, Any]:
    """A record as plain numbers. The claim of the worker's card, which fades, is left out of the estimate."""
    known, times = record.reputation, record.calibration
    estimate = known.estimate(None, now)
    timed = times.count
    return {
        "passed": known.passed,
        "failed": known.failed,
        "cases": estimate.cases,
        "quality": estimate.quality,
        "mean_quality": estimate.mean,
        "time_bias": times.bias(now),
        "coverage": times.coverage,
        "claimed_coverage": times.covered_claim / timed if timed else None,
        "pinball_loss": times.loss,
        "claimed_pinball_loss": times.loss_claim,
    }


def _show(found: dict[str, dict[str, Any]]) -> None:
    numbers = ("passed", "failed", "weight", "mean", "bound", "takes x claim", "in p90", "in claimed p90")
    table = make_table("capability", *numbers, right=numbers)
    for capability, facts in found.items():
        shares = ("" if share is None else f"{share:.0%}" for share in (facts["coverage"], facts["claimed_coverage"]))
        table.add_row(
            capability,
            str(facts["passed"]),
            str(facts["failed"]),
            f"{facts['cases']:.1f}",
            f"{facts['mean_quality']:.3f}",
            f"{facts['quality']:.3f}",
            f"{facts['time_bias']:.2f}",
            *shares,
        )
    console = wide_console()
    console.print(table)
    console.print(
        "weight: outcomes as they count, by price and source, halved every three days; bound: what bids are scored\n"
        "with; in p90: share of tasks within the 90th percentile as corrected, and as claimed: near 90 % at best",
        highlight=False,
    )
