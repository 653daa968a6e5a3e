"""The task's journal on the bus: the fence that lets one Final stand, and no status after it.

Every write names the last sequence its writer knows on `journal.<tenant>.<lane>.<task>.*`, so a stale negotiator's
entry, a second Final, and anything after the Final are refused by the server (error 10071). After a refusal or a lost
acknowledgement the writer reads back: its own retry would be refused too.
"""

from __future__ import annotations

import contextlib
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError
from pydantic_core import from_json

from modelnet.errors import ConnectionFailed
from modelnet.messages import (
    DeadLetter,
    ErrorInfo,
    Failure,
    Final,
    JournalEntry,
    Message,
    Output,
    Task,
    Timings,
    decode_entry,
    decode_event,
)

from . import subjects
from .replay import Stored, last_of, read_all

__all__ = ["HELD_HEADER", "append", "bury", "ending", "first_error", "read", "refused", "stored_sequence", "write"]

_LETTER_ROOM = 16_384
"""Bytes kept for a dead letter's subject, headers and reason."""

_WRONG_LAST_SEQUENCE = (10071, 10164)

HELD_HEADER = "Modelnet-Held"
"""On the Final of a task whose money may be held: the ledger, which is sent headers only, need not look at others."""

RETENTION_S = 48 * 3600
"""How long a Final is kept; other entries until the deadline and this much more."""


def headers(task: Task | None, tenant: str, task_id: str, expected: int) -> dict[str, str]:
    """Headers of a journal write: the fence, and how long the entry is kept."""
    ttl = RETENTION_S + (int(task.deadline_s) + 1 if task else 0)
    return {
        "Nats-Expected-Last-Subject-Sequence": str(expected),
        "Nats-Expected-Last-Subject-Sequence-Subject": subjects.journal_of(tenant, task_id),
        "Nats-TTL": f"{ttl}s",
    }


async def write(nc: Client, task: Task, entry: Message, expected: int, *, reply: str) -> None:
    """Publish an entry; the server's answer goes to `reply`, see `stored_sequence`."""
    kind = "final" if isinstance(entry, Final) else "status"
    subject = subjects.journal(task.tenant, task.id, kind)
    marks = headers(task, task.tenant, task.id, expected)
    if isinstance(entry, Final) and entry.held is not None:
        marks[HELD_HEADER] = str(entry.held)
    await nc.publish(subject, entry.encode(), reply=reply, headers=marks)


async def append(nc: Client, tenant: str, task_id: str, kind: str, entry: Message, expected: int) -> int | None:
    """Publish an entry and wait: its sequence, or None if the fence refused it."""
    reply = await nc.request(
        subjects.journal(tenant, task_id, kind),
        entry.encode(),
        timeout=5,
        headers=headers(None, tenant, task_id, expected),
    )
    return stored_sequence(reply)


def stored_sequence(ack: Msg) -> int | None:
    """The sequence in a stream's acknowledgement; None for a refusal or an error."""
    answer = _answer(ack)
    sequence = None if answer.get("error") else answer.get("seq")
    return sequence if isinstance(sequence, int) else None


def refused(ack: Msg) -> bool:
    """Whether the fence refused an entry: another stands where it should go. Any other error may pass by itself."""
    error = _answer(ack).get("error")
    return isinstance(error, dict) and error.get("err_code") in _WRONG_LAST_SEQUENCE


def _answer(ack: Msg) -> dict[str, Any]:
    try:
        answer = from_json(ack.data)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


async def read(nc: Client, tenant: str, task: str) -> tuple[tuple[int, JournalEntry | None], ...]:
    """A task's whole journal, in order, with sequences; None for an entry that this version cannot read."""
    found: list[tuple[int, JournalEntry | None]] = []
    async for stored in read_all(nc, "JOURNAL", subjects.journal_of(tenant, task)):
        try:
            found.append((stored.sequence, decode_entry(stored.body)))
        except ValidationError:
            found.append((stored.sequence, None))  # what it means is not for us, but the fence counts it
    return tuple(found)


async def ending(
    nc: Client, tenant: str, task: str, worker: str, attempt: int, auction: str | None
) -> Output | Failure | None:
    """The last event of an attempt, if the result stream holds it. Raises `ConnectionFailed`."""
    subject = subjects.result(tenant, task, worker, attempt)
    stored = await last_of(nc, "RESULTS", subject)
    if stored is None:
        return None
    found = _ending(stored, auction)
    if found is None:  # another attempt of this number may have spoken since
        async for stored in read_all(nc, "RESULTS", subject):
            found = found or _ending(stored, auction)
    return found


def _ending(stored: Stored, auction: str | None) -> Output | Failure | None:
    try:
        event = decode_event(stored.body)
    except ValidationError:
        return None
    return event if isinstance(event, Output | Failure) and event.auction == auction else None


async def bury(nc: Client, msg: Msg, reason: str) -> None:
    """Keep a message that cannot be handled in the dead-letter stream; returns once it is stored.

    Whole, unless base64 makes it larger than the server takes: then its beginning, and the reason says so. Raises
    `ConnectionFailed` if the stream does not take it.
    """
    letter = DeadLetter(subject=msg.subject, reason=reason, headers=dict(msg.headers or {}), body=msg.data)
    room = nc.max_payload - _LETTER_ROOM
    if len(msg.data) * 4 / 3 > room:
        cut = {"body": msg.data[: room // 2], "cut_from": len(msg.data)}
        letter = letter.model_copy(update=cut)
    try:
        ack = await nc.request(f"dlq.{msg.subject.split('.', 1)[0]}", letter.encode(), timeout=5)
    except nats.errors.Error as error:
        raise ConnectionFailed(f"the dead-letter stream does not answer: {error}") from None
    if not stored_sequence(ack):
        raise ConnectionFailed(f"the dead-letter stream refused a message: {ack.data[:200]!r}")


async def write_given_up(nc: Client, negotiator: str, msg: Msg, error: ErrorInfo) -> None:
    """The Final of a message in the task stream that cannot be handled, as far as its subject names a task."""
    _, _, _, tenant, task, capability = msg.subject.split(".", 5)
    try:
        final = Final(
            task=task,
            tenant=tenant,
            capability=capability,
            status="failed",
            error=error,
            negotiator=negotiator,
            timings=Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0),
        )
    except ValidationError:
        return  # not even the subject makes sense: there is nobody to tell
    entries = await read(nc, tenant, task)
    if not any(isinstance(entry, Final) for _, entry in entries):
        with contextlib.suppress(nats.errors.TimeoutError):
            await append(nc, tenant, task, "final", final, entries[-1][0] if entries else 0)


def first_error(error: ValidationError) -> str:
    """The first thing wrong with a message, in one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    return f"{where}: {found['msg']}" if where else str(found["msg"])
