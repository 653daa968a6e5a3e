"""What a negotiator must find out to go on with an attempt that is not, or no longer, its own."""

from __future__ import annotations

import contextlib
from typing import Literal

import nats.errors
from nats.aio.client import Client
from pydantic import ValidationError

from modelnet.market.commands import Streamed
from modelnet.messages import AdoptAttempt, Awarded, Confirm, Delta, Resume, decode_award_reply, decode_event
from modelnet.reader import Reader

from . import journal, subjects
from .replay import read_all

__all__ = ["ask_worker", "read_streamed"]

MAX_RESUME_BYTES = 256 * 1024
"""Text of more than this is not continued: the award must carry it."""


async def ask_worker(
    nc: Client, worker: str, question: AdoptAttempt, *, timeout_s: float
) -> Literal["running", "unknown", "silent"]:
    """Whether a worker still runs an attempt; if so, it will tell its end to the asker."""
    try:
        reply = await nc.request(subjects.adopt(worker), question.encode(), timeout=timeout_s)
        answer = decode_award_reply(reply.data)
    except (nats.errors.Error, ValidationError):
        return "silent"
    return "running" if isinstance(answer, Confirm) else "unknown"


async def read_streamed(nc: Client, tenant: str, task: str) -> Streamed:
    """What a reader of the task has by now: up to which number, and the text that another attempt can continue.

    Raises `ConnectionFailed`.
    """
    reader, models = Reader(), dict[tuple[str, int], str | None]()
    for _, entry in await journal.read(nc, tenant, task):
        if isinstance(entry, Awarded):
            models[entry.worker, entry.attempt] = entry.model
            reader.entry(entry)
    deltas: list[Delta] = []
    async for stored in read_all(nc, "RESULTS", subjects.events_of(tenant, task)):
        with contextlib.suppress(ValidationError):
            deltas += [event for event in reader.event(decode_event(stored.body)) if isinstance(event, Delta)]
    text = "".join(delta.text for delta in deltas)
    if not text or len(text.encode()) > MAX_RESUME_BYTES or not all(delta.continuable for delta in deltas):
        return Streamed()
    vocabulary = {models.get((delta.worker, delta.attempt)) for delta in deltas}
    model = vocabulary.pop() if len(vocabulary) == 1 else None
    parts = [delta.tokens for delta in deltas]
    whole = model is not None and all(part is not None for part in parts)
    tokens = tuple(token for part in parts for token in part or ()) if whole else None
    return Streamed(reader.position, Resume(text=text, tokens=tokens, model=model if whole else None))
