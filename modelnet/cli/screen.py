"""The screen of `modelnet top`: a snapshot of the network drawn to fit a terminal, and what the keys do to it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

__all__ = ["SORTS", "Screen"]

Row = Mapping[str, Any]

SORTS: dict[str, Callable[[Row], Any]] = {
    "busy": lambda row: (-row["running"] - row["queued"], row["id"]),
    "name": lambda row: row["id"],
    "capability": lambda row: (row["capability"], row["id"]),
    "price": lambda row: (row["price"] is None, row["price"], row["id"]),
    "quality": lambda row: (-(row["quality"] or 0.0), row["id"]),
    "won": lambda row: (-row["won"], row["id"]),
}
"""How workers can be ordered."""

_STATES = {"lost": "bold red", "left": "dim", "draining": "yellow"}
_STATUSES = {
    "completed": "green",
    "running": "cyan",
    "auctioning": "cyan",
    "waiting": "yellow",
    "failed": "red",
    "expired": "red",
    "cancelled": "dim",
}
_ESCAPE, _BACKSPACE = "\x1b", ("\x7f", "\b")


class Screen:
    """How it is looked at: order, filter, pause. `draw` makes lines, `key` takes a key."""

    def __init__(self, *, sort: str = "busy", filter: str = "") -> None:
        self.sort = sort
        self.filter = filter
        self.paused = False
        self.done = False
        self._typing = False
        self._first = 0
        self._kept: Row | None = None

    def key(self, key: str) -> None:
        """A key was pressed."""
        if self._typing:
            if key in ("\r", "\n"):
                self._typing = False
            elif key == _ESCAPE:
                self._typing, self.filter = False, ""
            elif key in _BACKSPACE:
                self.filter = self.filter[:-1]
            elif key.isprintable():
                self.filter += key
        elif key == "q":
            self.done = True
        elif key == "s":
            names = list(SORTS)
            self.sort = names[(names.index(self.sort) + 1) % len(names)]
        elif key in ("p", " "):
            self.paused = not self.paused
        elif key in ("/", "f"):
            self._typing = True
        elif key == _ESCAPE:
            self.filter = ""
        elif key in ("j", "k"):
            self._first = max(self._first + (1 if key == "j" else -1), 0)

    def draw(self, snapshot: Row, width: int, height: int | None, *, where: str = "", keys: bool = True) -> Text:
        """The screen in `width` columns and at most `height` lines; None: all workers, and as long as that is."""
        if self.paused and self._kept is not None:
            snapshot = self._kept
        self._kept = snapshot
        lines = self._top(snapshot, width, where)
        workers = self._workers(snapshot)
        tasks = [row for row in reversed(snapshot["tasks"]["put"]) if self._fits(row)]
        auctions = [row for row in reversed(snapshot["auctions"]["put"]) if self._fits(row)]
        if height is None:
            shares = (len(workers), 10, 10)
        else:
            shares = _shares(height - len(lines) - 6 - keys, len(workers), len(auctions), len(tasks))
        self._first = min(self._first, max(len(workers) - shares[0], 0))
        lines += self._worker_lines(workers, shares[0], width)
        lines += _auction_lines(auctions[: shares[1]], width)
        lines += _task_lines(tasks[: shares[2]], width, snapshot["head"]["sampled"])
        if keys:
            room = 0 if height is None else max(height - len(lines) - 1, 0)
            lines += [Text("")] * room + [self._foot(width)]
        return Text("\n").join(_cut(line, width) for line in lines[:height])

    def _fits(self, row: Row) -> bool:
        wanted = self.filter.lower()
        values = (row.get(name) for name in ("id", "owner", "capability", "task", "worker", "winner", "software"))
        return not wanted or any(wanted in value.lower() for value in values if isinstance(value, str))

    def _top(self, snapshot: Row, width: int, where: str) -> list[Text]:
        head = snapshot["head"]
        clock = datetime.now().strftime("%H:%M:%S")
        title = Text.assemble(("modelnet", "bold"), f"  {where}")
        title.truncate(max(width - 20, 0), overflow="ellipsis")
        state = Text.assemble(("PAUSED  " if self.paused else "", "bold yellow"), (clock, "dim"))
        gap = max(width - title.cell_len - state.cell_len, 1)
        lost = f" ({head['lost']} lost)" if head["lost"] else ""
        numbers = (
            f"{head['workers']} workers{lost}  {head['running']}/{head['slots']} busy  "
            f"{_number(head['tasks_s'])} tasks/s  {_number(head['auctions_s'])} auctions/s  "
            f"{_number(head['open'])} open  {_number(head['dead_letters'])} dead letters"
        )
        lines = [title + Text(" " * gap) + state, _cut(Text(numbers), width)]
        share = head["sampled"]["auctions"]
        if share < 1:
            said = f"sampled: {share:.0%} of the auctions are heard; counts and rates above are exact"
            lines.append(_cut(Text(said, "dim"), width))
        lines += [
            _cut(Text(f"{what}: {text}", "yellow"), width) for what, text in list(snapshot["head"]["notes"].items())[:3]
        ]
        return lines

    def _workers(self, snapshot: Row) -> list[Row]:
        pulses = {row["id"]: row for row in snapshot["pulses"]["put"]}
        nothing = {"running": 0, "queued": 0, "won": 0}
        found = []
        for row in snapshot["workers"]["put"]:
            served = row["capabilities"][0] if row["capabilities"] else {}
            more = len(row["capabilities"]) - 1 + row["more_capabilities"]
            facts = {
                "capability": served.get("pattern", "") + (f" +{more}" if more > 0 else ""),
                "price": served.get("price"),
                "p50_ms": served.get("p50_ms"),
                "quality": served.get("quality", served.get("claimed")),
            }
            patterns = " ".join(one["pattern"] for one in row["capabilities"])
            one = {**row, **nothing, **pulses.get(row["id"], {}), **facts}
            if self._fits({**one, "capability": patterns}):
                found.append(one)
        return sorted(found, key=SORTS[self.sort])

    def _worker_lines(self, workers: list[Row], most: int, width: int) -> list[Text]:
        wide = max(width - 37, 12)
        name, capability = wide * 5 // 11, wide - wide * 5 // 11
        head = f"{_pad('worker', name)} {_pad('capability', capability)} {'busy':>7} {'price':>6} "
        lines = [Text(head + f"{'p50 ms':>7} {'qual.':>5} {'won':>6}", "bold dim")]
        shown = workers[self._first : self._first + most]
        for row in shown:
            busy = f"{row['running']}/{row['slots']}" + (f"+{row['queued']}" if row["queued"] else "")
            price = "input" if row["price"] is None else str(row["price"])
            quality = "" if row["quality"] is None else f"{row['quality']:.2f}"
            p50 = "" if row["p50_ms"] is None else f"{row['p50_ms']:g}"
            if row["state"] in _STATES:
                busy = row["state"][:7]
            text = f"{_pad(row['id'], name)} {_pad(row['capability'], capability)} {busy:>7} {price:>6} "
            text += f"{p50:>7} {quality:>5} {row['won']:>6}"
            lines.append(Text(text, _STATES.get(row["state"], "")))
        if not workers:
            said = "no worker fits the filter" if self.filter else "no worker is on the network: modelnet work FILE"
            lines.append(_cut(Text(said, "dim italic"), width))
        elif len(workers) > len(shown):
            lines.append(_cut(Text(f"{len(workers) - len(shown)} more (j and k scroll)", "dim"), width))
        return lines

    def _foot(self, width: int) -> Text:
        if self._typing:
            return _cut(
                Text.assemble(("filter: ", "bold"), self.filter, ("▏", "blink"), ("  Enter, Esc", "dim")), width
            )
        filtered = f": {self.filter}" if self.filter else ""
        said = (
            f"q quit   s sort: {self.sort}   / filter{filtered}   p {'go on' if self.paused else 'pause'}   j k scroll"
        )
        return _cut(Text(said, "dim"), width)


def _auction_lines(auctions: list[Row], width: int) -> list[Text]:
    lines = [Text(""), Text("auctions", "bold dim")]
    for row in auctions:
        told: list[str | tuple[str, str]] = [(f"{_clock(row['at'])} ", "dim"), f"{_pad(row['capability'], 22)} "]
        if row["winner"] is None:
            told.append(("no winner  ", "yellow"))
        else:
            told += [(row["winner"], "bold"), f" for {row['price']}  "]
        bids = "  ".join(f"{bid['worker']} {bid['price']}→{bid['score']:.0f}" for bid in row["bids"])
        lines.append(_cut(Text.assemble(*told, (bids, "dim")), width))
    return lines if auctions else [*lines, Text("none yet: modelnet submit CAPABILITY --input …", "dim italic")]


def _task_lines(tasks: list[Row], width: int, sampled: Row) -> list[Text]:
    lines = [
        Text(""),
        Text("tasks" + ("  (a sample: more come than can be read)" if sampled["rows"] else ""), "bold dim"),
    ]
    for row in tasks:
        took = "" if row["total_ms"] is None else f"{row['total_ms']:.0f} ms"
        price = "" if row["price"] is None else str(row["price"])
        # Ids begin with the time: it is their end that differs.
        short = row["task"] if width >= 110 else row["task"][-10:]
        text = Text.assemble(
            (f"{_clock(row['at'])} ", "dim"),
            (f"{row['status']:<10} ", _STATUSES.get(row["status"], "")),
            f"{_pad(row['capability'], 22)} {_pad(row['worker'] or '', 14)} {price:>5} {took:>9}  ",
            (row["note"] or short, "dim"),
        )
        lines.append(_cut(text, width))
    return lines


def _shares(room: int, workers: int, auctions: int, tasks: int) -> tuple[int, int, int]:
    """How many lines each list gets: half for the workers, and what one leaves goes to the others."""
    room = max(room, 3)
    least = max(room // 4, 1)
    shown_auctions, shown_tasks = min(max(auctions, 1), least), min(max(tasks, 1), least)
    shown_workers = min(max(workers, 1), max(room - shown_auctions - shown_tasks - 1, 1))
    shown_tasks = min(max(tasks, 1), max(room - shown_workers - shown_auctions, 1))
    return shown_workers, shown_auctions, shown_tasks


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def _pad(text: str, width: int) -> str:
    """In exactly so many cells of a terminal."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}".removesuffix(".0") if value < 100 else f"{value:,.0f}"
