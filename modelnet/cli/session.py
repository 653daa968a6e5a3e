"""What commands share: their common options, running a coroutine, and how errors end a command."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from modelnet.errors import MalformedInput, ModelnetError, UnknownTask, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from modelnet.settings import Settings

__all__ = [
    "Json",
    "Tenant",
    "Url",
    "complete",
    "configured",
    "exit_code",
    "make_table",
    "parse_duration",
    "parse_input",
    "parse_object",
    "parse_selector",
    "print_json",
    "run",
    "show_error",
    "wide_console",
]

Url = Annotated[
    str | None, typer.Option("--url", help="NATS servers; else MODELNET_URL, else the network that `up` runs here.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Who pays; else MODELNET_TENANT.")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)?")
_UNITS = {"ms": 1e-3, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


def configured(url: str | None, tenant: str | None = None) -> Settings:
    """The settings of this process, with what the command line says. Logs go to stderr, errors only."""
    from modelnet.log import setup_logging
    from modelnet.settings import settings

    try:
        base = settings()
    except ValueError as error:
        first = str(error).splitlines()
        raise UsageError(f"the environment's MODELNET_* settings are wrong: {' '.join(first[1:3])}") from None
    # A person is told in words, not in events, unless the level was asked for.
    setup_logging(base if "log_level" in base.model_fields_set else base.model_copy(update={"log_level": "error"}))
    chosen = base.model_copy(update={k: v for k, v in (("url", url), ("tenant", tenant)) if v})
    _import_nats(websockets=any(server.startswith("ws") for server in chosen.servers))
    return chosen


def _import_nats(*, websockets: bool) -> None:
    """Import nats-py without aiohttp where no server is a WebSocket's: it would be a third of a command's start."""
    if websockets or "aiohttp" in sys.modules or "nats" in sys.modules:
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # an import of it fails, which nats-py allows for
    try:
        import nats.aio.transport  # noqa: F401
    finally:
        del sys.modules["aiohttp"]


def run(work: Coroutine[Any, Any, int | None]) -> NoReturn:
    """Run a command's coroutine and leave with its exit code."""
    raise typer.Exit(complete(work))


def complete(work: Coroutine[Any, Any, int | None]) -> int:
    """Run a command's coroutine: its exit code. SIGINT and SIGTERM cancel it, which makes 130 and 143."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.run(_interruptible(work))
    return uvloop.run(_interruptible(work))


async def _interruptible(work: Coroutine[Any, Any, int | None]) -> int:
    loop = asyncio.get_running_loop()
    job, received = loop.create_task(work), list[int]()

    def interrupt(number: int) -> None:
        received.append(number)
        job.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await job or 0
    except asyncio.CancelledError:
        return 128 + (received or [signal.SIGINT])[0]


def exit_code(error: ModelnetError) -> int:
    """2 for wrong usage, 1 for all else. An id that nobody knows is right usage: only the network can tell."""
    return 2 if isinstance(error, UsageError) and not isinstance(error, UnknownTask) else 1


def show_error(error: ModelnetError, *, as_json: bool) -> None:
    """One line on stderr, or one object on stdout."""
    if as_json:
        print_json({"kind": "error", "error": {"code": error.wire_code, "message": error.message}})
    else:
        typer.echo(f"error: {' '.join(error.message.split())} [{error.wire_code}]", err=True)


def print_json(value: Any) -> None:
    """One JSON object on a line of its own, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def wide_console() -> Console:
    """A Rich console on stdout. A pipe has no width: whoever reads it wants whole lines."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def make_table(*headings: str, right: Sequence[str] = ()) -> Table:
    """A table for `wide_console`: ruled on a terminal, columns alone elsewhere."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def parse_duration(text: str | None) -> float | None:
    """Seconds in `5s`, `500ms`, `2m`, `1h` or a bare number. Raises `UsageError`."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no duration: write 5s, 500ms, 2m, or a number of seconds")
    return float(found.group(1)) * _UNITS[found.group(2)]


def parse_input(text: str) -> dict[str, Any]:
    """The JSON object in `text`, in the file it names as `@FILE`, or on stdin for `-`. Raises `MalformedInput`."""
    where = "the input"
    if text == "-":
        try:
            text, where = sys.stdin.read(), "stdin"
        except UnicodeDecodeError:
            raise MalformedInput("stdin is no UTF-8 text") from None
    elif text.startswith("@"):
        path = Path(text[1:])
        try:
            text, where = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
            raise MalformedInput(f"{path}: {reason}") from None
    return parse_object(text, where)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`, called `where` in errors. Raises `MalformedInput`."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise MalformedInput(f"{where} is no JSON: {error}") from None
    except RecursionError:
        raise MalformedInput(f"{where} is nested too deeply") from None
    if not isinstance(value, dict):
        raise MalformedInput(f"{where} must be a JSON object, not {_JSON_NAMES[type(value)]}")
    return value


_JSON_NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def parse_selector(pairs: list[str] | None) -> dict[str, Any] | None:
    """`model=…`, `worker=…`, `owner=…`, `labels.KEY=…` as a selector; one named several times may be any of them.

    Raises `UsageError`.
    """
    if not pairs:
        return None
    selector: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        prefix, _, label = key.partition(".")
        if not sign or not value or not (key in ("model", "worker", "owner") or (prefix == "labels" and label)):
            raise UsageError(f"{pair!r}: write model=…, worker=…, owner=… or labels.KEY=…")
        if label:
            selector.setdefault("labels", {})[label] = value
        else:
            selector.setdefault(key, []).append(value)
    return {
        name: found[0] if isinstance(found, list) and len(found) == 1 else found for name, found in selector.items()
    }
