"""What a campaign came to: from what clients, workers and streams have on record, counted after everything is over."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nats.aio.client import Client as Bus
from pydantic import ValidationError

import modelnet
from modelnet.bus import subjects
from modelnet.bus.replay import read_all
from modelnet.messages import Final, decode_entry
from tests.chaos.custody import TaskKey
from tests.chaos.faults import Fault
from tests.chaos.fleet import Fleet
from tests.chaos.money import Bank, Money
from tests.chaos.recovery import Followed, Recoveries, recoveries

__all__ = ["Tally", "count", "take_stock"]


@dataclass(slots=True)
class Tally:
    """The numbers of a run. Those in `must_be_zero` decide whether it passed."""

    accepted: int = 0
    """Acknowledged by the task stream, and asked by workers of other workers."""
    completed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Finals that are not `completed`, by status and code."""
    lost: list[TaskKey] = field(default_factory=list)
    """Accepted, without a Final, and no longer in the task stream."""
    hung: list[TaskKey] = field(default_factory=list)
    """Accepted, and its reader saw no Final until well after its deadline."""
    left_over: list[TaskKey] = field(default_factory=list)
    """Still in the task stream when all was over."""
    executed_twice: int = 0
    """Tasks whose handler was begun more than once, on whatever worker."""
    accepted_twice: list[TaskKey] = field(default_factory=list)
    """Two Finals in the journal, or a reader was shown another Final than the journal's."""
    bad_streams: dict[TaskKey, list[str]] = field(default_factory=dict)
    """What was wrong with a stream as it was shown."""
    wrong: list[TaskKey] = field(default_factory=list)
    """Completed with an output that is not the right one."""
    deaths: list[str] = field(default_factory=list)
    """Processes that died though no fault had them in hand."""
    streams: int = 0
    reset_streams: int = 0
    reader_restarts: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Submits that raised an error, by code: nothing was accepted, or nobody knows."""
    faults: Counter[str] = field(default_factory=Counter)
    missed_points: int = 0
    recovery: Recoveries = field(default_factory=Recoveries)
    took_s: float = 0.0
    money: Money | None = None
    """Where tenants have accounts."""

    @property
    def must_be_zero(self) -> dict[str, int]:
        """By name, what may not be above zero."""
        return {
            "lost": len(self.lost),
            "hung": len(self.hung) + len(self.left_over),
            "accepted twice": len(self.accepted_twice),
            "streams with a gap or repeat": len(self.bad_streams),
            "wrong outputs": len(self.wrong),
            "processes that died by themselves": len(self.deaths),
            **(self.money.must_be_zero if self.money is not None else {}),
        }


async def take_stock(
    fleet: Fleet,
    *,
    records: Path,
    faults: list[Fault],
    missed_points: int,
    deaths: list[str],
    patience_s: float,
    took_s: float,
    bank: Bank | None = None,
) -> Tally:
    """Read everything back, straight from the server, and count.

    Tasks that nobody follows, because their publisher was told an error, may still be under way: they have
    `patience_s` to end.
    """
    async with modelnet.connect(f"nats://127.0.0.1:{fleet.nats.port}") as net:
        for _ in range(int(patience_s)):
            if not (queued := await _queued(net.bus)):
                break
            await asyncio.sleep(1.0)
        finals = await _finals(net.bus)
    told, executions = _lines(records), _lines(fleet.executions)
    tally = count([json.loads(line) for line in told], executions, finals, queued)
    tally.faults = Counter(fault.kind for fault in faults)
    tally.missed_points, tally.deaths, tally.took_s = missed_points, list(deaths), took_s
    tally.recovery = recoveries(_followed(told), faults)
    if bank is not None:
        tally.money = await bank.close(finals, patience_s)
    return tally


async def _finals(bus: Bus) -> dict[TaskKey, list[Final]]:
    found: dict[TaskKey, list[Final]] = {}
    async for stored in read_all(bus, "JOURNAL", subjects.journal("*", "*", "final")):
        try:
            entry = decode_entry(stored.body)
        except ValidationError:
            continue
        if isinstance(entry, Final):
            found.setdefault((entry.tenant, entry.task), []).append(entry)
    return found


async def _queued(bus: Bus) -> set[TaskKey]:
    found = set()
    async for stored in read_all(bus, "TASKS", "task.>"):
        parts = stored.subject.split(".")
        found.add((parts[3], parts[4]))
    return found


def count(
    records: Iterable[dict[str, Any]],
    executions: Iterable[str],
    finals: dict[TaskKey, list[Final]],
    queued: set[TaskKey],
) -> Tally:
    """The numbers, from what is on record."""
    tally, accepted, hung = Tally(), set[TaskKey](), set[TaskKey]()
    for record in records:
        key = (record["tenant"], record.get("task", ""))
        match record["what"]:
            case "accepted":
                accepted.add(key)
            case "refused":
                tally.refused[record["code"]] += 1
            case "reader_restarted":
                tally.reader_restarts += 1
            case "hung":
                hung.add(key)
            case "ended":
                tally.streams += 1
                tally.reset_streams += bool(record["resets"])
                if record["problems"]:
                    tally.bad_streams[key] = record["problems"]
                if record["wrong"]:
                    tally.wrong.append(key)
                shown = finals.get(key, [])
                if len(shown) == 1 and _identity(shown[0]) != record["final"]:
                    tally.accepted_twice.append(key)
    accepted |= {key for key in finals if key not in accepted} | queued  # what workers asked of each other
    tally.accepted = len(accepted)
    for stored in finals.values():
        if stored[0].status == "completed":
            tally.completed += 1
        else:
            error = stored[0].error
            tally.failed[f"{stored[0].status}: {error.code}" if error else stored[0].status] += 1
    tally.lost = sorted(accepted - set(finals) - queued)
    tally.left_over = sorted(queued - hung)
    tally.hung = sorted(hung - set(tally.lost))
    tally.accepted_twice += [key for key, stored in finals.items() if len(stored) > 1]
    begun = Counter(tuple(line.split()[1:3]) for line in executions if line.startswith("begin "))
    tally.executed_twice = sum(times > 1 for times in begun.values())
    return tally


def _identity(final: Final) -> list[Any]:
    return [final.status, final.worker, final.attempt, final.digest, final.negotiator]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _followed(lines: list[str]) -> list[Followed]:
    """Every task that was seen to its end."""
    return [
        Followed(
            (record["tenant"], record["task"]),
            record["kind"],
            record["nominal_ms"] / 1e3,
            record["submitted_at"],
            record["ended_at"],
        )
        for record in map(json.loads, lines)
        if record["what"] == "ended"
    ]
