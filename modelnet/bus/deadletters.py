"""The dead-letter stream: what could not be handled, to be looked at, tried again, or dropped by a person."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from pydantic import ValidationError

from modelnet.errors import BusFull, ConnectionFailed, ModelnetError
from modelnet.messages import DeadLetter, Final, Task, new_id

from . import journal, subjects
from .replay import Stored, read_all

__all__ = ["Buried", "CannotRetry", "DeadLetters", "UnknownLetter"]


class UnknownLetter(ModelnetError):
    """Raised for a number that the stream does not hold."""

    code = "unknown_letter"


class CannotRetry(ModelnetError):
    """Raised for a letter that can only be dropped: no task, or not all of one."""

    code = "cannot_retry"


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter where it lies."""

    number: int
    """Its sequence in the stream."""
    time: float
    """When it was buried, seconds since the epoch."""
    letter: DeadLetter

    @property
    def size(self) -> int:
        """Bytes of the message as it came."""
        return self.letter.cut_from or len(self.letter.body)


class DeadLetters:
    """The stream DLQ."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def all(self, *, since: float | None = None) -> AsyncIterator[Buried]:
        """Every letter, oldest first, or those since a time. Raises `ConnectionFailed`."""
        async for stored in read_all(self._nc, "DLQ", "dlq.>", since=since):
            yield _buried(stored)

    async def get(self, number: int) -> Buried:
        """One letter, whole. Raises `UnknownLetter`, `ConnectionFailed`."""
        async for stored in read_all(self._nc, "DLQ", "dlq.>", after=number - 1, most=1):
            if stored.sequence == number:
                return _buried(stored)
        raise UnknownLetter(f"there is no dead letter {number}")

    async def drop(self, number: int) -> None:
        """Delete one. Raises `UnknownLetter`, `ConnectionFailed`."""
        answer = await self._ask("$JS.API.STREAM.MSG.DELETE.DLQ", {"seq": number})
        if answer.get("error"):
            raise UnknownLetter(f"there is no dead letter {number}")

    async def retry(self, buried: Buried) -> Task:
        """Publish a task again; once the stream has it, its letter is gone. Returns the task as published.

        A task that has its Final gets an id of its own: under the old one that Final would be its answer.
        Raises `CannotRetry`, `BusFull`, `ConnectionFailed`.
        """
        letter = buried.letter
        if not letter.subject.startswith("task."):
            raise CannotRetry(f"letter {buried.number} is no task: it came on {letter.subject}")
        if letter.cut_from is not None:
            raise CannotRetry(f"of letter {buried.number} only the beginning was kept: it had {letter.cut_from} bytes")
        try:
            task = Task.decode(letter.body)
        except ValidationError as error:
            raise CannotRetry(f"letter {buried.number} is no task: {journal.first_error(error)}") from None
        entries = await journal.read(self._nc, task.tenant, task.id)
        if any(isinstance(entry, Final) for _, entry in entries):
            task = task.model_copy(update={"id": new_id()})
        # A message id of its own: the first one's may still be in the stream's window for duplicates.
        headers = {"Nats-Msg-Id": f"{task.tenant}/{task.id}/{buried.number}"}
        ack = await self._ask(subjects.task(task), task.encode(), headers)
        if refused := ack.get("error"):
            raise BusFull(f"the task stream refused the task: {refused.get('description')}")
        await self.drop(buried.number)
        return task

    async def _ask(
        self, subject: str, body: bytes | dict[str, int], headers: dict[str, str] | None = None
    ) -> dict[str, dict[str, str]]:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            reply = await self._nc.request(subject, payload, timeout=5, headers=headers)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            raise ConnectionFailed("the streams do not answer: is this a modelnet network?") from None
        answer: dict[str, dict[str, str]] = json.loads(reply.data)
        return answer


def _buried(stored: Stored) -> Buried:
    try:
        letter = DeadLetter.decode(stored.body)
    except ValidationError:  # garbage on the dead-letter subject itself
        letter = DeadLetter(subject=stored.subject, reason="not a dead letter", body=stored.body)
    return Buried(stored.sequence, stored.time, letter)
