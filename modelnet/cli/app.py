"""The Typer application: all commands by name."""

from __future__ import annotations

from typing import Annotated

import typer

from modelnet import __version__
from modelnet.cli import (
    accounts,
    audit,
    backup,
    batch,
    conformance,
    dlq,
    doctor,
    mcp,
    models,
    network,
    reputation,
    tasks,
    tenants,
    top,
    trace,
)

__all__ = ["app"]

app = typer.Typer(
    help="An AI-model network on NATS: publish tasks, run workers, watch results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"modelnet {__version__}")
        raise typer.Exit


@app.callback()
def modelnet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An AI-model network on NATS: publish tasks, run workers, watch results."""


for command in (
    network.up,
    tasks.submit,
    tasks.watch,
    tasks.result,
    tasks.cancel,
    tasks.tasks,
    trace.trace,
    audit.audit,
    reputation.reputation,
    batch.batch,
    network.work,
    network.workers,
    top.top,
    network.drain,
    mcp.mcp,
    network.capabilities,
    backup.backup,
    backup.restore,
    accounts.account,
    accounts.accounts,
    accounts.credit,
    accounts.deposits,
    accounts.limit,
    doctor.doctor,
    doctor.config,
):
    app.command()(command)

app.add_typer(conformance.conformance, name="conformance")
app.add_typer(dlq.dlq, name="dlq")
app.add_typer(models.models, name="models")
app.add_typer(tenants.tenant, name="tenant")
