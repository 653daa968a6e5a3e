"""The directory: which workers live, what they can do, and who could take a task. Pure: times are handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from modelnet.messages import Beat, Bid, CapabilityCard, Claim, Contract, Offer, Task, WorkerCard, matches

from .calibration import Calibration, load_class
from .claims import Claims
from .exploration import BOUND_ASKED
from .records import TrackRecord, TrackRecords
from .scoring import Offered
from .shortlist import Shortlist, standing_worth

__all__ = ["Candidate", "Directory", "Invited"]

_REMEMBERED = 1024
_SHORTLISTS = 256

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
    calibration: Calibration | None = None
    """Of its claims of time; None: they are taken as they are."""

    def offering(self, bid: Bid, now: float) -> Offered:
        """A bid of this worker, with what is known of it now."""
        times_ms = None
        if self.calibration is not None:
            times_ms = self.calibration.correct(bid.p50_ms, bid.p90_ms, self.load, now)
        return Offered(bid, self.owner, self.quality, self.mean_quality, self.cases, times_ms)


class Invited(NamedTuple):
    """Whom an auction asks."""

    candidates: list[Candidate]
    settled: bool
    """Whether nobody else can be there."""
    everybody: bool = True
    """False: a shortlist of those that could answer."""


class _Heard(NamedTuple):
    """A worker's last standing offer for something on its card."""

    at: float
    offer: Offer
    bid: Bid | None
    """The bid that it stands for; None if it names no price."""


@dataclass(slots=True)
class _Entry:
    card: WorkerCard
    seen: float
    in_hand: int
    """Attempts, as of its last beat."""
    instance: str
    backlog: int = 0
    """Awards that it takes beyond its slots."""
    draining: bool = False
    offers: dict[str, _Heard] = field(default_factory=dict)
    """By pattern of its card."""
    services: dict[str, _Service | None] = field(default_factory=dict)
    """By capability that was asked for."""

    @property
    def idle(self) -> int:
        """Free slots."""
        return 0 if self.draining else max(self.card.slots - self.in_hand, 0)

    @property
    def free(self) -> int:
        """Awards that it can take."""
        return 0 if self.draining else max(self.card.slots + self.backlog - self.in_hand, 0)

    def service(self, capability: str) -> _Service | None:
        """What it serves this capability with: the most exact of its card's that covers it."""
        try:
            return self.services[capability]
        except KeyError:
            if len(self.services) >= _REMEMBERED:
                self.services.clear()
            found = [c for c in self.card.capabilities if matches(c.pattern, capability)]
            best = max(found, key=lambda c: (c.pattern == capability, len(c.pattern)), default=None)
            service = self.services[capability] = None if best is None else _Service(self, best)
            return service


@dataclass(slots=True, eq=False)
class _Service:
    """What a worker serves a capability with, and what followed from that for the last task: mostly it does for the
    next."""

    entry: _Entry
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


class Directory:
    """Cards of the workers whose beats arrive, and the contracts ever announced."""

    def __init__(self, *, lost_after_s: float, now: float, records: TrackRecords | None = None) -> None:
        """`records`: what is known of the workers' quality; without it, or of a worker not in it, their claims."""
        self._records = TrackRecords() if records is None else records
        self._lost_after = lost_after_s
        self.claims = Claims(2 * lost_after_s / 3)
        """Awards that the workers may not have shown yet."""
        self._settled_at = now + 2 * lost_after_s / 3
        self._offer_fresh_s = max(OFFER_FRESH_S, 2 * lost_after_s / 3)
        self._live: dict[str, _Entry] = {}
        self._serving: dict[str, list[_Service]] = {}
        """By capability that was asked for: the living who serve it, until a card comes or goes."""
        self._shortlists: dict[str, Shortlist] = {}
        """By capability that was asked for, while the market is large."""
        self._contracts: dict[str, Contract] = {}
        self._kept: dict[str, list[Contract]] = {}
        """By capability that was asked for: the contracts under which it is served, until a card comes or goes."""
        self._announced: dict[str, dict[str, Contract]] = {}
        """By pattern, by digest: a digest says nothing of the capability, and several may keep the same contract."""

    def settled(self, now: float) -> bool:
        """False in the first two beats, when a worker that is alive may not have been heard yet."""
        return now >= self._settled_at

    def settles_in(self, now: float) -> float:
        """Seconds until it is settled."""
        return max(self._settled_at - now, 0.0)

    def learn_contracts(self, contracts: Iterable[Contract]) -> None:
        """Note contracts from the catalogue."""
        for contract in contracts:
            announced = self._announced.setdefault(contract.capability, {})
            if contract.digest not in announced:
                announced[contract.digest] = self._contracts[contract.digest] = contract
                self._kept.clear()

    def contract(self, digest: str) -> Contract | None:
        """The contract of this digest, if it was ever announced."""
        return self._contracts.get(digest)

    def knows(self, capability: str) -> bool:
        """Whether any worker ever announced the capability."""
        return any(matches(pattern, capability) for pattern in self._announced)

    def capabilities(self) -> list[str]:
        """Every capability or prefix ever announced."""
        return sorted(self._announced)

    def learn_card(self, card: WorkerCard, now: float) -> None:
        """Note the card of a worker that has been heard."""
        self._live[card.worker] = entry = _Entry(card, now, 0, card.instance)
        self._serving.clear()
        self._kept.clear()
        self.claims.forget(card.worker)
        for capability, shortlist in self._shortlists.items():
            self._enlist(shortlist, capability, entry)

    def unknown(self, beat: Beat) -> bool:
        """Whether the beat's worker must be looked up first: it is new, or another process took its id."""
        entry = self._live.get(beat.worker)
        return entry is None or entry.instance != beat.instance

    def restarted(self, beat: Beat) -> bool:
        """Whether another process than the known one has the worker's id now: what that one had in hand is gone."""
        entry = self._live.get(beat.worker)
        return entry is not None and entry.instance != beat.instance

    def hear(self, beat: Beat, now: float) -> None:
        """Note a beat of a known worker."""
        entry = self._live.get(beat.worker)
        if entry is not None and entry.instance == beat.instance:
            entry.seen = now
            entry.in_hand, entry.backlog = len(beat.running), beat.backlog
            entry.draining = beat.draining
            self._note_room(beat.worker, entry.free > 0)

    def hear_offer(self, offer: Offer, now: float) -> None:
        """Note a standing offer of a known worker for something on its card."""
        entry = self._live.get(offer.worker)
        if entry is None or all(offer.capability != served.pattern for served in entry.card.capabilities):
            return
        entry.offers[offer.capability] = _Heard(now, offer, _standing_bid(offer))
        for capability, shortlist in self._shortlists.items():
            self._enlist(shortlist, capability, entry, has_room=offer.free > 0)

    def hear_refusal(self, worker: str) -> None:
        """A worker says that it has no room."""
        self._note_room(worker, False)

    def _note_room(self, worker: str, has_room: bool) -> None:
        for shortlist in self._shortlists.values():
            shortlist.room(worker, has_room)

    def _enlist(self, shortlist: Shortlist, capability: str, entry: _Entry, *, has_room: bool = True) -> None:
        service = entry.service(capability)
        if service is None:
            return
        known = self._records.quality(entry.card.worker, capability, service.card.quality, entry.seen)
        heard = entry.offers.get(service.card.pattern)
        worth = standing_worth(heard.offer if heard is not None else None, known.quality)
        shortlist.put(entry.card.worker, worth, has_room=has_room and not entry.draining)

    def _shortlist(self, capability: str) -> Shortlist:
        shortlist = self._shortlists.get(capability)
        if shortlist is None:
            if len(self._shortlists) >= _SHORTLISTS:
                self._shortlists.clear()
            shortlist = self._shortlists[capability] = Shortlist()
            for entry in self._live.values():
                self._enlist(shortlist, capability, entry, has_room=entry.free > 0)
        return shortlist

    def hear_claim(self, worker: str, claim: Claim, now: float) -> None:
        """Note what another negotiator has awarded to a known worker."""
        if worker in self._live:
            self.claims.hear(worker, (claim.tenant, claim.task, claim.attempt), claim.p90_ms, now)

    def standing(self, task: Task, candidates: Iterable[Candidate], now: float) -> list[tuple[Candidate, Offered]]:
        """The fresh offers of those of the candidates that name a price and have room beside what they were awarded."""
        found = []
        for candidate in candidates:
            entry = self._live.get(candidate.worker)
            service = entry.service(task.capability) if entry is not None else None
            if entry is None or service is None:
                continue
            heard = entry.offers.get(service.card.pattern)
            if heard is None or (bid := heard.bid) is None or now - heard.at > self._offer_fresh_s:
                continue
            if self.claims.leave_room(candidate.worker, bid.free, heard.at, now):
                found.append((candidate, service.standing(candidate, bid, now)))
        return found

    def free(self, capability: str) -> tuple[int, int]:
        """Free slots, and all slots, of the living workers that serve the capability."""
        serving = [service.entry for service in self._services(capability) if not service.entry.draining]
        return sum(entry.idle for entry in serving), sum(entry.card.slots for entry in serving)

    def _services(self, capability: str) -> list[_Service]:
        """Of all the living who serve it."""
        found = self._serving.get(capability)
        if found is None:
            if len(self._serving) >= _REMEMBERED:
                self._serving.clear()
            services = (entry.service(capability) for entry in self._live.values())
            found = self._serving[capability] = [service for service in services if service is not None]
        return found

    def forget(self, worker: str) -> None:
        """Drop a worker that left or is lost."""
        if self._live.pop(worker, None) is not None:
            self._serving.clear()
            self._kept.clear()
        self.claims.forget(worker)
        for shortlist in self._shortlists.values():
            shortlist.drop(worker)

    def lost(self, now: float) -> list[str]:
        """Workers whose beats have been missing for too long; they are dropped."""
        gone = [worker for worker, entry in self._live.items() if now - entry.seen > self._lost_after]
        for worker in gone:
            self.forget(worker)
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
        return entry is not None and entry.service(capability) is not None

    def invite(
        self,
        task: Task,
        auction: str,
        excluded: frozenset[str],
        now: float,
        *,
        accepts: Callable[[str], bool] = lambda _: True,
        caller: str | None = None,
    ) -> Invited:
        """Whom to ask for bids. `caller`: the worker for whose free slot the auction is held; it is always asked.

        In a negotiator's first beats all are asked: it does not know them yet.
        """
        settled = self.settled(now)
        large = settled and len(self._live) > BOUND_ASKED
        if not large or not (shortlist := self._shortlist(task.capability)).is_needed:
            return Invited(self.candidates(task, excluded, accepts), settled)
        if not (task.require or task.exclude or task.contract):
            drawn = dict.fromkeys([*([caller] if caller else []), *shortlist.draw(auction)])
            found = [self.candidate(worker, task, accepts) for worker in drawn if worker not in excluded]
            if chosen := [candidate for candidate in found if candidate is not None]:
                return Invited(chosen[:BOUND_ASKED], settled, everybody=False)
        able = {candidate.worker: candidate for candidate in self.candidates(task, excluded, accepts)}
        names = shortlist.choose(auction, list(able))
        if caller in able and caller not in names:
            names[-1] = caller
        return Invited([able[name] for name in names], settled, everybody=len(names) == len(able))

    def candidates(
        self, task: Task, excluded: frozenset[str], accepts: Callable[[str], bool] = lambda _: True
    ) -> list[Candidate]:
        """Living workers that may answer the task: capability, contract, `require`, `exclude`, none of `excluded`.

        `accepts(digest)` says whether the task's input satisfies that contract.
        """
        picky = _is_picky(task)
        return [
            self._known(service, task.capability)
            for service in self._services(task.capability)
            if service.entry.card.worker not in excluded
            and accepts(service.card.contract)
            and _suits(service, task, picky=picky)
        ]

    def candidate(self, worker: str, task: Task, accepts: Callable[[str], bool] = lambda _: True) -> Candidate | None:
        """This worker, if it lives and may answer the task."""
        entry = self._live.get(worker)
        service = entry.service(task.capability) if entry is not None else None
        if service is None or not _suits(service, task, picky=_is_picky(task)) or not accepts(service.card.contract):
            return None
        return self._known(service, task.capability)

    def _known(self, service: _Service, capability: str) -> Candidate:
        return service.known(self._records.of(service.entry.card.worker, capability))

    def contracts_for(self, capability: str) -> list[Contract]:
        """Contracts under which the capability is served now; those ever announced for it if nobody lives."""
        found = self._kept.get(capability)
        if found is None:
            served = {service.card.contract for service in self._services(capability)}
            found = [self._contracts[digest] for digest in served if digest in self._contracts]
            found = found or [
                contract
                for pattern, announced in self._announced.items()
                if matches(pattern, capability)
                for contract in announced.values()
            ]
            if len(self._kept) >= _REMEMBERED:
                self._kept.clear()
            self._kept[capability] = found
        return found


def _is_picky(task: Task) -> bool:
    """Whether not all that serve its capability will do."""
    return task.contract is not None or bool(task.require) or bool(task.exclude)


def _suits(service: _Service, task: Task, *, picky: bool) -> bool:
    """Whether the worker takes tasks, and is such as a `picky` one wants."""
    entry, card = service.entry, service.card
    if entry.draining:
        return False
    if not picky:
        return True
    if task.contract is not None and card.contract != task.contract:
        return False
    facts = (entry.card.worker, entry.card.owner, card.model, entry.card.labels)
    return all(task.require.holds(*facts)) and not any(task.exclude.holds(*facts))


def _standing_bid(offer: Offer) -> Bid | None:
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
