"""`modelnet dlq`: look at what could not be handled, try it again, or drop it."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelnet.cli.session import (
    Json,
    Url,
    configured,
    make_table,
    parse_duration,
    print_json,
    run,
    show_error,
    wide_console,
)
from modelnet.errors import ModelnetError, UsageError

if TYPE_CHECKING:
    from modelnet.bus.deadletters import Buried, DeadLetters

__all__ = ["dlq"]

dlq = typer.Typer(
    help="Dead letters: messages that could not be parsed, and tasks that broke whoever tried them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Numbers = Annotated[list[int] | None, typer.Argument(help="Numbers of letters, as `list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="Every letter there is.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dlq.command("list")
def list_letters(
    since: Annotated[str | None, typer.Option(help="Only those of the last 10m, 2h, …")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the newest so many.")] = 100,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List dead letters, oldest first."""

    async def work(letters: DeadLetters) -> int:
        seconds = parse_duration(since)
        after = time.time() - seconds if seconds is not None else None
        found = [buried async for buried in letters.all(since=after)]
        if as_json:
            for buried in found[-limit:]:
                print_json(_summary(buried))
            return 0
        table = make_table("number", "when", "subject", "bytes", "reason", right=("number", "bytes"))
        for buried in found[-limit:]:
            when = datetime.fromtimestamp(buried.time).strftime("%Y-%m-%d %H:%M:%S")
            table.add_row(str(buried.number), when, buried.letter.subject, str(buried.size), buried.letter.reason)
        if found:
            wide_console().print(table)
        more = f", {len(found) - limit} older ones not shown" if len(found) > limit else ""
        typer.echo(f"{len(found)} dead letter{'' if len(found) == 1 else 's'}{more}", err=True)
        return 0

    _run(work, url)


@dlq.command()
def show(
    number: Annotated[int, typer.Argument(help="Number of the letter.")], as_json: Json = False, url: Url = None
) -> None:
    """Show one letter whole: where it came, why it lies here, its headers and its body."""

    async def work(letters: DeadLetters) -> int:
        buried = await letters.get(number)
        letter = buried.letter
        text = _text(letter.body)
        if as_json:
            body = {"body": text} if text is not None else {"body_hex": letter.body.hex()}
            print_json(_summary(buried) | {"headers": letter.headers, "cut": letter.cut_from is not None} | body)
            return 0
        when = datetime.fromtimestamp(buried.time).isoformat(sep=" ", timespec="seconds")
        typer.echo(f"subject: {letter.subject}\nburied:  {when}\nreason:  {letter.reason}")
        for name, value in letter.headers.items():
            typer.echo(f"header:  {name}: {value}")
        cut = f", of which the first {len(letter.body)} were kept" if letter.cut_from else ""
        typer.echo(f"body:    {buried.size} bytes{cut}{'' if text is not None else ', no text: in hex'}\n")
        typer.echo(text if text is not None else letter.body.hex(" ", 4))
        return 0

    _run(work, url)


@dlq.command()
def retry(numbers: Numbers = None, every: All = False, as_json: Json = False, url: Url = None) -> None:
    """Publish tasks again. One that has ended gets an id of its own. Its letter is gone once the stream has it."""

    async def one(letters: DeadLetters, buried: Buried) -> dict[str, Any]:
        task = await letters.retry(buried)
        if not as_json:
            typer.echo(f"letter {buried.number} is task {task.id} of {task.tenant}, for {task.capability}")
        return {"number": buried.number, "task": task.id, "tenant": task.tenant, "capability": task.capability}

    _each(one, numbers, every, as_json, url)


@dlq.command()
def drop(numbers: Numbers = None, every: All = False, yes: Yes = False, as_json: Json = False, url: Url = None) -> None:
    """Delete letters for good."""
    if not yes:
        if not sys.stdin.isatty():
            show_error(UsageError("nobody is there to be asked: say --yes"), as_json=as_json)
            raise typer.Exit(2)
        what = "every dead letter" if every else f"{len(numbers or ())} dead letter(s)"
        typer.confirm(f"Delete {what}?", abort=True, err=True)

    async def one(letters: DeadLetters, buried: Buried) -> dict[str, Any]:
        await letters.drop(buried.number)
        if not as_json:
            typer.echo(f"letter {buried.number} is gone")
        return {"number": buried.number, "dropped": True}

    _each(one, numbers, every, as_json, url)


def _each(
    do: Callable[[DeadLetters, Buried], Awaitable[dict[str, Any]]],
    numbers: list[int] | None,
    every: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Do something with each letter named; 1 if that failed for any, and each failure told."""

    async def work(letters: DeadLetters) -> int:
        if bool(numbers) == every:
            raise UsageError("name letters by their numbers, or say --all")
        wanted = numbers or [buried.number async for buried in letters.all()]
        failed = 0
        for number in wanted:
            try:
                done = await do(letters, await letters.get(number))
            except ModelnetError as error:
                show_error(error, as_json=as_json)
                failed += 1
            else:
                if as_json:
                    print_json(done)
        return 1 if failed else 0

    _run(work, url)


def _run(work: Callable[[DeadLetters], Awaitable[int]], url: str | None) -> None:
    async def connected() -> int:
        import modelnet
        from modelnet.bus.deadletters import DeadLetters

        async with modelnet.connect(config=configured(url)) as net:
            return await work(DeadLetters(net.bus))

    run(connected())


def _summary(buried: Buried) -> dict[str, Any]:
    letter = buried.letter
    return {
        "number": buried.number,
        "time": buried.time,
        "subject": letter.subject,
        "bytes": buried.size,
        "reason": letter.reason,
    }


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
