"""What was published and must be acknowledged: journal entries, awards, transcripts. Each goes out with a token of its
own as the last part of its reply subject. Workers see those of their awards, and can tell no other's from it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from nats.aio.client import Client

from modelnet.bus import journal, subjects
from modelnet.messages import AdoptAttempt, Award, JournalEntry, Transcript

from .hand import Held

__all__ = ["Receipts"]

JOURNAL_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Record:
    """A transcript on its way."""

    subject: str
    body: bytes
    sent_at: float


class Receipts:
    """Publishes, and remembers what is outstanding."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._inbox, self._award_inbox = nc.new_inbox(), nc.new_inbox()
        self._token = 0
        self._writes: dict[str, tuple[Held, float]] = {}
        self._awards: dict[str, tuple[Held, int]] = {}
        self._records: dict[str, _Record] = {}

    @property
    def subject(self) -> str:
        """Where acknowledgements arrive: `{inbox}.{kind}.{token}`, kinds j(ournal), t(ranscript)."""
        return f"{self._inbox}.*.*"

    @property
    def award_subject(self) -> str:
        """Where answers to awards arrive: `{inbox}.{token}`."""
        return f"{self._award_inbox}.*"

    def _new_token(self) -> str:
        self._token += 1
        return str(self._token)

    async def write(self, held: Held, entry: JournalEntry, expected: int, now: float) -> None:
        """Write to the task's journal, behind the entry `expected`."""
        token = self._new_token()
        self._writes[token] = (held, now)
        await journal.write(self._nc, held.task, entry, expected, reply=f"{self._inbox}.j.{token}")

    def written(self, token: str) -> Held | None:
        """The task whose write is acknowledged, or refused; None if nobody waits for that."""
        found = self._writes.pop(token, None)
        return found[0] if found is not None else None

    def await_again(self, held: Held, now: float) -> None:
        """Nothing is known of a write: `overdue` names it once more."""
        self._writes[self._new_token()] = (held, now)

    def overdue(self, now: float) -> list[Held]:
        """Tasks whose writes were never acknowledged. They are forgotten here: what stands in the journal counts."""
        late = [token for token, (_, since) in self._writes.items() if now - since > JOURNAL_TIMEOUT_S]
        return [self._writes.pop(token)[0] for token in late]

    async def award(self, held: Held, worker: str, award: Award) -> None:
        """Send an award. Of what a task's workers were asked only the last one's answer counts."""
        await self._ask(held, subjects.award(worker), award)

    async def inquire(self, held: Held, worker: str, question: AdoptAttempt) -> None:
        """Ask about an award that was not answered."""
        await self._ask(held, subjects.adopt(worker), question)

    async def _ask(self, held: Held, subject: str, question: Award | AdoptAttempt) -> None:
        self.drop_award(held)
        held.award = token = secrets.token_hex(8)
        self._awards[token] = (held, question.attempt)
        await self._nc.publish(subject, question.encode(), reply=f"{self._award_inbox}.{token}")

    def answered(self, token: str) -> tuple[Held, int] | None:
        """Task and attempt whose award was answered."""
        return self._awards.pop(token, None)

    def awaited(self, held: Held) -> str | None:
        """Where the answer to the task's award arrives, if it has not."""
        return f"{self._award_inbox}.{held.award}" if held.award in self._awards else None

    def drop_award(self, held: Held) -> None:
        """Nobody waits for the answer to its award any more."""
        self._awards.pop(held.award, None)

    async def record(self, held: Held, transcript: Transcript, now: float) -> None:
        """Publish a transcript, again and again until it is stored."""
        subject = subjects.audit(held.task.tenant, held.task.id)
        record = self._records[transcript.auction] = _Record(subject, transcript.encode(), now)
        await self._send_record(transcript.auction, record)

    def recorded(self, token: str) -> None:
        """A transcript is stored."""
        self._records.pop(token, None)

    async def repeat(self, now: float) -> None:
        """Send what was not acknowledged in time again."""
        for token, record in list(self._records.items()):
            if now - record.sent_at > JOURNAL_TIMEOUT_S:
                record.sent_at = now
                await self._send_record(token, record)

    async def _send_record(self, token: str, record: _Record) -> None:
        reply, headers = f"{self._inbox}.t.{token}", {"Nats-Msg-Id": token}
        await self._nc.publish(record.subject, record.body, reply=reply, headers=headers)
