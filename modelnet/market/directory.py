"""The directory: which workers live, what they can do, and who could take a task. Pure: times are handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from modelnet.messages import Beat, CapabilityCard, Contract, Offer, Task, WorkerCard, matches

from .calibration import load_class
from .records import TrackRecords

__all__ = ["Candidate", "Directory"]

_REMEMBERED = 1024

OFFER_FRESH_S = 2.5
"""Age up to which a standing offer is believed, or two beats if those are rarer; they come with each beat, and when a
slot becomes free."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could take a task."""

    worker: str
    owner: str
    contract: str
    quality: float
    """The negotiator's estimate."""
    model: str | None = None
    continues: bool = False
    """Whether it can go on from another attempt's text, and another from its own."""
    mean_quality: float | None = None
    """Mean of the estimate whose lower bound `quality` is; None: the bound is all that is known."""
    cases: float = 0.0
    """Decayed outcomes behind it."""
    load: int = 0
    """Class of its load, as of its last beat."""


@dataclass(slots=True)
class _Entry:
    card: WorkerCard
    seen: float
    free: int
    instance: str
    draining: bool = False
    offered: dict[str, CapabilityCard | None] = field(default_factory=dict)
    """By capability asked for: what the worker serves it with."""
    offers: dict[str, tuple[float, Offer]] = field(default_factory=dict)
    """By pattern of its card: its last standing offer, and when that came."""

    def serves(self, capability: str) -> CapabilityCard | None:
        """The most exact of the card's capabilities that covers this one."""
        try:
            return self.offered[capability]
        except KeyError:
            if len(self.offered) >= _REMEMBERED:
                self.offered.clear()
            found = [c for c in self.card.capabilities if matches(c.pattern, capability)]
            best = max(found, key=lambda c: (c.pattern == capability, len(c.pattern)), default=None)
            self.offered[capability] = best
            return best


class Directory:
    """Cards of the workers whose beats arrive, and the contracts ever announced."""

    def __init__(self, *, lost_after_s: float, now: float, records: TrackRecords | None = None) -> None:
        """`records`: what is known of the workers' quality; without it, or of a worker not in it, their claims."""
        self._records = TrackRecords() if records is None else records
        self._lost_after = lost_after_s
        self._settled_at = now + 2 * lost_after_s / 3
        self._offer_fresh_s = max(OFFER_FRESH_S, 2 * lost_after_s / 3)
        self._live: dict[str, _Entry] = {}
        self._contracts: dict[str, Contract] = {}
        self._patterns: set[str] = set()

    def settled(self, now: float) -> bool:
        """False in the first two beats, when a worker that is alive may not have been heard yet."""
        return now >= self._settled_at

    def settles_in(self, now: float) -> float:
        """Seconds until it is settled."""
        return max(self._settled_at - now, 0.0)

    def learn_contracts(self, contracts: Iterable[Contract]) -> None:
        """Note contracts from the catalogue."""
        for contract in contracts:
            self._contracts[contract.digest] = contract
            self._patterns.add(contract.capability)

    def contract(self, digest: str) -> Contract | None:
        """The contract of this digest, if it was ever announced."""
        return self._contracts.get(digest)

    def knows(self, capability: str) -> bool:
        """Whether any worker ever announced the capability."""
        return any(matches(pattern, capability) for pattern in self._patterns)

    def capabilities(self) -> list[str]:
        """Every capability or prefix ever announced."""
        return sorted(self._patterns)

    def learn_card(self, card: WorkerCard, now: float) -> None:
        """Note the card of a worker that has been heard."""
        self._live[card.worker] = _Entry(card, now, card.slots, card.instance)

    def unknown(self, beat: Beat) -> bool:
        """Whether the beat's worker must be looked up first: it is new, or another process took its id."""
        entry = self._live.get(beat.worker)
        return entry is None or entry.instance != beat.instance

    def hear(self, beat: Beat, now: float) -> None:
        """Note a beat of a known worker."""
        entry = self._live.get(beat.worker)
        if entry is not None and entry.instance == beat.instance:
            entry.seen = now
            entry.free = max(beat.slots - len(beat.running), 0)
            entry.draining = beat.draining

    def hear_offer(self, offer: Offer, now: float) -> None:
        """Note a standing offer of a known worker for something on its card."""
        entry = self._live.get(offer.worker)
        if entry is not None and any(card.pattern == offer.capability for card in entry.card.capabilities):
            entry.offers[offer.capability] = now, offer
            entry.free = min(offer.free, entry.card.slots)

    def standing(self, task: Task, candidates: Iterable[Candidate], now: float) -> list[tuple[Candidate, Offer]]:
        """The fresh offers of those of the candidates that name a price and have a free slot."""
        found = []
        for candidate in candidates:
            entry = self._live.get(candidate.worker)
            served = entry.serves(task.capability) if entry is not None else None
            if entry is None or served is None or entry.free < 1 or served.pattern not in entry.offers:
                continue
            at, offer = entry.offers[served.pattern]
            if offer.price is not None and now - at <= self._offer_fresh_s:
                found.append((candidate, offer))
        return found

    def free(self, capability: str) -> tuple[int, int]:
        """Free slots, and all slots, of the living workers that serve the capability."""
        serving = [entry for entry in self._live.values() if not entry.draining and entry.serves(capability)]
        return sum(entry.free for entry in serving), sum(entry.card.slots for entry in serving)

    def forget(self, worker: str) -> None:
        """Drop a worker that left or is lost."""
        self._live.pop(worker, None)

    def lost(self, now: float) -> list[str]:
        """Workers whose beats have been missing for too long; they are dropped."""
        gone = [worker for worker, entry in self._live.items() if now - entry.seen > self._lost_after]
        for worker in gone:
            del self._live[worker]
        return gone

    def excuse(self, pause_s: float) -> None:
        """The listener itself was deaf for a while: nobody's silence in that time counts."""
        for entry in self._live.values():
            entry.seen += pause_s

    def live(self) -> list[WorkerCard]:
        """Cards of the living."""
        return [entry.card for entry in self._live.values()]

    def serves(self, worker: str, capability: str) -> bool:
        """Whether a living worker bids for the capability."""
        entry = self._live.get(worker)
        return entry is not None and entry.serves(capability) is not None

    def candidates(
        self, task: Task, excluded: frozenset[str], accepts: Callable[[str], bool] = lambda _: True
    ) -> list[Candidate]:
        """Living workers that may answer the task: capability, contract, `require`, `exclude`, none of `excluded`.

        `accepts(digest)` says whether the task's input satisfies that contract.
        """
        found = (self.candidate(worker, task, accepts) for worker in self._live if worker not in excluded)
        return [candidate for candidate in found if candidate is not None]

    def candidate(self, worker: str, task: Task, accepts: Callable[[str], bool] = lambda _: True) -> Candidate | None:
        """This worker, if it lives and may answer the task."""
        entry = self._live.get(worker)
        offered = entry.serves(task.capability) if entry is not None else None
        if entry is None or offered is None or entry.draining:
            return None
        if task.contract is not None and offered.contract != task.contract:
            return None
        card = entry.card
        if task.require or task.exclude:
            facts = (worker, card.owner, offered.model, card.labels)
            if not all(task.require.holds(*facts)) or any(task.exclude.holds(*facts)):
                return None
        if not accepts(offered.contract):
            return None
        # What is known decays over days: as of the last beat is as of now.
        known = self._records.quality(worker, task.capability, offered.quality, entry.seen)
        return Candidate(
            worker,
            card.owner,
            offered.contract,
            known.quality,
            offered.model,
            offered.continues,
            known.mean,
            known.cases,
            load_class(card.slots - entry.free),
        )

    def contracts_for(self, capability: str) -> list[Contract]:
        """Contracts under which the capability is served now; those ever announced for it if nobody lives."""
        served = {c.contract for e in self._live.values() if (c := e.serves(capability)) is not None}
        found = [self._contracts[digest] for digest in served if digest in self._contracts]
        return found or [c for c in self._contracts.values() if matches(c.capability, capability)]
