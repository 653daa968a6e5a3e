"""The ledger from a terminal: accounts, credit, limits. Money is in micro-credits."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelnet.cli.session import Json, Url, configured, make_table, print_json, run, wide_console
from modelnet.errors import ConnectionFailed, ModelnetError, UsageError

if TYPE_CHECKING:
    from modelnet.store.ledger import Account, Entry, Ledger, OpenHold

__all__ = ["account", "accounts", "check_name", "credit", "deposits", "limit"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Name = Annotated[str, typer.Argument(metavar="TENANT", help="Name of a tenant, or of an owner of workers.")]


def account(
    name: Name,
    entries: Annotated[int, typer.Option(min=0, max=1000, help="How many of its last movements.")] = 20,
    as_json: Json = False,
) -> None:
    """Show an account: balance, holds, limits, and what went in and out of it lately."""

    async def work(ledger: Ledger) -> int:
        found = await ledger.account(name)
        holds = await ledger.holds(name)
        last = await ledger.statement(name, entries) if entries else []
        if as_json:
            print_json(
                _summary(found) | {"open_holds": [asdict(h) for h in holds], "entries": [asdict(e) for e in last]}
            )
            return 0
        _show(found, holds, last)
        return 0

    _run(work, name)


def accounts(as_json: Json = False) -> None:
    """List all accounts, and whether the books balance."""

    async def work(ledger: Ledger) -> int:
        books = await ledger.books()
        table = make_table("account", "balance", "held", "holds", "charged", right=("balance", "held", "holds"))
        for one in books.accounts:
            if as_json:
                print_json(_summary(one))
            table.add_row(one.name, str(one.balance), str(one.held), str(one.holds), "yes" if one.metered else "no")
        if books.imbalance:
            message = f"the accounts have {books.imbalance} micro-credits more than were ever granted ({books.minted})"
            raise ModelnetError(message, code="books_do_not_balance")
        if not as_json:
            if books.accounts:
                wide_console().print(table)
            typer.echo(
                f"{len(books.accounts)} accounts, {books.minted} micro-credits granted; the books balance", err=True
            )
        return 0

    _run(work)


def credit(
    name: Name,
    amount: Annotated[int, typer.Argument(min=0, metavar="AMOUNT", help="Micro-credits.")],
    id: Annotated[
        str | None, typer.Option("--id", help="Name of this grant: said twice with the same id, it is made once.")
    ] = None,
    take: Annotated[bool, typer.Option("--take", help="Take so much out instead: a payout, or a mistake.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Give an account credits. From then on its tasks are charged."""
    check_name(id, "id")

    async def work(ledger: Ledger) -> int:
        from modelnet.messages import new_id

        grant = id or new_id()
        balance = await ledger.grant(name, -amount if take else amount, grant)
        found = await ledger.account(name)
        if as_json:
            print_json({"account": name, "amount": -amount if take else amount, "id": grant, "balance": balance})
        else:
            typer.echo(f"{name} has {balance} micro-credits (grant {grant})")
        await _tell(name, found.metered, url)
        return 0

    _run(work, name)


def limit(
    name: Name,
    per_hour: Annotated[
        int | None, typer.Option(min=0, help="Most it may spend from one full hour to the next.")
    ] = None,
    per_day: Annotated[
        int | None, typer.Option(min=0, help="Most it may spend from one midnight UTC to the next.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="No limit but its balance.")] = False,
    free: Annotated[bool, typer.Option("--free", help="Charge it nothing any more; what it has stays.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Limit what a tenant's tasks may spend. From then on they are charged."""
    if (per_hour is not None or per_day is not None) + none + free != 1:
        raise UsageError("say --per-hour N, --per-day N, or both; or --none; or --free")

    async def work(ledger: Ledger) -> int:
        if free:
            await ledger.free(name)
        else:
            if none or per_hour is not None:
                await ledger.limit(name, "hour", per_hour)
            if none or per_day is not None:
                await ledger.limit(name, "day", per_day)
        if as_json:
            print_json({"account": name, "metered": not free, "per_hour": per_hour, "per_day": per_day})
        else:
            typer.echo(
                f"{name} is free" if free else f"{name} is charged{_bounds(per_hour, per_day) or ', without limit'}"
            )
        await _tell(name, not free, url)
        return 0

    _run(work, name)


def deposits(
    name: Annotated[str, typer.Argument(metavar="OWNER", help="Name of an owner of workers.")],
    worker: Annotated[str | None, typer.Argument(help="A worker of its; leave it out to list them.")] = None,
    most: Annotated[int | None, typer.Option(min=0, help="Most it may put up for one task, in micro-credits.")] = None,
    none: Annotated[
        bool, typer.Option("--none", help="Nothing any more; what it has put up ends as it would.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say which workers may put up an owner's money, to be paid by what their answers turn out to be worth."""
    if (worker is None) != (most is None and not none) or (most is not None and none):
        raise UsageError("say a worker and --most N, or a worker and --none, or neither to list them")

    async def work(ledger: Ledger) -> int:
        if worker is not None:
            await ledger.allow_deposits(name, worker, most)
        allowed = await ledger.depositors(name)
        if as_json:
            print_json({"account": name, "depositors": allowed})
        elif not allowed:
            typer.echo(f"no worker may put up money of {name}")
        for one, amount in sorted(allowed.items()) if not as_json else ():
            typer.echo(f"{one} may put up {amount} micro-credits of {name} for one task")
        return 0

    check_name(worker, "worker")
    _run(work, name)


def _bounds(per_hour: int | None, per_day: int | None) -> str:
    return "".join(f", at most {n} per {w}" for n, w in ((per_hour, "hour"), (per_day, "day")) if n is not None)


async def _tell(tenant: str, metered: bool, url: str | None) -> None:
    """Let the negotiators know at once. A ledger worker tells them too, but later."""
    from modelnet.bus.connection import close, connect
    from modelnet.bus.metering import announce_metering

    try:
        nc = await connect(configured(url), "modelnet-accounts")
        try:
            await announce_metering(nc, tenant, metered=metered)
        finally:
            await close(nc)
    except ConnectionFailed as error:
        later = (
            "say it again when the network runs"
            if not metered
            else "a ledger worker tells them within 30 s of its start"
        )
        message = (
            f"the ledger has it, but negotiators do not know yet whether {tenant} is charged: {error.message}; {later}"
        )
        raise ConnectionFailed(message) from None


def _run(work: Callable[[Ledger], Awaitable[int]], name: str | None = None) -> None:
    check_name(name, "account name")

    async def connected() -> int:
        from modelnet.store.ledger import Ledger

        async with Ledger(configured(None).redis) as ledger:
            return await work(ledger)

    run(connected())


def check_name(name: str | None, what: str) -> None:
    """Raises `UsageError` for what cannot be a tenant's, an owner's or a worker's name."""
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no {what}: use letters, digits, - and _, 64 at most")


def _summary(found: Account) -> dict[str, Any]:
    limits = {f"per_{one.window}": one.amount for one in found.limits}
    spent = {f"spent_this_{one.window}": one.spent for one in found.limits}
    held = {"held": found.held, "holds": found.holds}
    return {"account": found.name, "balance": found.balance, **held, "metered": found.metered, **limits, **spent}


def _show(found: Account, holds: list[OpenHold], last: list[Entry]) -> None:
    typer.echo(f"account   {found.name}{'' if found.metered else ' (its tasks are free)'}")
    typer.echo(f"balance   {found.balance}")
    typer.echo(f"held      {found.held} for {found.holds} task{'' if found.holds == 1 else 's'}")
    for one in found.limits:
        bound = "no limit" if one.amount is None else f"limit {one.amount}"
        typer.echo(f"per {one.window:<5} {bound}, {one.spent} spent or held in this one")
    if holds:
        table = make_table("held since", "amount", "task", right=("amount",))
        for hold in holds:
            task = hold.task if hold.worker is None else f"{hold.task} of {hold.tenant} (deposit of {hold.worker})"
            table.add_row(_when(hold.taken_at), str(hold.amount), task)
        wide_console().print("", table)
    if last:
        table = make_table("when", "what", "amount", "balance", "with", "task", right=("amount", "balance"))
        for entry in last:
            row = (entry.kind, f"{entry.amount:+d}", str(entry.balance), entry.other, entry.task)
            table.add_row(_when(entry.at), *row)
        wide_console().print("", table)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
