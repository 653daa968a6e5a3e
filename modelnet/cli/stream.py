"""A task's stream on the screen: as JSON lines, or as the answer itself with a line about it below."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import typer

from modelnet.cli.session import print_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modelnet.messages import Final
    from modelnet.reader import StreamEvent

__all__ = ["event_object", "follow", "show_final", "summary"]

_EVENT_FIELDS = ("kind", "task", "attempt", "worker", "number")
_FINAL_FIELDS = ("kind", "task", "status", "output", "worker", "price", "attempts", "usage", "error")

_WAITING = {
    "no_worker": "waiting: no worker of this capability is on the network now",
    "busy": "waiting: every worker of this capability is busy",
    "no_bids": "waiting: nobody answered the request for bids in time; asking again",
    "poor_bids": "waiting: no bid is worth its price, and others are too busy to bid; asking again",
    "ledger_away": "waiting: the ledger is away, so the price cannot be set aside; asking again",
}


def event_object(event: StreamEvent) -> dict[str, Any]:
    """An event as JSON, the documented fields first and always there, null where there is nothing to say."""
    found: dict[str, Any] = event.to_dict()
    first = _FINAL_FIELDS if event.kind == "final" else _EVENT_FIELDS
    return {name: found.get(name) for name in first} | found


def summary(final: Final) -> str:
    """One line: worker, price, time, bids; or what went wrong."""
    took = f"{final.timings.total_ms:.0f} ms" if final.timings.total_ms >= 10 else f"{final.timings.total_ms:.1f} ms"
    bids = f"{final.bids} bid{'' if final.bids == 1 else 's'}"
    if final.status == "completed":
        again = f", {final.attempts} attempts" if final.attempts > 1 else ""
        if final.parts:
            again = f", {len(final.parts)} part{'' if len(final.parts) == 1 else 's'}"
        return f"completed by {final.worker}, price {final.price}, {took}, {bids}{again}  ({final.task})"
    code = final.error.code if final.error else final.status
    message = final.error.message if final.error and final.error.message else final.status
    part = f", {final.price} paid for the work done" if final.price else ""
    return f"error: {' '.join(message.split())} [{code}]  {final.status} after {took}, {bids}{part}  ({final.task})"


async def follow(stream: AsyncIterator[StreamEvent], *, as_json: bool) -> int:
    """Show a task's stream to its end; 0 if it was completed."""
    text = _Text()
    try:
        async for event in stream:
            if as_json:
                print_json(event_object(event))
            else:
                text.show(event)
            if event.kind == "final":
                return 0 if event.status == "completed" else 1
    finally:
        text.leave()
    return 1


def show_final(final: Final, *, as_json: bool) -> int:
    """Show how a task ended; 0 if it was completed."""
    if as_json:
        print_json(event_object(final))
    else:
        _Text().show(final)
    return 0 if final.status == "completed" else 1


class _Text:
    """The answer on stdout as it comes; on stderr what is about it, passing news on one line of a terminal."""

    def __init__(self) -> None:
        self._shown = ""
        self._parts: list[tuple[int, str]] = []
        """The text by the numbers of its events: a reset voids what is above one."""
        self._news = False
        self._redraws = sys.stdout.isatty()
        self._live = sys.stderr.isatty()

    def show(self, event: StreamEvent) -> None:
        """Show one event, as far as it is for people."""
        if event.kind == "delta" and event.index == 0:
            self._tell("")
            self._write(event.text)
            self._shown += event.text
            self._parts.append((event.number, event.text))
        elif event.kind == "reset":
            self._parts = [part for part in self._parts if part[0] <= event.to]
            how = "goes on from an earlier point" if self._parts else "answers anew"
            self._reset(f"{event.worker} {how} (attempt {event.attempt})", "".join(text for _, text in self._parts))
        elif event.kind == "awarded" and not self._shown:
            self._tell(f"{event.worker} is at work", passing=True)
        elif event.kind == "planned":
            self._tell(event.why, passing=True)
        elif event.kind == "progress" and not self._shown:
            share = "" if event.fraction is None else f"{event.fraction:.0%} "
            self._tell(f"{share}{event.note or ''}".strip(), passing=True)
        elif event.kind == "waiting":
            self._tell(_WAITING[event.reason], passing=self._live)
        elif event.kind == "final":
            self._tell("")
            if event.output is not None and not (self._shown and event.output.get("text") == self._shown):
                self._end_line()
                self._write(json.dumps(event.output, ensure_ascii=False) + "\n")
                self._shown = ""
            self._end_line()
            typer.echo(summary(event), err=True)

    def leave(self) -> None:
        """Leave the cursor at the start of a line."""
        self._tell("")
        self._end_line()

    def _end_line(self) -> None:
        if self._shown and not self._shown.endswith("\n"):
            self._write("\n")
        self._shown = ""

    def _reset(self, reason: str, standing: str) -> None:
        """Of what was shown only this stands: redraw it on a terminal; elsewhere it can only be said."""
        if self._redraws and self._shown:
            rows = _rows_above(self._shown, shutil.get_terminal_size().columns)
            self._write("\r" + (f"\x1b[{rows}A" if rows else "") + "\x1b[J")
        else:
            self._end_line()
        self._tell(reason, passing=self._redraws)
        if standing:
            self._tell("")
            self._write(standing)
        self._shown = standing

    def _tell(self, news: str, *, passing: bool = False) -> None:
        """Put news on stderr; what is `passing` is for a terminal only, and gone when the next comes."""
        if self._news:
            sys.stderr.write("\r\x1b[K")
            self._news = False
        if news and passing and self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\x1b[2m{news[:width]}\x1b[0m")
            self._news = True
        elif news and not passing:
            sys.stderr.write(f"{news}\n")
        sys.stderr.flush()

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _rows_above(text: str, columns: int) -> int:
    """How many rows above the cursor a text that ends there begins."""
    from rich.cells import cell_len

    return sum(max(cell_len(line) - 1, 0) // columns for line in text.split("\n")) + text.count("\n")
