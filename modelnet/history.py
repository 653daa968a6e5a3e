"""What is on record of a tenant's tasks: journals, auctions, results, read back from the streams."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nats.aio.client import Client
from pydantic import ValidationError

from modelnet.bus import subjects
from modelnet.bus.replay import Stored, last_of, read_all
from modelnet.errors import UnknownTask
from modelnet.messages import (
    Awarded,
    Final,
    JournalEntry,
    Planned,
    Transcript,
    Waiting,
    decode_entry,
    decode_event,
    part_id,
)

__all__ = ["TaskSummary", "TaskTrace", "finals", "tasks", "trace", "transcripts"]


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One line of a list of tasks."""

    task: str
    capability: str
    status: Literal["queued", "waiting", "running", "completed", "failed", "expired", "cancelled"]
    submitted_at: float | None
    """Seconds since the epoch, if still known."""
    final: Final | None


@dataclass(slots=True)
class TaskTrace:
    """All that is on record of a task."""

    task: str
    journal: list[tuple[float, JournalEntry]] = field(default_factory=list)
    """Entries with the server's timestamps, seconds since the epoch."""
    transcripts: list[tuple[float, Transcript]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """One per award: worker, price, how it ended, usage; abandoned ones too."""
    parts: list[TaskTrace] = field(default_factory=list)
    """Those of the tasks that it was made of."""


async def tasks(nc: Client, tenant: str, since_s: float | None = None) -> list[TaskSummary]:
    """Tasks of a tenant, oldest first: those without a Final, and those whose Final came in the last `since_s`."""
    since = time.time() - since_s if since_s is not None else None
    found: dict[str, TaskSummary] = {}
    status: dict[str, Literal["waiting", "running"]] = {}
    async for stored in read_all(nc, "JOURNAL", subjects.journal(tenant, "*", "*"), since=since):
        with contextlib.suppress(ValidationError):
            entry = decode_entry(stored.body)
            if isinstance(entry, Final):
                at = stored.time - entry.timings.total_ms / 1e3
                found[entry.task] = TaskSummary(entry.task, entry.capability, entry.status, at, entry)
            elif isinstance(entry, Awarded | Planned | Waiting):
                status[entry.task] = "waiting" if isinstance(entry, Waiting) else "running"
    async for stored in read_all(nc, "TASKS", f"task.*.*.{tenant}.>"):
        _, _, _, _, task, capability = stored.subject.split(".", 5)
        if task not in found:
            found[task] = TaskSummary(task, capability, status.get(task, "queued"), stored.time, None)
    return sorted(found.values(), key=lambda summary: summary.submitted_at or 0.0)


async def _journal(nc: Client, tenant: str, id: str) -> list[tuple[float, JournalEntry]]:
    """A task's entries, as far as this version can read them, each with when it was stored."""
    found: list[tuple[float, JournalEntry]] = []
    async for stored in read_all(nc, "JOURNAL", subjects.journal_of(tenant, id)):
        with contextlib.suppress(ValidationError):
            found.append((stored.time, decode_entry(stored.body)))
    return found


async def trace(nc: Client, tenant: str, id: str) -> TaskTrace:
    """Journal, auctions and attempts of a task. Raises `UnknownTask`."""
    found = TaskTrace(id, journal=await _journal(nc, tenant, id))
    if not found.journal and await last_of(nc, "TASKS", subjects.queued_task(tenant, id)) is None:
        found.journal = await _journal(nc, tenant, id)  # between the two reads it may have ended
        if not found.journal:
            raise UnknownTask(f"no task {id!r} of tenant {tenant!r}")
    async for stored in read_all(nc, "AUDIT", subjects.audit(tenant, id)):
        with contextlib.suppress(ValidationError):
            found.transcripts.append((stored.time, Transcript.decode(stored.body)))
    events: dict[tuple[str, int], Stored] = {}
    async for stored in read_all(nc, "RESULTS", subjects.events_of(tenant, id)):
        address = subjects.ResultAddress.parse(stored.subject)
        events[address.worker, address.attempt] = stored
    found.attempts = [_attempt(at, entry, events) for at, entry in found.journal if isinstance(entry, Awarded)]
    if any(isinstance(entry, Planned) for _, entry in found.journal):
        with contextlib.suppress(UnknownTask):
            while True:
                found.parts.append(await trace(nc, tenant, part_id(id, len(found.parts) + 1)))
    return found


async def transcripts(
    nc: Client, tenant: str, id: str | None = None, since_s: float | None = None
) -> list[tuple[float, Transcript]]:
    """Auctions of one task, or of all tasks of a tenant, each with when it was stored; those of the last `since_s`.

    Those of a task's parts are among its own. Raises `UnknownTask` for a task that no auction was held for, or
    whose transcripts are gone.
    """
    since = time.time() - since_s if since_s is not None else None
    found = list[tuple[float, Transcript]]()
    async for stored in read_all(nc, "AUDIT", subjects.audit(tenant, id or "*"), since=since):
        with contextlib.suppress(ValidationError):
            found.append((stored.time, Transcript.decode(stored.body)))
    if id is not None and not found:
        with contextlib.suppress(UnknownTask):
            found = [one for part in (await trace(nc, tenant, id)).parts for one in part.transcripts]
    if id is not None and not found:
        raise UnknownTask(f"no auction of task {id!r} of tenant {tenant!r} is on record")
    return found


async def finals(nc: Client, tenant: str, id: str | None = None, since_s: float | None = None) -> dict[str, Final]:
    """The Final of one task, or of all of a tenant that ended in the last `since_s`, by task."""
    since = time.time() - since_s if since_s is not None else None
    found = dict[str, Final]()
    async for stored in read_all(nc, "JOURNAL", subjects.journal(tenant, id or "*", "final"), since=since):
        with contextlib.suppress(ValidationError):
            final = Final.decode(stored.body)
            found[final.task] = final
    return found


def _attempt(at: float, awarded: Awarded, events: Mapping[tuple[str, int], Stored]) -> dict[str, Any]:
    """How an awarded attempt went, as far as the result stream tells."""
    found: dict[str, Any] = {
        "attempt": awarded.attempt,
        "worker": awarded.worker,
        "price": awarded.price,
        "awarded_at": at,
        "outcome": "abandoned",
        "ended_at": None,
        "events": 0,
        "usage": None,
        "error": None,
    }
    stored = events.get((awarded.worker, awarded.attempt))
    if stored is not None:
        with contextlib.suppress(ValidationError):
            event = decode_event(stored.body)
            found["events"] = event.number - awarded.from_number
            if event.kind in ("output", "error"):
                found["outcome"] = event.kind
                found["ended_at"] = stored.time
                found["usage"] = event.usage.to_dict()
                found["error"] = event.error.to_dict() if event.kind == "error" else None
    return found
