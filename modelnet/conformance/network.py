"""The network's side of a task, as the kit plays it towards a client: journal and events, as it pleases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.bus import journal, subjects
from modelnet.bus.replay import last_of

from .ears import Ear
from .report import Report
from .subject import Subject

__all__ = ["CAPABILITY", "TENANT", "Play", "Shown"]

CAPABILITY, TENANT = "conformance.say", "conformance"
NEGOTIATOR = "kit"
_TIMINGS = m.Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0)


@dataclass(slots=True)
class Play:
    """One task, told from the network's side."""

    bus: Client
    task: str
    attempt: int = 0
    worker: str = ""
    auction: str = ""
    sequence: int = 0
    """Of the journal's last entry."""
    texts: dict[int, str] = field(default_factory=dict)

    async def _enter(self, kind: str, entry: m.Message) -> None:
        """Append an entry; it is on its way to readers when this returns, so nothing said later overtakes it."""
        async with Ear(self.bus, subjects.accepted(TENANT, self.task, kind)) as ear:
            await self._append(kind, entry)
            sequence = str(self.sequence)
            await ear.first(5.0, lambda msg: (msg.headers or {}).get("Nats-Sequence") == sequence)

    async def _append(self, kind: str, entry: m.Message) -> None:
        stored = await journal.append(self.bus, TENANT, self.task, kind, entry, self.sequence)
        if stored is None:
            last = await last_of(self.bus, "JOURNAL", subjects.journal_of(TENANT, self.task))
            self.sequence = last.sequence if last is not None else 0
            stored = await journal.append(self.bus, TENANT, self.task, kind, entry, self.sequence)
        assert stored is not None
        self.sequence = stored

    async def award(self, worker: str, from_number: int = 0) -> None:
        """The next attempt is this worker's."""
        self.attempt, self.worker, self.auction = self.attempt + 1, worker, m.new_id()
        await self.award_as_said(from_number)

    async def award_as_said(self, from_number: int = 0) -> None:
        """The entry for the attempt that speaks already."""
        for number in [number for number in self.texts if number > from_number]:
            del self.texts[number]
        entry = m.Awarded(
            task=self.task,
            attempt=self.attempt,
            worker=self.worker,
            auction=self.auction,
            price=1,
            from_number=from_number,
            negotiator=NEGOTIATOR,
        )
        await self._enter("status", entry)

    async def wait(self) -> None:
        """An entry that moves the journal on and says little."""
        await self._enter("status", m.Waiting(task=self.task, reason="busy", negotiator=NEGOTIATOR))

    def _stamp(self, number: int, changes: dict[str, Any]) -> dict[str, Any]:
        stamp = {"task": self.task, "attempt": self.attempt, "worker": self.worker, "auction": self.auction}
        return stamp | {"number": number} | changes

    async def say(self, number: int, text: str | None = None, **changes: Any) -> None:
        """A delta of the attempt, or of another that the changes name."""
        text = f"{number} " if text is None else text
        if not changes:
            self.texts[number] = text
        event = m.Delta(**self._stamp(number, changes), text=text)
        await self.publish(event)

    async def publish(self, event: Any) -> None:
        """Any event, stored before this returns."""
        body = event if isinstance(event, bytes) else event.encode()
        worker, attempt = getattr(event, "worker", self.worker), getattr(event, "attempt", self.attempt)
        await self.bus.request(subjects.result(TENANT, self.task, worker, attempt), body, timeout=5)

    async def end(self, number: int, status: str = "completed") -> None:
        """The Output, if it is completed, and the Final."""
        output = {"text": "".join(self.texts[n] for n in sorted(self.texts))}
        good = status == "completed"
        if good:
            last = m.Output(**self._stamp(number, {}), output=output, digest=m.digest_of(output))
            await self.publish(last)
        final = m.Final(
            task=self.task,
            tenant=TENANT,
            capability=CAPABILITY,
            status=status,
            output=output if good else None,
            digest=m.digest_of(output) if good else None,
            worker=self.worker if good else None,
            price=1 if good else None,
            attempt=self.attempt if good else None,
            auction=self.auction if good else None,
            attempts=self.attempt,
            number=number + 1 if good else None,
            error=None if good else m.ErrorInfo(code=status),
            negotiator=NEGOTIATOR,
            timings=_TIMINGS,
        )
        await self._enter("final", final)


class Shown:
    """What the client under test shows of a task, as it shows it."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.events: list[dict[str, Any]] = []

    async def until(self, within_s: float, **fields: Any) -> bool:
        """Read on until an event has these fields; False if none comes in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                async for event in self._read(within_s):
                    if all(event.get(key) == value for key, value in fields.items()):
                        return True
        return False

    async def _read(self, within_s: float) -> AsyncIterator[dict[str, Any]]:
        async for event in self.subject.objects(within_s):
            self.events.append(event)
            yield event

    @property
    def numbered(self) -> list[tuple[int, int]]:
        """(attempt, number) of deltas, progress and outputs, in the order in which they were shown."""
        kinds = ("delta", "progress", "output", "error")
        return [(event["attempt"], event["number"]) for event in self.events if event.get("kind") in kinds]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Those of a kind."""
        return [event for event in self.events if event.get("kind") == kind]


async def taken(tasks: Ear, task: str, within_s: float, report: Report) -> m.Task | None:
    """The task, once the client has published it. C2."""
    msg = await tasks.first(within_s, lambda msg: msg.subject.split(".")[3:4] == [task])
    report.demand("C2", msg is not None, f"no task {task} on task.<class>.{TENANT}.{task}.<capability>")
    assert msg is not None
    try:
        found = m.Task.decode(msg.data)
    except ValidationError as error:
        report.demand("C2", False, f"what it publishes is no Task: {journal.first_error(error)}")
        return None
    right = subjects.task(found)
    report.expect("C2", msg.subject == right, f"the task was published on {msg.subject} instead of {right}")
    named = (msg.headers or {}).get("Nats-Msg-Id")
    report.expect("C2", named == f"{TENANT}/{task}", f"its Nats-Msg-Id is {named}")
    return found
