"""`modelnet trace`: who bid what, who won, why, at what price, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelnet.cli.session import Json, Tenant, Url, configured, make_table, print_json, run, wide_console

if TYPE_CHECKING:
    from modelnet.history import TaskTrace

__all__ = ["trace"]


def trace(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show a task's auctions, attempts and timeline."""

    async def work() -> int:
        import modelnet
        from modelnet.telling import trace_object

        config = configured(url, tenant)
        async with modelnet.connect(config=config) as net:
            found = await net.trace(task)
        if as_json:
            print_json(trace_object(found))
        else:
            _show(found)
        return 0

    run(work())


def _show(found: TaskTrace) -> None:
    from modelnet.telling import attempts, timeline, why

    console = wide_console()
    for _, transcript in found.transcripts:
        how = "standing offers" if transcript.closed_by == "offers" else "auction"
        console.print(
            f"{how} for attempt {transcript.attempt}: {transcript.capability}, budget {transcript.budget}", style="bold"
        )
        if transcript.strategy:
            console.print(f"  {transcript.strategy}", highlight=False)
        table = make_table(
            "worker",
            *(numbers := ("price", "first ms", "p50 ms", "p90 ms", "quality", "value", "score")),
            "",
            right=numbers,
        )
        for bid in transcript.bids:
            mark = "won" if bid.worker == transcript.winner else "" if bid.eligible else "not eligible"
            first = "" if bid.first_ms is None else f"{bid.first_ms:.1f}"
            estimates = (first, f"{bid.p50_ms:.1f}", f"{bid.p90_ms:.1f}", f"{bid.quality:.3f}", f"{bid.value:.1f}")
            table.add_row(bid.worker, str(bid.price), *estimates, f"{bid.score:.1f}", mark)
        for worker, reason in transcript.refusals.items():
            table.add_row(worker, *[""] * 7, f"refused: {reason}")
        console.print(table)
        console.print(f"  {why(transcript)}", highlight=False)
    if found.attempts:
        table = make_table(
            *("attempt", "worker", "price", "outcome", "events", "first ms", "run ms", "tokens", "cached"),
            right=("price", "events", "first ms", "run ms", "cached"),
        )
        for one in attempts(found):
            usage = one["usage"] or {}
            table.add_row(
                str(one["attempt"]),
                one["worker"],
                str(one["price"]),
                one["outcome"] if not one["error"] else f"error: {one['error']['code']}",
                str(one["events"]),
                f"{usage['first_ms']:.1f}" if usage and usage["first_ms"] is not None else "",
                f"{usage['run_ms']:.1f}" if usage else "",
                f"{usage['prompt_tokens']}+{usage['completion_tokens']}" if usage else "",
                str(usage["cached_tokens"] or "") if usage else "",
            )
        console.print(table)
    if found.parts:
        table = make_table("part", "worker", "price", "status", "total ms", right=("price", "total ms"))
        for part in found.parts:
            final = next((entry for _, entry in part.journal if entry.kind == "final"), None)
            if final is None:
                table.add_row(part.task, part.attempts[-1]["worker"] if part.attempts else "", "", "running", "")
                continue
            status = final.status if final.error is None else f"{final.status}: {final.error.code}"
            price = "" if final.price is None else str(final.price)
            table.add_row(part.task, final.worker or "", price, status, f"{final.timings.total_ms:.1f}")
        console.print(table)
        console.print("  modelnet trace PART shows a part's auction", highlight=False)
    for ms, what in timeline(found):
        console.print(f"  {ms:9.1f} ms  {what}", highlight=False)
