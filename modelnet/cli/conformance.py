"""`modelnet conformance`: whether a worker or a client in any language keeps the protocol."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from modelnet.cli.session import Json, configured, make_table, parse_input, print_json, run, wide_console
from modelnet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelnet.conformance import Report
    from modelnet.settings import Settings

__all__ = ["conformance"]

conformance = typer.Typer(
    help="Check a worker or a client of any language against docs/protocol.md, from outside.", no_args_is_help=True
)

Server = Annotated[
    str | None, typer.Option("--url", help="A NATS server to use; by default one is started, and stopped, for it.")
]


@conformance.command()
def worker(
    capability: Annotated[str, typer.Option("--capability", "-c", help="What the worker can do.")],
    input: Annotated[str, typer.Option("--input", "-i", help="An input for it: JSON, @FILE, or - for stdin.")],
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject", help="The command that starts the worker; MODELNET_URL tells it where the server is."
        ),
    ] = None,
    worker: Annotated[str | None, typer.Option("--worker", help="The id of a worker that runs already.")] = None,
    slow_input: Annotated[
        str | None,
        typer.Option("--slow-input", help="An input that takes 2 to 20 seconds; without it less can be checked."),
    ] = None,
    as_json: Json = False,
    url: Server = None,
) -> None:
    """Check a worker. Exits 0 if nothing was broken; what could not be checked is listed with the reason."""

    async def work() -> int:
        from modelnet.conformance import WorkerSuite
        from modelnet.conformance.desk import Terms

        if (subject is None) == (worker is None):
            raise UsageError("name either the command that starts the worker (--subject) or one that runs (--worker)")
        terms = Terms(capability, parse_input(input), parse_input(slow_input) if slow_input else None)
        config = _server(url) if worker is None else configured(url)
        if worker is not None:
            config = config.model_copy(update={"url": ",".join(config.servers)})
        suite = WorkerSuite(terms, command=_split(subject), worker=worker or "", config=config, on_check=_tell(as_json))
        return _show(await suite.run(), as_json=as_json)

    run(work())


@conformance.command()
def client(
    subject: Annotated[
        str,
        typer.Option("--subject", help="The command of the client; it is called with submit, watch and cancel."),
    ],
    as_json: Json = False,
    url: Server = None,
) -> None:
    """Check a client. Exits 0 if nothing was broken; docs/any-language.md says how its command is called."""

    async def work() -> int:
        from modelnet.conformance import ClientSuite

        suite = ClientSuite(_split(subject), config=_server(url), on_check=_tell(as_json))
        return _show(await suite.run(), as_json=as_json)

    run(work())


def _server(url: str | None) -> Settings:
    """The settings, with the server that was named on the command line and no other: the kit stops streams."""
    return configured(url).model_copy(update={"url": url or ""})


def _split(command: str | None) -> list[str]:
    try:
        return shlex.split(command or "")
    except ValueError as error:
        raise UsageError(f"the command {command!r} cannot be read: {error}") from None


def _tell(as_json: bool) -> Callable[[str], None]:
    """Names each check as it begins, where a person reads."""

    def tell(name: str) -> None:
        if not as_json:
            typer.echo(f"  {name}", err=True)

    return tell


def _show(report: Report, *, as_json: bool) -> int:
    findings = report.findings()
    counts = {name: sum(one.result == name for one in findings) for name in ("passed", "failed", "not_checked")}
    if as_json:
        for one in findings:
            print_json({"kind": "finding", **one.to_dict()})
        print_json({"kind": "conformance", **counts})
    else:
        table = make_table("", "result", "requirement", "why")
        for one in findings:
            shown = one.to_dict()
            table.add_row(one.requirement, one.result.replace("_", " "), shown["title"], shown["why"])
        wide_console().print(table)
        typer.echo(
            f"{counts['passed']} kept, {counts['failed']} broken, {counts['not_checked']} not checked"
            " (docs/protocol.md has the requirements in full)"
        )
    return 1 if report.failed else 0
