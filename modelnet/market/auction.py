"""One auction: who was asked, who has answered, who wins and what is paid. Pure: times are handed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

from modelnet.messages import Bid, ErrorInfo, Refusal, ScoredBid, Task, Transcript

from .candidate import Candidate
from .claims import Claims
from .decision import Decision, decide
from .reference import ReferencePrices
from .scoring import Offered, Terms

__all__ = ["Auction", "ClosedBy"]

ClosedBy = Literal["all_answered", "time_limit", "offers"]


class Auction:
    """Sealed bids of the candidates; scores are compared after the close."""

    def __init__(self, id: str, candidates: Iterable[Candidate], *, settled: bool, now: float) -> None:
        """`settled`: whether the candidates are all there are."""
        self.id, self.opened_at = id, now
        self.bids: dict[str, Bid] = {}
        self._candidates = {candidate.worker: candidate for candidate in candidates}
        self._settled = settled
        self._refusals: dict[str, str] = {}
        self._decision: Decision | None = None
        self._offers: dict[str, Offered] = {}
        """The bids, where they are standing offers."""
        self._standing: deque[ScoredBid] = deque()

    @classmethod
    def of_offers(cls, id: str, offers: Sequence[tuple[Candidate, Offered]], *, now: float) -> Auction:
        """One in which nobody is asked: the standing offers are the bids."""
        auction = cls(id, (candidate for candidate, _ in offers), settled=True, now=now)
        auction._offers = {candidate.worker: offered for candidate, offered in offers}
        auction.bids = {worker: offered.bid for worker, offered in auction._offers.items()}
        return auction

    def take(self, reply: Bid | Refusal, newcomer: Candidate | None) -> bool:
        """Whether an answer counts: the first of each candidate does. `newcomer`: a bidder unknown at the opening."""
        if reply.worker not in self._candidates:
            if newcomer is None:
                return False
            self._candidates[reply.worker] = newcomer
        if reply.worker in self.bids or reply.worker in self._refusals:
            return False
        if isinstance(reply, Bid):
            self.bids[reply.worker] = reply
        else:
            self._refusals[reply.worker] = reply.reason
        return True

    def drop(self, worker: str) -> bool:
        """Whether somebody who is lost was among the candidates."""
        self.bids.pop(worker, None)
        self._refusals.pop(worker, None)
        return self._candidates.pop(worker, None) is not None

    def candidate(self, worker: str) -> Candidate:
        """What is known of one of them."""
        return self._candidates[worker]

    @property
    def deserted(self) -> bool:
        """Whether nobody is left to answer."""
        return not self._candidates

    @property
    def answered(self) -> bool:
        """Whether nobody else can answer."""
        return self._settled and len(self.bids) + len(self._refusals) >= len(self._candidates)

    @property
    def spot(self) -> bool:
        """Whether it was decided from standing offers."""
        return self._decision is not None and self._decision.spot

    @property
    def somebody_is_full(self) -> bool:
        """Whether one of those asked might bid, and better, once it has room."""
        return any(reason in ("busy", "full") for reason in self._refusals.values())

    @property
    def refused(self) -> bool:
        """Whether anybody said that it cannot."""
        return bool(self._refusals)

    def set_aside(self, claims: Claims, now: float) -> None:
        """Bidders whose free slots others' awards have taken since they were asked: as if they had refused."""
        for worker in [worker for worker in self.bids if self._is_full(worker, claims, now)]:
            del self.bids[worker]
            self._refusals[worker] = "full"

    def _is_full(self, worker: str, claims: Claims, now: float) -> bool:
        return not claims.leave_room(worker, self.bids[worker].free, self.opened_at, now)

    def close(self, task: Task, remaining_s: float, prices: ReferencePrices) -> None:
        """Decide, and let the reference prices learn what the capability goes for."""
        known, offers, capability = self._candidates, self._offers, task.capability
        offered = [offers.get(who) or known[who].offering(bid, self.opened_at) for who, bid in self.bids.items()]
        references = prices.references(capability, self.bids.values())
        terms, spot = Terms.of(task, remaining_s), bool(offers)
        decision = decide(self.id, task.id, terms, offered, references, spot=spot)
        self._decision, self._standing = decision, deque(decision.order)
        if self._standing and self._standing[0] is not decision.tried:
            prices.learn(capability, self._standing[0].worker, self._standing[0].price)

    def winner(self, deposit: int = 0) -> tuple[Candidate, int] | None:
        """The best bidder that has not been taken yet, and what it is paid; at most, if a deposit of it is held."""
        if not self._standing or self._decision is None:
            return None
        best, *rest = self._standing
        return self._candidates[best.worker], self._decision.price(best, rest, deposit)

    def deposit(self) -> tuple[Candidate, int] | None:
        """That bidder, and what is to be held of its owner's before it is awarded; None if nothing is."""
        if not self._standing or self._decision is None:
            return None
        amount = self._decision.deposit(self._standing[0])
        return (self._candidates[self._standing[0].worker], amount) if amount else None

    def second_score(self) -> float:
        """The best score behind that bidder's."""
        assert self._decision is not None
        _, *rest = self._standing
        return self._decision.second_score(rest)

    def bid_of(self, worker: str) -> ScoredBid:
        """Its bid, scored; only after the close."""
        assert self._decision is not None
        return next(bid for bid in self._decision.ranking if bid.worker == worker)

    def usual_price(self, worker: str) -> int | None:
        """The capability's reference price without the worker's own history."""
        return self._decision.references.get(worker) if self._decision is not None else None

    def take_winner(self) -> None:
        """The winner has been awarded: the next is the runner-up."""
        self._standing.popleft()

    def pass_over(self, claims: Claims, now: float) -> None:
        """Runners-up that are full by now are taken out of turn."""
        self._standing = deque(bid for bid in self._standing if not self._is_full(bid.worker, claims, now))

    def transcript(
        self,
        task: Task,
        *,
        negotiator: str,
        attempt: int,
        closed_by: ClosedBy,
        why: str,
        now: float,
        deposit: int = 0,
    ) -> Transcript:
        """All that the outcome followed from, before the winner is taken. `now`: of the close. `why`: this strategy."""
        decision, won = self._decision, self.winner(deposit)
        assert decision is not None
        terms = decision.terms
        return Transcript.model_construct(
            auction=self.id,
            task=task.id,
            tenant=task.tenant,
            capability=task.capability,
            negotiator=negotiator,
            attempt=attempt,
            closed_by=closed_by,
            asked=len(self._candidates),
            window_ms=(now - self.opened_at) * 1e3,
            remaining_ms=terms.remaining_s * 1e3,
            budget=terms.budget,
            value=terms.value,
            value_of_time=terms.value_of_time,
            min_quality=terms.min_quality,
            reference_price=dict(decision.references),
            bids=tuple(decision.ranking),
            refusals=self._refusals,
            winner=won[0].worker if won else None,
            price=won[1] if won else None,
            deposit=deposit,
            second_score=self.second_score() if deposit else None,
            rule=decision.rule(deposit),
            strategy=why,
        )

    def no_acceptable_bid(self, task: Task) -> ErrorInfo:
        """Why none of the bids can win."""
        assert self._decision is not None
        ranking = self._decision.ranking
        lowest = min(bid.price for bid in ranking)
        if lowest > task.budget:
            message = f"the lowest of {len(ranking)} bids asks {lowest}, the budget is {task.budget}"
            return ErrorInfo(code="over_budget", message=message)
        if all(bid.mean < task.min_quality for bid in ranking):
            best = max(bid.mean for bid in ranking)
            message = f"the best expected quality is {best:.2f}, {task.min_quality:.2f} was asked for"
            return ErrorInfo(code="quality_too_low", message=message)
        best = ranking[0].score
        message = f"none of {len(ranking)} bids is worth its price: the best scores {best:.1f}"
        return ErrorInfo(code="no_acceptable_bid", message=message)
