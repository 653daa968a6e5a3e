"""`modelnet audit`: recompute winners and prices from what the auctions' transcripts say was bid and known."""

from __future__ import annotations

from typing import Annotated

import typer

from modelnet.cli.session import Json, Tenant, Url, configured, parse_duration, print_json, run
from modelnet.errors import UsageError

__all__ = ["audit"]


def audit(
    task: Annotated[str | None, typer.Argument(help="The task's id; leave it out to audit many.")] = None,
    since: Annotated[str | None, typer.Option(help="All auctions of this time, such as 1h.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Recompute auctions from their transcripts, and with the Finals what was paid. Exits 1 if any does not follow."""

    async def work() -> int:
        import modelnet
        from modelnet.market import differences
        from modelnet.market.settlement import payment_differences

        if (task is None) == (since is None):
            raise UsageError("name a task, or a time with --since")
        seconds = parse_duration(since)
        async with modelnet.connect(config=configured(url, tenant)) as net:
            found = await net.transcripts(task, since_s=seconds)
            finals = await net.finals(task, since_s=seconds)
        wrong = 0
        for at, transcript in found:
            differs = differences(transcript)
            final = finals.get(transcript.task)
            if final is not None:
                differs += payment_differences(transcript, final)
            paid = final.price if final is not None and final.auction == transcript.auction else None
            wrong += bool(differs)
            if as_json:
                print_json(
                    {
                        "auction": transcript.auction,
                        "task": transcript.task,
                        "attempt": transcript.attempt,
                        "at": at,
                        "bids": len(transcript.bids),
                        "winner": transcript.winner,
                        "price": transcript.price,
                        "rule": transcript.rule,
                        "paid": paid,
                        "differences": differs,
                    }
                )
                continue
            if task is not None or differs:
                outcome = f"{transcript.winner} for {transcript.price}" if transcript.winner else "nobody"
                state = "differs" if differs else "follows"
                typer.echo(
                    f"{transcript.task}  attempt {transcript.attempt}  {len(transcript.bids)} bids  {outcome}  {state}"
                )
            for line in differs:
                typer.echo(f"  {line}")
        if not as_json:
            typer.echo(f"{len(found)} auctions recomputed, {wrong} differ")
        return 1 if wrong else 0

    run(work())
