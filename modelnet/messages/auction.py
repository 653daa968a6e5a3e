"""The messages of an auction: BidRequest, Bid or Refusal, Award, Claim, Confirm or Decline, Done, CancelAttempt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from .base import Capability, Digest, Identifier, Message, Micro, Part
from .reference import Reference
from .result import ErrorInfo, Failure, Output, Usage
from .task import Selector

__all__ = [
    "HANDED_ON",
    "AdoptAttempt",
    "Award",
    "AwardReply",
    "Bid",
    "BidReply",
    "BidRequest",
    "CancelAttempt",
    "Claim",
    "Confirm",
    "Decline",
    "Done",
    "Features",
    "NegotiatorBeat",
    "Refusal",
    "Resume",
    "decode_award_reply",
    "decode_bid_reply",
]


HANDED_ON = "worker_leaving"
"""Code of an attempt's error that is nobody's fault: its worker stops, and another should go on."""


class Features(Part):
    """What bidders learn of an input: enough to price it, not what it says."""

    input_bytes: int = Field(ge=0, description="Size of the input as JSON.")
    shape: Any = Field(
        default=None,
        description=(
            "The input with every string replaced by its length in characters and every number by null, except "
            "properties that the contract marks x-public. Of one that would be larger than 2 KiB the top level alone, "
            "with null for what has parts; null if that is too large as well."
        ),
    )
    prompt_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Size of the properties that the contract marks x-prefix; null where it has none.",
    )
    prefix: bytes = Field(
        default=b"",
        description="Up to 64 hashes of 8 bytes, keyed by tenant: the n-th is of the prompt's first bytes, up to where "
        "block n ends. Blocks are of 128 bytes, and from every eighth on twice as long.",
    )


class BidRequest(Message):
    """The call for proposals, on `cap.<capability>`. Bids go to the reply subject plus the bidder's id."""

    auction: Identifier
    negotiator: Identifier
    capability: Capability
    features: Features
    remaining_ms: float = Field(gt=0, description="Until the task's deadline.")
    window_ms: float = Field(gt=0, description="How long bids are taken.")
    require: Selector = Field(default_factory=Selector)
    exclude: Selector = Field(default_factory=Selector)
    contract: Digest | None = None


class Bid(Message):
    """A binding proposal: this price, and an honest guess of the time."""

    kind: Literal["bid"] = "bid"
    auction: Identifier
    worker: Identifier
    price: Micro = Field(description="Asked price in micro-credits.")
    p50_ms: float = Field(gt=0, description="Median of the expected time to complete, in ms.")
    p90_ms: float = Field(gt=0, description="90th percentile of it, in ms.")
    wait_ms: float = Field(default=0.0, ge=0, description="What of both is the expected wait for a slot.")
    first_ms: float | None = Field(
        default=None, ge=0, description="Median of the expected time to the first text, in ms, that wait included."
    )
    first_p90_ms: float | None = Field(default=None, ge=0, description="90th percentile of it, in ms.")
    free: int = Field(default=1, ge=1, description="Awards that it could take when it bid, this one included.")
    deposit: Micro = Field(
        default=0,
        description="Micro-credits that the worker's owner puts up, to be paid by what the answer turns out to be "
        "worth; for workers without a history. 0: paid as others are.",
    )


class Refusal(Message):
    """No proposal, and why: so that the auction need not wait for one."""

    kind: Literal["refusal"] = "refusal"
    auction: Identifier
    worker: Identifier
    reason: Literal["busy", "draining", "too_long", "unsupported", "cannot_price"]


class Resume(Part):
    """What earlier attempts streamed and readers keep: the attempt goes on behind it."""

    text: str = Field(description="All text up to from_number.")
    tokens: tuple[int, ...] | None = Field(default=None, description="Its token ids, if every delta told them.")
    model: str | None = Field(default=None, description="The model whose vocabulary the ids are of.")


class Award(Message):
    """The task itself, to the winner alone, on `worker.<worker>.award`."""

    auction: Identifier
    negotiator: Identifier
    task: Identifier
    tenant: Identifier
    attempt: int = Field(ge=1, description="Fencing epoch: 1, 2, …")
    capability: Capability
    input: dict[str, Any] = Field(default_factory=dict, description="Empty if it is stored.")
    input_ref: Reference | None = Field(default=None, description="Where the input is stored, if it is large.")
    price: Micro = Field(description="What will be paid for an accepted output; with a deposit, the most that may be.")
    deposit: Micro = Field(
        default=0, description="Held of its owner's: the answer is paid by what it turns out to be worth."
    )
    from_number: int = Field(default=0, ge=0, description="The attempt's first event is numbered from_number + 1.")
    resume: Resume | None = Field(default=None, description="What to continue; null to begin at the beginning.")
    remaining_ms: float = Field(gt=0, description="Until the task's deadline.")


class Claim(Message):
    """A negotiator tells the others, if it has heard of any, that it has just awarded, on
    `claim.<negotiator>.<worker>`: bids that were made before the worker had the award do not know of it."""

    tenant: Identifier
    task: Identifier
    attempt: int = Field(ge=1)
    p90_ms: float = Field(gt=0, description="For so long it may occupy a slot: the 90th percentile that was bid.")


class NegotiatorBeat(Message):
    """A negotiator is there, on `negotiator.<negotiator>`: once a beat, and as it starts. One that hears no other tells
    nobody of its awards."""

    negotiator: Identifier
    leaving: bool = Field(default=False, description="Its last beat: it stops now.")


class Confirm(Message):
    """The winner has it in hand: it begins now, or once a slot is free."""

    kind: Literal["confirm"] = "confirm"
    worker: Identifier


class Decline(Message):
    """The winner cannot: the runner-up is next."""

    kind: Literal["decline"] = "decline"
    worker: Identifier
    reason: Literal["busy", "draining", "too_long", "unsupported", "duplicate", "unknown"]


class AdoptAttempt(Message):
    """Does the worker have this attempt in hand? On `worker.<worker>.adopt`, from a negotiator that takes over
    another's task, or that has heard neither Confirm nor Decline of its award.

    Confirm: it does, and its Done goes to the asker. Decline: it does not know of it, or it has ended.
    """

    tenant: Identifier
    task: Identifier
    attempt: int = Field(ge=1)
    auction: Identifier | None = None
    negotiator: Identifier


class CancelAttempt(Message):
    """Stop this attempt; nothing it still says counts. On `worker.<worker>.cancel`."""

    tenant: Identifier
    task: Identifier
    attempt: int = Field(ge=1)
    auction: Identifier | None = Field(default=None, description="Only if this auction awarded it; null for any.")


class Done(Message):
    """An attempt has ended. Carries a copy of its last event, so that the Final needs no further read.

    The copy is what is accepted; the event in the result stream is what survives if the negotiator does not.
    """

    task: Identifier
    tenant: Identifier
    worker: Identifier
    attempt: int = Field(ge=1)
    auction: Identifier | None = None
    number: int = Field(ge=1, description="Number of the attempt's last event.")
    output: dict[str, Any] | None = None
    output_ref: Reference | None = Field(default=None, description="Where the output is stored, if it is large.")
    digest: Digest | None = Field(default=None, description="Digest of the output.")
    error: ErrorInfo | None = None
    retryable: bool = Field(default=False, description="Whether another worker may try after this error.")
    usage: Usage | None = None

    @classmethod
    def of(cls, last: Output | Failure, tenant: str) -> Done:
        """The notice of an attempt whose last event is `last`."""
        good, bad = (last, None) if isinstance(last, Output) else (None, last)
        return cls.model_construct(
            task=last.task,
            tenant=tenant,
            worker=last.worker,
            attempt=last.attempt,
            auction=last.auction,
            number=last.number,
            output=good.output if good and good.output_ref is None else None,
            output_ref=good.output_ref if good else None,
            digest=good.digest if good else None,
            error=bad.error if bad else None,
            retryable=bad.retryable if bad else False,
            usage=last.usage,
        )


BidReply = Annotated[Bid | Refusal, Field(discriminator="kind")]
AwardReply = Annotated[Confirm | Decline, Field(discriminator="kind")]

_BID_REPLY: TypeAdapter[Bid | Refusal] = TypeAdapter(BidReply)
_AWARD_REPLY: TypeAdapter[Confirm | Decline] = TypeAdapter(AwardReply)


def decode_bid_reply(body: bytes) -> Bid | Refusal:
    """The Bid or Refusal in `body`; raises `pydantic.ValidationError`."""
    return _BID_REPLY.validate_json(body)


def decode_award_reply(body: bytes) -> Confirm | Decline:
    """The Confirm or Decline in `body`; raises `pydantic.ValidationError`."""
    return _AWARD_REPLY.validate_json(body)
