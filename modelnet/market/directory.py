"""The directory: which workers live, what they can do, and who could take a task. Pure: times are handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from modelnet.messages import Beat, Claim, Contract, Offer, Task, WorkerCard, matches

from .candidate import Candidate
from .claims import Claims
from .entry import REMEMBERED, Entry, Heard, Service, standing_bid
from .exploration import BOUND_ASKED
from .records import TrackRecords
from .scoring import Offered
from .shortlist import Shortlist, standing_worth

__all__ = ["Directory", "Invited"]

_SHORTLISTS = 256

OFFER_FRESH_S = 2.5
"""Age up to which a standing offer is believed, or two beats if those are rarer; they come with each beat, and when a
slot becomes free."""


class Invited(NamedTuple):
    """Whom an auction asks."""

    candidates: list[Candidate]
    settled: bool
    """Whether nobody else can be there."""
    everybody: bool = True
    """False: a shortlist of those that could answer."""


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
        self._live: dict[str, Entry] = {}
        self._serving: dict[str, list[Service]] = {}
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
        self._live[card.worker] = entry = Entry(card, now, 0, card.instance)
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
        entry.offers[offer.capability] = Heard(now, offer, standing_bid(offer))
        for capability, shortlist in self._shortlists.items():
            self._enlist(shortlist, capability, entry, has_room=offer.free > 0)

    def hear_refusal(self, worker: str) -> None:
        """A worker says that it has no room."""
        self._note_room(worker, False)

    def _note_room(self, worker: str, has_room: bool) -> None:
        for shortlist in self._shortlists.values():
            shortlist.room(worker, has_room)

    def _enlist(self, shortlist: Shortlist, capability: str, entry: Entry, *, has_room: bool = True) -> None:
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

    def _services(self, capability: str) -> list[Service]:
        """Of all the living who serve it."""
        found = self._serving.get(capability)
        if found is None:
            if len(self._serving) >= REMEMBERED:
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

    def _known(self, service: Service, capability: str) -> Candidate:
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
            if len(self._kept) >= REMEMBERED:
                self._kept.clear()
            self._kept[capability] = found
        return found


def _is_picky(task: Task) -> bool:
    """Whether not all that serve its capability will do."""
    return task.contract is not None or bool(task.require) or bool(task.exclude)


def _suits(service: Service, task: Task, *, picky: bool) -> bool:
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
