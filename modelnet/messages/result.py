"""Result events: what a reader of a task's stream sees while a worker answers, and the Final that ends it.

Numbers run through the whole task. Attempt n starts after `from_number`; what older attempts said above it is void.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from .base import Capability, Digest, Identifier, Message, Micro, Money, Part
from .reference import Reference

__all__ = [
    "Delta",
    "ErrorInfo",
    "Failure",
    "Final",
    "Output",
    "Progress",
    "Reset",
    "ResultEvent",
    "Settlement",
    "Timings",
    "TokenAlternative",
    "TokenLogprob",
    "ToolCallPart",
    "Usage",
    "decode_event",
]


class ErrorInfo(Part):
    """What went wrong: a stable code for programs, a line for people."""

    code: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    message: str = Field(default="", max_length=4096)


class Usage(Part):
    """What an attempt consumed."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    run_ms: float = Field(default=0.0, ge=0, description="From award to last event, on the worker's clock.")


class _Numbered(Message):
    task: Identifier
    attempt: int = Field(ge=1)
    worker: Identifier
    auction: Identifier | None = Field(
        default=None, description="The auction that awarded it: two negotiators may count the same attempt."
    )
    number: int = Field(ge=1, description="Position in the task's stream, from 1, without gaps.")


class TokenAlternative(Part):
    """A token that could have been drawn."""

    token: str = Field(description="Its text; a byte that is no whole character is U+FFFD.")
    logprob: float = Field(le=0, description="Natural logarithm of its probability.")
    bytes: tuple[int, ...] | None = Field(default=None, description="Its UTF-8 bytes, of one that is no whole text.")


class TokenLogprob(TokenAlternative):
    """The token that was drawn."""

    top: tuple[TokenAlternative, ...] = Field(default=(), description="The likeliest in its place, likeliest first.")


class ToolCallPart(Part):
    """A call of a function, or its beginning, or more of it: parts of one position are joined."""

    position: int = Field(ge=0, description="Which of the answer's calls it is.")
    id: str | None = Field(default=None, description="The call's id, with its first part.")
    name: str | None = Field(default=None, description="The function, with the call's first part.")
    arguments: str = Field(default="", description="To be appended: all parts together are a JSON object as text.")


class Delta(_Numbered):
    """Text to be appended to what came before."""

    kind: Literal["delta"] = "delta"
    text: str
    tokens: tuple[int, ...] | None = Field(
        default=None, description="Ids of the tokens of this text, in the vocabulary of the worker's model, if known."
    )
    index: int = Field(default=0, ge=0, description="Which answer it belongs to, where several were wanted.")
    logprobs: tuple[TokenLogprob, ...] | None = Field(
        default=None, description="Of the tokens of this text, if they were wanted."
    )
    tool_calls: tuple[ToolCallPart, ...] = Field(default=(), description="Calls of functions, beside the text.")
    restarts: bool = Field(
        default=False, description="Whether a later attempt begins anew: nobody can go on behind this text alone."
    )

    @property
    def continuable(self) -> bool:
        """Whether another attempt can go on behind its text."""
        return not (self.restarts or self.index or self.logprobs or self.tool_calls)


class Progress(_Numbered):
    """How far the work is."""

    kind: Literal["progress"] = "progress"
    fraction: float | None = Field(default=None, ge=0, le=1)
    note: str | None = None


class Output(_Numbered):
    """The whole answer: the last event of an attempt that succeeded."""

    kind: Literal["output"] = "output"
    output: dict[str, Any] = Field(default_factory=dict, description="Empty if it is stored.")
    output_ref: Reference | None = Field(default=None, description="Where the output is stored, if it is large.")
    digest: Digest
    usage: Usage = Field(default_factory=Usage)


class Failure(_Numbered):
    """The last event of an attempt that did not succeed."""

    kind: Literal["error"] = "error"
    error: ErrorInfo
    retryable: bool = Field(default=False, description="Whether another worker may try after this error.")
    usage: Usage = Field(default_factory=Usage)


class Reset(_Numbered):
    """Everything above `to` is void: a new attempt answers from there. Made by the reader's side, never published."""

    kind: Literal["reset"] = "reset"
    to: int = Field(ge=0)


class Timings(Part):
    """Where a task's time went, in ms."""

    queued_ms: float = Field(ge=0, description="From the server's timestamp to the first request for bids.")
    negotiation_ms: float = Field(ge=0, description="Time in auctions and awards, up to the last Confirm.")
    running_ms: float = Field(
        ge=0,
        description="From the last attempt's Confirm, and its expected wait for a slot, to the end; from its award, if "
        "another negotiator gave it away.",
    )
    total_ms: float = Field(ge=0, description="From the server's timestamp to the Final.")


class Settlement(Part):
    """What an attempt with a deposit is paid by what became of it.

    max(-deposit, min(most, floor(value x passed - value_of_time x time - second_score))), with the task's value and
    value of time.
    """

    attempt: int = Field(ge=1)
    auction: Identifier
    worker: Identifier
    owner: Identifier
    deposit: Micro = Field(description="Held of its owner's.")
    most: Micro = Field(description="The most that it could be paid.")
    second_score: float = Field(description="The best score behind its bid, S0 at least.")
    passed: bool = Field(description="Whether its output was accepted.")
    time_ms: float = Field(ge=0, description="From its award to its end, or to the deadline.")
    price: Money = Field(description="Below 0: what its owner pays the tenant, out of the deposit.")


class Final(Message):
    """The end of a task: exactly one for every task accepted, decided by the journal's compare-and-set."""

    kind: Literal["final"] = "final"
    task: Identifier
    tenant: Identifier
    capability: Capability
    status: Literal["completed", "failed", "expired", "cancelled"]
    output: dict[str, Any] | None = None
    output_ref: Reference | None = Field(default=None, description="Where the output is stored, if it is large.")
    digest: Digest | None = Field(default=None, description="Digest of the output.")
    worker: Identifier | None = None
    owner: Identifier | None = Field(default=None, description="Who owns the worker: to whom the price goes.")
    price: Money | None = Field(
        default=None,
        description="What the worker's owner is paid, in micro-credits: for `completed` the price of the accepted "
        "output; for `cancelled` the part of the price that the confirmed attempt in hand had earned, "
        "floor(price x min(1, running_ms / median_ms)), or all of it if its output was there; else null. Below 0 if "
        "the answer was settled by its worth, and worth less than what else there was: then the owner pays the tenant.",
    )
    settlements: tuple[Settlement, ...] = Field(
        default=(), description="Attempts with a deposit, by what became of them; also those that failed."
    )
    held: Micro | None = Field(
        default=None,
        description="What may be held for it in the ledger, to pay the price from; null if its tenant is not charged.",
    )
    attempt: int | None = Field(default=None, ge=1, description="The accepted attempt, or the last one.")
    auction: Identifier | None = Field(default=None, description="The auction that awarded that attempt.")
    attempts: int = Field(default=0, ge=0, description="How many were awarded.")
    number: int | None = Field(
        default=None, ge=1, description="One above the accepted attempt's last event; null where none was accepted."
    )
    bids: int = Field(default=0, ge=0, description="Bids taken, over all auctions.")
    parts: tuple[Identifier, ...] = Field(
        default=(), description="Tasks that it was made of; each is paid for by itself, `price` is their sum so far."
    )
    usage: Usage | None = None
    error: ErrorInfo | None = None
    negotiator: Identifier
    timings: Timings


ResultEvent = Annotated[Delta | Progress | Output | Failure, Field(discriminator="kind")]
_EVENT: TypeAdapter[Delta | Progress | Output | Failure] = TypeAdapter(ResultEvent)


def decode_event(body: bytes) -> Delta | Progress | Output | Failure:
    """The event in `body`; raises `pydantic.ValidationError`."""
    return _EVENT.validate_json(body)
