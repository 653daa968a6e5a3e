"""What all tasks in a negotiator's hands have in common: a deadline, an owner who may cancel, a journal that fences
every decision, and one Final. How the answer is come by is the subclasses': `Negotiation` and `Composite`. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, auto
from typing import Literal

from modelnet.messages import Awarded, CancelAsked, Done, ErrorInfo, Final, JournalEntry, Planned, Task

from .commands import Abandon, Command, Finished, StartTimer, Timer
from .journal_writer import Entry, JournalWriter

__all__ = ["Journal", "State", "Status", "Undertaking"]

Journal = Sequence[tuple[int, JournalEntry | None]]
"""Entries with their sequences, in order; None stands for one that cannot be read."""

Status = Literal["completed", "failed", "expired", "cancelled"]

_CANCELLED = ErrorInfo(code="cancelled", message="cancelled")


class State(Enum):
    """Where the task stands with this negotiator."""

    AUCTIONING = auto()
    DEPOSITING = auto()
    AWARDING = auto()
    RUNNING = auto()
    RECALLING = auto()
    READING = auto()
    WAITING = auto()
    ASSEMBLING = auto()
    FINISHING = auto()
    DONE = auto()


class Undertaking(ABC):
    """One task. Every method returns the commands to carry out, in order."""

    def __init__(self, task: Task, *, negotiator: str, now: float, age_s: float) -> None:
        """`age_s`: how long ago the server stamped the task."""
        self.task = task
        self.state = State.AUCTIONING
        self._negotiator = negotiator
        self._submitted_at = now - age_s
        self._deadline = self._submitted_at + task.deadline_s
        self._final: Final | None = None
        self._cancel_asked = False
        self._writer = JournalWriter()

    # ------------------------------------------------------------------ what an undertaking is

    @property
    def running(self) -> tuple[str, int, float] | None:
        """Worker, attempt number and time of the Confirm, while a confirmed attempt runs."""
        return None

    @property
    def at_work(self) -> tuple[str, int, str | None] | None:
        """Worker, number and auction of the attempt that was given away, whether it was confirmed or not."""
        return None

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return 0

    @property
    def contract(self) -> str | None:
        """Digest of the contract that the attempt in hand must keep."""
        return None

    @property
    def failed(self) -> frozenset[str]:
        """Workers that must not try again."""
        return frozenset()

    def wake(self, now: float, caller: str | None = None) -> list[Command]:
        """Capacity may be there, that of the worker `caller` if it is named: try again, if the task waits for that."""
        return []

    def on_worker_lost(self, worker: str, now: float) -> list[Command]:
        """A worker's beats are missing."""
        return []

    def on_done(self, done: Done, violation: str | None, now: float) -> list[Command]:
        """An attempt has ended. `violation`: how its output breaks the contract, if it does."""
        return []

    @abstractmethod
    def _start(self, now: float, *, queue: bool) -> list[Command]:
        """Begin, or go on where the journal says that another negotiator has come to."""

    @abstractmethod
    def _stop_work(self) -> list[Command]:
        """Nobody needs to work on it any more."""

    @abstractmethod
    def _finish(self, status: Status, now: float, error: ErrorInfo | None) -> list[Command]:
        """Write the Final."""

    @abstractmethod
    def _waited_for(self) -> str:
        """What it waits for, in words, if for anything."""

    # ------------------------------------------------------------------ life

    @property
    def over(self) -> bool:
        """Whether its end is decided."""
        return self.state in (State.FINISHING, State.DONE)

    def begin(self, now: float, *, queue: bool = False) -> list[Command]:
        """Take the task in hand. `queue`: others wait for the same capability, so it waits behind them."""
        if self._final is not None:
            self.state = State.DONE
            return [*self._clear_up(self._final), Finished(self._final)]
        if self._cancel_asked:
            return self._cancel(_CANCELLED, now)
        if now >= self._deadline:
            return [*self._stop_work(), *self._expire(now)]
        return [StartTimer("deadline", "", self._deadline - now), *self._start(now, queue=queue)]

    def reject(self, error: ErrorInfo, now: float) -> list[Command]:
        """End a task that should never have been asked for: unknown capability, contract violation."""
        return self._finish("failed", now, error)

    def on_cancel(self, sequence: int, now: float) -> list[Command]:
        """The owner's cancel stands in the journal, at `sequence`."""
        if self.over:
            return []  # decided by the fence: this write or the read-back after it
        if self._writer.outstanding is None:
            self._writer.sequence = max(self._writer.sequence, sequence)
        return self._cancel(_CANCELLED, now)

    def on_client_gone(self, now: float) -> list[Command]:
        """The client is gone that wanted its task cancelled then."""
        if self.over:
            return []
        return self._cancel(ErrorInfo(code="client_gone", message="cancelled: its client is gone"), now)

    def on_timer(self, timer: Timer, key: str, now: float) -> list[Command]:
        """A timer that was started has run out."""
        if timer == "deadline" and not self.over:
            return [*self._stop_work(), *self._expire(now)]
        return []

    def _cancel(self, error: ErrorInfo, now: float) -> list[Command]:
        return [*self._stop_work(), *self._finish("cancelled", now, error)]

    def _expire(self, now: float) -> list[Command]:
        waited = self._waited_for()
        message = f"the deadline of {self.task.deadline_s:g} s passed{f' ({waited})' if waited else ''}"
        return self._finish("expired", now, ErrorInfo(code="expired", message=message))

    def _clear_up(self, final: Final) -> list[Command]:
        """The end stands already; what whoever wrote it may have died before it could stop."""
        return []

    # ------------------------------------------------------------------ the journal

    def on_stored(self, sequence: int, now: float) -> list[Command]:
        """The outstanding entry was stored."""
        entry = self._writer.stored(sequence)
        if isinstance(entry, Final):
            self.state = State.DONE
            return [Finished(entry)]
        return [*self._writer.next()]

    def on_refused(self, journal: Journal, now: float) -> list[Command]:
        """The outstanding entry was refused, or its acknowledgement lost; `journal` is what stands there now."""
        entry: Entry | None = self._writer.outstanding
        if entry is None:
            return []
        cancelled = False
        for sequence, found in journal:
            if sequence <= self._writer.sequence:
                continue
            if found is not None and found.encode() == entry.encode():
                return self.on_stored(sequence, now)
            self._writer.sequence = sequence
            if isinstance(found, Final):
                self._writer.outstanding, self.state, self._final = None, State.DONE, found
                return [*self._stop_work(), Finished(found)]
            if isinstance(found, Awarded | Planned):
                self._writer.outstanding, self.state = None, State.DONE
                return [*self._let_go(), Abandon()]
            cancelled |= isinstance(found, CancelAsked)
        self._writer.outstanding = None
        if cancelled:
            self._writer.keep(lambda _: False)
            return self._cancel(_CANCELLED, now)
        return [*self._writer.write(entry)]

    def _let_go(self) -> list[Command]:
        """Another negotiator has it: what this one has begun for it ends."""
        return self._stop_work()

    def _catch_up(self, journal: Journal) -> None:
        """Take over what another negotiator, or this one before, has decided."""
        for sequence, entry in journal:
            self._writer.sequence = sequence
            if isinstance(entry, CancelAsked):
                self._cancel_asked = True
            elif isinstance(entry, Final):
                self._final = entry
            elif entry is not None:
                self._take_over(entry)

    @abstractmethod
    def _take_over(self, entry: Entry) -> None:
        """One entry of another negotiator."""
