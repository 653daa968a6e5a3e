"""What a worker says of itself: its card when it joins, an offer when its capacity changes, a beat while it lives."""

from __future__ import annotations

from pydantic import Field

from .base import Digest, Identifier, Message, Micro, Part, Pattern

__all__ = ["Beat", "CapabilityCard", "Drain", "Offer", "RollCall", "RunningAttempt", "WorkerCard"]


class CapabilityCard(Part):
    """One capability of a worker. `quality` is a claim: the market weighs it by what it has seen."""

    pattern: Pattern = Field(description="Capability, or prefix of capabilities, that the worker bids for.")
    contract: Digest = Field(description="Digest of the contract it keeps.")
    model: str | None = Field(default=None, description="Name of the model that answers, if one does.")
    price: Micro | None = Field(default=None, description="Price per task, if it is fixed.")
    quality: float | None = Field(default=None, ge=0, le=1, description="Claimed share of good answers.")
    continues: bool = Field(
        default=False,
        description="Its deltas joined are the output's `text`, and it can go on from what another attempt streamed.",
    )


class WorkerCard(Message):
    """A worker's announcement, kept in the catalogue under its id."""

    worker: Identifier = Field(description="Id, unique on the network.")
    owner: Identifier = Field(default="local", description="Who is paid.")
    capabilities: tuple[CapabilityCard, ...] = Field(description="What it can do.")
    slots: int = Field(default=1, ge=1, description="Tasks it runs at once.")
    labels: dict[str, str] = Field(default_factory=dict, description="Free labels for require and exclude.")
    software: str = Field(default="", description="What runs it, with version.")
    instance: Identifier = Field(description="Nonce of the process behind the id.")

    @property
    def models(self) -> tuple[str, ...]:
        """Names of its models, each once, in order."""
        return tuple(dict.fromkeys(c.model for c in self.capabilities if c.model))


class RunningAttempt(Part):
    """One attempt in a worker's hands: it runs, or waits there for a slot."""

    tenant: Identifier
    task: Identifier
    attempt: int = Field(ge=1)


class Beat(Message):
    """Liveness: one small message a beat, whatever the load."""

    worker: Identifier
    instance: Identifier = Field(description="Nonce of the process: a new one means a restart.")
    slots: int = Field(ge=1, description="Tasks it runs at once.")
    backlog: int = Field(default=0, ge=0, description="Awards it takes beyond its slots, to begin when one is free.")
    running: tuple[RunningAttempt, ...] = Field(
        default=(), description="Every attempt in its hands, those that wait for a slot too."
    )
    draining: bool = Field(default=False, description="Takes no new awards.")
    leaving: bool = Field(default=False, description="Its last beat: it stops now.")

    @property
    def free(self) -> int:
        """Awards that it can take now."""
        return 0 if self.draining else max(self.slots + self.backlog - len(self.running), 0)

    @property
    def queued(self) -> int:
        """Attempts that wait for a slot."""
        return max(len(self.running) - self.slots, 0)


class Offer(Message):
    """Standing offer of a worker for one capability, sent when its capacity changes and beside each beat."""

    worker: Identifier
    capability: Pattern
    price: Micro | None = Field(default=None, description="Price per task, if fixed.")
    p50_ms: float = Field(gt=0, description="Median time to complete a typical task, in ms.")
    p90_ms: float = Field(gt=0, description="90th percentile of it, in ms.")
    first_ms: float | None = Field(default=None, ge=0, description="Median time to the first text of it, in ms.")
    first_p90_ms: float | None = Field(default=None, ge=0, description="90th percentile of that, in ms.")
    free: int = Field(ge=0, description="Awards that it can take now.")
    number: int = Field(
        default=0, ge=0, description="Counts this worker's offers, so that negotiators can take turns to answer them."
    )


class RollCall(Message):
    """Asks every worker for a beat now: what a negotiator sends when it joins."""


class Drain(Message):
    """Asks a worker to take no new awards, finish what it runs, and stop."""
