"""`modelnet tenant`: who may use the gateway, with which keys, and how often."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelnet.cli.accounts import check_name
from modelnet.cli.session import Json, configured, make_table, print_json, run, wide_console
from modelnet.errors import UsageError

if TYPE_CHECKING:
    from modelnet.store.tenants import Tenant, Tenants

__all__ = ["tenant"]

tenant = typer.Typer(
    help="Tenants of the gateway: their keys, and what they may ask for. What they may spend: `modelnet limit`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant: who pays.")]
Requests = Annotated[int | None, typer.Option("--requests", min=0, help="Most requests a minute.")]
Tokens = Annotated[int | None, typer.Option("--tokens", min=0, help="Most tokens a minute, read and written.")]


@tenant.command()
def create(name: Name, requests: Requests = None, tokens: Tokens = None, as_json: Json = False) -> None:
    """Make a tenant, and its first key, which is shown this once."""

    async def work(tenants: Tenants) -> int:
        await tenants.create(name)
        await _limit(tenants, name, requests, tokens)
        id, key = await tenants.add_key(name)
        _show_key(name, id, key, as_json)
        return 0

    _run(work, name)


@tenant.command("list")
def list_tenants(as_json: Json = False) -> None:
    """List all tenants, those that were revoked too."""

    async def work(tenants: Tenants) -> int:
        found = await tenants.all()
        table = make_table("tenant", "keys", "requests/min", "tokens/min", "since", right=("keys",))
        for one in found:
            if as_json:
                print_json(_summary(one))
            since = _when(one.created_at) + (f", revoked {_when(one.revoked_at)}" if one.revoked_at else "")
            bounds = ["" if n is None else str(n) for n in (one.allowance.requests, one.allowance.tokens)]
            table.add_row(one.name, str(len(one.keys)), *bounds, since)
        if not as_json:
            if found:
                wide_console().print(table)
            else:
                typer.echo("no tenants: `modelnet tenant create NAME` makes one")
        return 0

    _run(work)


@tenant.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show a tenant: its keys by id and label, and its limits."""

    async def work(tenants: Tenants) -> int:
        found = await tenants.tenant(name)
        if as_json:
            print_json(_summary(found))
            return 0
        typer.echo(f"tenant    {found.name}" + (f" (revoked {_when(found.revoked_at)})" if found.revoked_at else ""))
        for kind, most in asdict(found.allowance).items():
            typer.echo(f"{kind:<9} {'no limit' if most is None else f'{most} a minute'}")
        table = make_table("key", "label", "since")
        for key in found.keys:
            table.add_row(key.id, key.label, _when(key.created_at))
        if found.keys:
            wide_console().print(table)
        else:
            typer.echo(f"no keys: `modelnet tenant key {name}` makes one")
        typer.echo(f"what it may spend: `modelnet account {name}`")
        return 0

    _run(work, name)


@tenant.command()
def key(
    name: Name,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    drop: Annotated[str | None, typer.Option(metavar="ID", help="End this key instead of making one.")] = None,
    as_json: Json = False,
) -> None:
    """Make another key, which is shown this once; or end one. Gateways know within 5 s."""
    if drop is not None and label:
        raise UsageError("say --label for a new key, or --drop ID")

    async def work(tenants: Tenants) -> int:
        if drop is None:
            id, key = await tenants.add_key(name, label)
            _show_key(name, id, key, as_json)
            return 0
        await tenants.drop_key(name, drop)
        if as_json:
            print_json({"tenant": name, "id": drop, "dropped": True})
        else:
            typer.echo(f"key {drop} of {name} has ended")
        return 0

    _run(work, name)


@tenant.command()
def limit(
    name: Name,
    requests: Requests = None,
    tokens: Tokens = None,
    none: Annotated[bool, typer.Option("--none", help="No limit.")] = False,
    as_json: Json = False,
) -> None:
    """Limit what a tenant may ask for in a minute. What it may spend: `modelnet limit`."""
    if (requests is not None or tokens is not None) + none != 1:
        raise UsageError("say --requests N, --tokens N, or both; or --none")

    async def work(tenants: Tenants) -> int:
        if none:
            await tenants.limit(name, "requests", None)
            await tenants.limit(name, "tokens", None)
        await _limit(tenants, name, requests, tokens)
        found = (await tenants.tenant(name)).allowance
        if as_json:
            print_json({"tenant": name, **asdict(found)})
        else:
            bounds = [f"{most} {kind}" for kind, most in asdict(found).items() if most is not None]
            typer.echo(f"{name} may ask for {' and '.join(bounds) or 'any number'} a minute")
        return 0

    _run(work, name)


@tenant.command()
def revoke(name: Name, as_json: Json = False) -> None:
    """End all keys of a tenant. Gateways know within 5 s; its tasks that run end as they would."""

    async def work(tenants: Tenants) -> int:
        await tenants.revoke(name)
        if as_json:
            print_json({"tenant": name, "revoked": True})
        else:
            typer.echo(f"all keys of {name} have ended")
        return 0

    _run(work, name)


async def _limit(tenants: Tenants, name: str, requests: int | None, tokens: int | None) -> None:
    if requests is not None:
        await tenants.limit(name, "requests", requests)
    if tokens is not None:
        await tenants.limit(name, "tokens", tokens)


def _show_key(name: str, id: str, key: str, as_json: bool) -> None:
    if as_json:
        print_json({"tenant": name, "id": id, "key": key})
        return
    typer.echo(key)
    typer.echo(f"key {id} of {name}: keep it, it is not shown again", err=True)


def _run(work: Callable[[Tenants], Awaitable[int]], name: str | None = None) -> None:
    check_name(name, "tenant name")

    async def connected() -> int:
        from modelnet.store.tenants import Tenants

        async with Tenants(configured(None).redis) as tenants:
            return await work(tenants)

    run(connected())


def _summary(one: Tenant) -> dict[str, Any]:
    keys = [asdict(key) for key in one.keys]
    made = {"created_at": one.created_at, "revoked_at": one.revoked_at}
    return {"tenant": one.name, **made, **asdict(one.allowance), "keys": keys}


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
