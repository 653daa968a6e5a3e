"""What the directory has of one worker: its card, its last beat, its standing offers, and what follows from these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from modelnet.messages import Bid, CapabilityCard, Offer, WorkerCard, matches

from .calibration import load_class
from .candidate import Candidate
from .records import TrackRecord
from .scoring import Offered

__all__ = ["REMEMBERED", "Entry", "Heard", "Service", "standing_bid"]

REMEMBERED = 1024
"""Capabilities asked for of which is kept what serves them."""


class Heard(NamedTuple):
    """A worker's last standing offer for something on its card."""

    at: float
    offer: Offer
    bid: Bid | None
    """The bid that it stands for; None if it names no price."""


@dataclass(slots=True)
class Entry:
    card: WorkerCard
    seen: float
    in_hand: int
    """Attempts, as of its last beat."""
    instance: str
    backlog: int = 0
    """Awards that it takes beyond its slots."""
    draining: bool = False
    offers: dict[str, Heard] = field(default_factory=dict)
    """By pattern of its card."""
    services: dict[str, Service | None] = field(default_factory=dict)
    """By capability that was asked for."""

    @property
    def idle(self) -> int:
        """Free slots."""
        return 0 if self.draining else max(self.card.slots - self.in_hand, 0)

    @property
    def free(self) -> int:
        """Awards that it can take."""
        return 0 if self.draining else max(self.card.slots + self.backlog - self.in_hand, 0)

    def service(self, capability: str) -> Service | None:
        """What it serves this capability with: the most exact of its card's that covers it."""
        try:
            return self.services[capability]
        except KeyError:
            if len(self.services) >= REMEMBERED:
                self.services.clear()
            found = [c for c in self.card.capabilities if matches(c.pattern, capability)]
            best = max(found, key=lambda c: (c.pattern == capability, len(c.pattern)), default=None)
            service = self.services[capability] = None if best is None else Service(self, best)
            return service


@dataclass(slots=True, eq=False)
class Service:
    """What a worker serves a capability with, and what followed from that for the last task: mostly it does for the
    next."""

    entry: Entry
    card: CapabilityCard
    facts: tuple[TrackRecord, float, int] | None = None
    """The record, the beat and the load that the candidate follows from."""
    candidate: Candidate | None = None
    offering: Offered | None = None
    """The standing offer, as it follows from the candidate."""

    def known(self, record: TrackRecord) -> Candidate:
        """The worker with what is known of its quality. That decays over days: as of the last beat is as of now."""
        entry, facts = self.entry, self.facts
        candidate = self.candidate
        if (
            candidate is not None
            and facts is not None
            and facts[0] is record
            and facts[1] == entry.seen
            and facts[2] == entry.in_hand
        ):
            return candidate
        estimate = record.reputation.estimate(self.card.quality, entry.seen)
        self.facts, self.offering = (record, entry.seen, entry.in_hand), None
        self.candidate = candidate = Candidate(
            entry.card.worker,
            entry.card.owner,
            self.card.contract,
            estimate.quality,
            self.card.model,
            self.card.continues,
            estimate.mean,
            estimate.cases,
            load_class(entry.in_hand),
            record.calibration,
        )
        return candidate

    def standing(self, candidate: Candidate, bid: Bid, now: float) -> Offered:
        """Its standing offer, with what is known of the worker."""
        offering = self.offering
        if offering is None or offering.bid is not bid or candidate is not self.candidate:
            offering = candidate.offering(bid, now)
            if candidate is self.candidate:
                self.offering = offering
        return offering


def standing_bid(offer: Offer) -> Bid | None:
    """An offer without room is none, and a bid of no auction."""
    if offer.price is None or not offer.free:
        return None
    return Bid.model_construct(
        auction="",
        worker=offer.worker,
        price=offer.price,
        p50_ms=offer.p50_ms,
        p90_ms=max(offer.p90_ms, offer.p50_ms),
        first_ms=offer.first_ms,
        first_p90_ms=offer.first_p90_ms,
        free=offer.free,
    )
