"""Transcript: everything an auction's outcome followed from, so that anyone can recompute winner and price."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Capability, Identifier, Message, Micro, Part

__all__ = ["PriceRule", "ScoredBid", "Transcript"]

PriceRule = Literal["second_score", "posted", "asked", "offered", "settled"]


class ScoredBid(Part):
    """A bid with the negotiator's estimates and the score that followed. Units: micro-credits and ms."""

    worker: Identifier
    owner: Identifier
    price: Micro
    p50_ms: float = Field(description="As claimed.")
    p90_ms: float = Field(description="As claimed.")
    expected_p50_ms: float = Field(default=0.0, ge=0, description="Corrected by the worker's history; 0: as claimed.")
    expected_p90_ms: float = Field(default=0.0, ge=0, description="Corrected by the worker's history; 0: as claimed.")
    quality: float = Field(
        ge=0, le=1, description="The negotiator's estimate, not the bidder's claim: a lower credible bound."
    )
    mean_quality: float | None = Field(
        default=None, ge=0, le=1, description="Mean of that estimate; null: the bound is all that is known."
    )
    cases: float = Field(default=0.0, ge=0, description="Verified outcomes behind the estimate, decayed.")
    wait_ms: float = Field(default=0.0, ge=0, description="What of the claimed times is the expected wait for a slot.")
    first_ms: float | None = Field(default=None, ge=0, description="Claimed median time to the first text.")
    first_p90_ms: float | None = Field(default=None, ge=0, description="Claimed 90th percentile of it.")
    deposit: Micro = Field(default=0, description="What the bid offers to put up.")
    value: float = Field(description="V: what the answer is worth before its price.")
    score: float = Field(description="S = V - price.")
    eligible: bool = Field(description="Within budget, at or above the least quality, and S >= S0.")

    @property
    def mean(self) -> float:
        """Mean of the quality estimate."""
        return self.quality if self.mean_quality is None else self.mean_quality


class Transcript(Message):
    """One auction. Bids stand in order of score, best first; refusals by worker."""

    auction: Identifier
    task: Identifier
    tenant: Identifier
    capability: Capability
    negotiator: Identifier
    attempt: int = Field(ge=1, description="The attempt it was held for.")
    closed_by: Literal["all_answered", "time_limit", "offers"] = Field(
        description="`offers`: nobody was asked, the bids are standing offers."
    )
    strategy: str = Field(
        default="", max_length=512, description="Why it is an auction, or none, where that was chosen."
    )
    asked: int = Field(ge=0, description="Live eligible workers when the request went out.")
    window_ms: float = Field(ge=0, description="From request to close.")
    remaining_ms: float = Field(description="Until the deadline, at the close.")
    budget: Micro
    value: Micro
    value_of_time: float
    min_quality: float
    reference_price: dict[str, Micro] = Field(default_factory=dict, description="By worker, where one was known.")
    bids: tuple[ScoredBid, ...] = ()
    refusals: dict[str, str] = Field(default_factory=dict, description="Reason by worker.")
    winner: Identifier | None = None
    price: Micro | None = Field(
        default=None, description="What the winner is paid; by the rule `settled`, the most that it may be."
    )
    deposit: Micro = Field(default=0, description="What the ledger holds of the winner's owner; 0: nothing.")
    second_score: float | None = Field(
        default=None, description="By the rule `settled`: the best score behind the winner, S0 at least."
    )
    rule: PriceRule = Field(
        default="second_score",
        description="What set the price; `posted`: a newcomer was tried; `asked`: nobody is worth its price by what is "
        "known of its time, and the best by what it claims is paid what it asks; `offered`: its standing "
        "offer; `settled`: it follows from what the answer turns out to be worth, see the Final's settlements.",
    )
