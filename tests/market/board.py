"""Drives one task that is made of parts: its journal is kept as the server would, its parts end as a test says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from modelnet.market import Composite, Plan, State
from modelnet.market.commands import CancelPart, Command, Finished, Learn, StartPart, Write
from modelnet.messages import CancelAsked, ErrorInfo, Final, JournalEntry, Planned, Task, Timings, digest_of, part_id
from tests.market.table import NEGOTIATOR

__all__ = ["Board", "ended"]

Kind = Literal["race", "panel", "cascade"]


def ended(
    id: str,
    worker: str | None = "w",
    output: dict[str, Any] | None = None,
    *,
    status: Literal["completed", "failed", "expired", "cancelled"] = "completed",
    price: int = 10,
    **given: Any,
) -> Final:
    """How a part ended."""
    answered = status == "completed"
    zero = Timings(queued_ms=0, negotiation_ms=3, running_ms=0, total_ms=1)
    fields: dict[str, Any] = {
        "owner": f"owner-of-{worker}" if worker else None,
        "output": output if answered else None,
        "digest": digest_of(output) if answered and output is not None else None,
        "price": price if answered else None,
        "attempt": 1 if worker else None,
        "bids": 2,
        "error": None if answered else ErrorInfo(code=status, message=f"part {status}"),
        **given,
    }
    return Final(
        task=id, tenant="t", capability="a.b", status=status, worker=worker, negotiator="n9", timings=zero, **fields
    )


class Board:
    """One composite. `stored=False`: the test answers for the journal itself."""

    def __init__(
        self,
        kind: Kind,
        *workers: str,
        width: int | None = None,
        journal: Sequence[tuple[int, JournalEntry | None]] = (),
        absent: Iterable[str] = (),
        stored: bool = True,
        age_s: float = 0.0,
        negotiator: str = NEGOTIATOR,
        **fields: Any,
    ) -> None:
        self.now = 100.0
        self.journal = list(journal)
        self._stores = stored
        given = {"id": "k", "tenant": "t", "capability": "a.b", "input": {"x": 1}, "deadline_s": 60.0, "budget": 100}
        self.task = Task(**{**given, **fields})
        self.absent = set(absent)
        plan = Plan(kind, f"{kind}: a test", width or len(workers) or 3, workers)
        self.composite = Composite(
            self.task,
            plan,
            negotiator=negotiator,
            now=self.now,
            age_s=age_s,
            journal=journal,
            present=lambda worker: worker not in self.absent,
        )
        self.parts: dict[int, Task] = {}
        self.orders: dict[int, StartPart] = {}
        self.cancelled: list[str] = []
        self.learned: list[tuple[str, str, bool]] = []
        self.outstanding: Write | None = None
        self.finished: Final | None = None

    @property
    def state(self) -> State:
        return self.composite.state

    @property
    def finals(self) -> list[Final]:
        return [entry for _, entry in self.journal if isinstance(entry, Final)]

    @property
    def final(self) -> Final:
        """The one that stands."""
        (found,) = self.finals
        return found

    def take(self, commands: Sequence[Command]) -> Sequence[Command]:
        """Carry out commands; with a journal that stores at once, also what follows from that."""
        for command in commands:
            match command:
                case Write():
                    assert self.outstanding is None, "one entry at a time"
                    self.outstanding = command
                case StartPart(number, task):
                    assert number == len(self.parts) + 1
                    assert task.id == part_id(self.task.id, number)
                    assert (task.parent, task.tenant, task.client) == (self.task.id, self.task.tenant, None)
                    assert task.strategy.kind == "auction"
                    assert Task.decode(task.encode()) == task
                    self.parts[number], self.orders[number] = task, command
                case CancelPart(part):
                    self.cancelled.append(part)
                case Learn(outcome):
                    self.learned.append((outcome.worker, outcome.source, outcome.passed))
                case Finished(final):
                    self.finished = final
        if self._stores and self.outstanding is not None:
            return [*commands, *self.store()]
        return commands

    def append(self, entry: JournalEntry) -> int:
        """Somebody writes to the journal."""
        sequence = (self.journal[-1][0] if self.journal else 0) + 1
        self.journal.append((sequence, entry))
        return sequence

    def store(self, *, lost: bool = False) -> Sequence[Command]:
        """The journal stores what is outstanding, or refuses it; the answer may be lost, and then it is read back."""
        assert self.outstanding is not None
        write, self.outstanding = self.outstanding, None
        fits = write.expected == (self.journal[-1][0] if self.journal else 0)
        sequence = self.append(write.entry) if fits else 0
        if fits and not lost:
            return self.take(self.composite.on_stored(sequence, self.now))
        return self.take(self.composite.on_refused(tuple(self.journal), self.now))

    # ------------------------------------------------------------------ events

    def begin(self) -> Sequence[Command]:
        return self.take(self.composite.begin(self.now))

    def award(self, number: int, worker: str, owner: str | None = None) -> Sequence[Command]:
        return self.take(self.composite.on_part_awarded(number, worker, owner or f"owner-of-{worker}", self.now))

    def end(self, number: int, worker: str | None = "w", output: Any = None, **given: Any) -> Sequence[Command]:
        """A part ends; completed with the text `output`, unless that is a whole output or a status is given."""
        whole = output if isinstance(output, dict) else {"text": output}
        final = ended(part_id(self.task.id, number), worker, whole, **given)
        return self.take(self.composite.on_part_ended(number, final, self.now))

    def fail(self, number: int, worker: str | None = "w", **given: Any) -> Sequence[Command]:
        return self.end(number, worker, status=given.pop("status", "failed"), **given)

    def cancel(self) -> Sequence[Command]:
        return self.take(self.composite.on_cancel(self.append(CancelAsked(task=self.task.id)), self.now))

    def expire(self) -> Sequence[Command]:
        self.now += self.task.deadline_s
        return self.take(self.composite.on_timer("deadline", "", self.now))

    @property
    def plan(self) -> Planned:
        (found,) = [entry for _, entry in self.journal if isinstance(entry, Planned)]
        return found
