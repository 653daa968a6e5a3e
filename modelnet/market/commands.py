"""What a negotiation tells its shell to do. The shell carries; it decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelnet.messages import (
    Award,
    Awarded,
    BidRequest,
    Claim,
    Final,
    Planned,
    Reference,
    Resume,
    Task,
    Transcript,
    Waiting,
)

from .records import Outcome

__all__ = [
    "Abandon",
    "AskForBids",
    "Bury",
    "CancelPart",
    "CancelWork",
    "Command",
    "Finished",
    "Hold",
    "HoldDeposit",
    "HoldFunds",
    "Inquire",
    "Learn",
    "ReadStream",
    "Recall",
    "Record",
    "SendAward",
    "StartPart",
    "StartTimer",
    "Streamed",
    "TellClaim",
    "Timer",
    "WaitingReason",
    "Write",
]

WaitingReason = Literal["no_worker", "busy", "no_bids", "poor_bids", "ledger_away"]
Timer = Literal["window", "award", "notice", "deadline", "retry", "funds"]


@dataclass(frozen=True, slots=True)
class AskForBids:
    """Publish the request to the capability's subject."""

    request: BidRequest
    to: tuple[str, ...] = ()
    """If there are any: to these workers' own subjects instead."""


@dataclass(frozen=True, slots=True)
class HoldFunds:
    """Set the tenant's money aside, until the deadline at least; then `on_held`, or `on_ledger_away`."""

    amount: int
    """In micro-credits."""
    deadline_s: float
    """From now."""


@dataclass(frozen=True, slots=True)
class HoldDeposit:
    """Set what a winner's owner puts up aside, with the tenant's money; then `on_deposit`, also if nothing answers."""

    amount: int
    """In micro-credits."""
    auction: str
    worker: str
    owner: str


@dataclass(frozen=True, slots=True)
class Learn:
    """What was verified of a worker: keep it in the track records."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Come back with `on_timer(timer, key)` after `delay_s`. `key` tells an outdated timer from a current one."""

    timer: Timer
    key: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class Write:
    """Append an entry to the journal if its last sequence is `expected`; then `on_stored` or `on_refused`."""

    entry: Awarded | Planned | Waiting | Final
    expected: int


@dataclass(frozen=True, slots=True)
class SendAward:
    """Send the award to the worker; then `on_award_reply`."""

    worker: str
    award: Award


@dataclass(frozen=True, slots=True)
class Inquire:
    """Ask a worker that does not answer its award whether it has it; then `on_award_reply`."""

    worker: str
    attempt: int
    auction: str | None


@dataclass(frozen=True, slots=True)
class TellClaim:
    """Tell the other negotiators of an award."""

    worker: str
    claim: Claim


@dataclass(frozen=True, slots=True)
class CancelWork:
    """Tell a worker to stop an attempt."""

    worker: str
    attempt: int
    auction: str | None


@dataclass(frozen=True, slots=True)
class Recall:
    """Nobody knows what became of an attempt: `on_done` if its last event is stored; else ask the worker, then
    `on_recalled`."""

    worker: str
    attempt: int
    auction: str | None


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a task's readers have of it, as the result stream tells."""

    number: int = 0
    """Of the last event behind which there is no gap."""
    resume: Resume | None = None
    """Its text, if an attempt can go on behind it."""


@dataclass(frozen=True, slots=True)
class ReadStream:
    """Read what the task's attempts have streamed; then `on_streamed`."""


@dataclass(frozen=True, slots=True)
class Bury:
    """Keep the task for a person to look at; what follows is carried out once it is kept."""

    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """Keep an auction's transcript."""

    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Hold:
    """The task waits: call `wake` when capacity may be there, or give it back to the stream."""

    reason: WaitingReason

    @property
    def aside(self) -> bool:
        """Whether it goes on by a timer of its own: it stands in nobody's way to a free slot."""
        return self.reason in ("poor_bids", "ledger_away")


@dataclass(frozen=True, slots=True)
class StartPart:
    """Publish a task that is a part of this one, and follow it: `on_part_awarded` whenever it is, `on_part_ended` when
    it has; `on_part_refused` if it can never be published."""

    number: int
    task: Task
    stored: Mapping[str, Reference] = field(default_factory=dict)
    """Values of its input that are to be fetched."""
    perhaps_known: bool = False
    """Whether another negotiator may have published it."""


@dataclass(frozen=True, slots=True)
class CancelPart:
    """Nobody needs a part any more."""

    task: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The Final stands in the journal: acknowledge the task and forget it."""

    final: Final


@dataclass(frozen=True, slots=True)
class Abandon:
    """Another negotiator has taken the task over: forget it without acknowledging."""


Command = (
    AskForBids
    | HoldFunds
    | HoldDeposit
    | StartTimer
    | Write
    | SendAward
    | Inquire
    | TellClaim
    | CancelWork
    | Recall
    | ReadStream
    | Bury
    | Record
    | Learn
    | Hold
    | StartPart
    | CancelPart
    | Finished
    | Abandon
)
