"""The task's journal: what its negotiator decided, in order, each entry by compare-and-set on the one before."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .base import Digest, Identifier, Message, Micro
from .result import Final, Settlement

__all__ = ["Awarded", "CancelAsked", "JournalEntry", "Planned", "Waiting", "decode_entry", "part_id"]

_OPENING = 52
"""Characters of a task's id that its parts' ids begin with."""


class Awarded(Message):
    """Attempt n was given to a worker. Only events of the worker, attempt and auction that stand here count.

    Says all that a negotiator needs to know that takes the task over.
    """

    kind: Literal["awarded"] = "awarded"
    task: Identifier
    attempt: int = Field(ge=1)
    worker: Identifier
    owner: Identifier = Field(default="local", description="Who owns the worker, and is paid.")
    auction: Identifier | None = Field(default=None, description="The auction that the worker won.")
    price: Micro
    median_ms: float | None = Field(
        default=None,
        gt=0,
        description="Median of its time, as claimed, or as corrected by its history if that is longer: a cancelled "
        "attempt is paid by the share of it that it ran. Null: not known.",
    )
    after_ms: float | None = Field(
        default=None, ge=0, description="How long after the server's timestamp of the task it was awarded."
    )
    deposit: Micro = Field(
        default=0, description="Held of the owner's: price is the most, and what is paid follows from the outcome."
    )
    second_score: float | None = Field(
        default=None, description="With a deposit: the best score behind the bid, S0 at least."
    )
    settlements: tuple[Settlement, ...] = Field(
        default=(), description="What became of earlier attempts with a deposit."
    )
    held: Micro | None = Field(
        default=None,
        description="Held for the task in the ledger, in micro-credits; null if its tenant is not charged.",
    )
    from_number: int = Field(default=0, ge=0, description="Events above this number of older attempts are void.")
    contract: Digest | None = Field(default=None, description="Digest of the contract that the output must keep.")
    continues: bool = Field(default=False, description="Whether another attempt could go on from what it streams.")
    model: str | None = Field(default=None, description="The model that answers.")
    failed: tuple[Identifier, ...] = Field(default=(), description="Workers that failed at this task before.")
    lost: tuple[Identifier, ...] = Field(
        default=(), description="Workers that vanished while they held this task, one for each time."
    )
    negotiator: Identifier


class Planned(Message):
    """The task is made of parts, tasks of their own. Says all that a negotiator needs to know that takes it over."""

    kind: Literal["planned"] = "planned"
    task: Identifier
    strategy: Literal["race", "panel", "cascade"]
    width: int = Field(ge=1, le=9, description="How many workers may answer.")
    workers: tuple[Identifier, ...] = Field(
        default=(), max_length=9, description="A cascade's, in the order in which they are asked."
    )
    why: str = Field(max_length=512, description="Why this strategy, for people.")
    negotiator: Identifier


def part_id(task: str, number: int) -> str:
    """The id of a task's part: the same for whoever publishes it."""
    if len(task) > _OPENING:
        task = hashlib.blake2b(task.encode(), digest_size=_OPENING // 2).hexdigest()
    return f"{task}-part{number}"


class Waiting(Message):
    """The task cannot be given to a worker now, and why."""

    kind: Literal["waiting"] = "waiting"
    task: Identifier
    reason: Literal["no_worker", "busy", "no_bids", "poor_bids", "ledger_away"]
    negotiator: Identifier


class CancelAsked(Message):
    """The task's owner wants it cancelled. Whether that came before completion is decided by the journal's order."""

    kind: Literal["cancel"] = "cancel"
    task: Identifier


JournalEntry = Annotated[Awarded | Planned | Waiting | CancelAsked | Final, Field(discriminator="kind")]
_ENTRY: TypeAdapter[Awarded | Planned | Waiting | CancelAsked | Final] = TypeAdapter(JournalEntry)


def decode_entry(body: bytes) -> Awarded | Planned | Waiting | CancelAsked | Final:
    """The entry in `body`; raises `pydantic.ValidationError`."""
    return _ENTRY.validate_json(body)
