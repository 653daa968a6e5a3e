"""The decision of an auction: winner and price, one pure function of what was bid and known; and its recomputation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelnet.messages import Bid, PriceRule, ScoredBid, Transcript

from .exploration import pick
from .reputation import ESTABLISHED
from .scoring import Offered, Terms, believable, most_settled, payment, rank, second_score

__all__ = ["Decision", "decide", "differences", "recompute"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Who is to be awarded, in order, and what each is paid if the ones before it decline."""

    ranking: list[ScoredBid]
    """All bids, best first."""
    believed: list[ScoredBid]
    """Where no bid is worth its price by what is known of its worker: those that are by what they claim, best first."""
    tried: ScoredBid | None
    """The newcomer that goes before the best bid, at the posted price."""
    terms: Terms
    references: Mapping[str, int]
    """The capability's reference price without each bidder's own history, where there is one."""
    spot: bool = False
    """Whether the bids are standing offers: each is paid what it offers, which rivals saw no less than the winner."""

    def price(self, best: ScoredBid, rest: Sequence[ScoredBid], deposit: int = 0) -> int:
        """What `best` is paid where `rest` stand behind it; the most that it may be, if a deposit of it is held."""
        if best is self.tried:
            return self.references[best.worker]
        if self.spot or best in self.believed:
            return best.price
        if deposit:
            return most_settled(self.terms, best, list(rest), self.references.get(best.worker), deposit)
        return payment(self.terms, best, list(rest), self.references.get(best.worker))

    @property
    def order(self) -> list[ScoredBid]:
        """Those that may be awarded, in turn."""
        eligible = [bid for bid in self.ranking if bid.eligible] or self.believed
        if self.tried is None:
            return eligible
        return [self.tried, *(bid for bid in eligible if bid is not self.tried)]

    def deposit(self, best: ScoredBid) -> int:
        """What is to be held of its owner's for `best` to be paid by what its answer turns out to be worth; 0: it is
        paid as others are. Its history speaks for an established worker; one that is tried or believed has a price."""
        if self.spot or self.believed or best is self.tried or best.cases >= ESTABLISHED:
            return 0
        return best.deposit

    def rule(self, deposit: int = 0) -> PriceRule:
        """What sets the winner's price, where so much of its owner's is held."""
        if self.spot:
            return "offered"
        if self.believed:
            return "asked"
        if self.tried is not None:
            return "posted"
        return "settled" if deposit else "second_score"

    @staticmethod
    def second_score(rest: Sequence[ScoredBid]) -> float:
        """The best score among those that stand behind the winner."""
        return second_score(list(rest))


def decide(
    auction: str,
    task: str,
    terms: Terms,
    offered: list[Offered],
    references: Mapping[str, int],
    *,
    spot: bool = False,
) -> Decision:
    """Rank the bids and see whether a newcomer is tried. `spot`: they are standing offers.

    A task is never left undone for what is known of workers' times alone: a worker that was slow for a while and has no
    rival could not show that it is quick again. It is believed, and paid what it asks: the doubt earns nothing.
    """
    ranking = rank(task, terms, offered)
    if spot:
        return Decision(ranking, [], None, terms, references, spot=True)
    believed = [] if ranking and ranking[0].eligible else believable(terms, ranking)
    return Decision(ranking, believed, pick(auction, terms, ranking, references), terms, references)


def recompute(transcript: Transcript) -> Decision:
    """The decision that follows from what a transcript says was bid and known, by this version of the rules."""
    terms = Terms(
        transcript.budget,
        transcript.value,
        transcript.value_of_time,
        transcript.min_quality,
        transcript.remaining_ms / 1e3,
    )
    offered = [
        Offered(
            Bid.model_construct(
                auction=transcript.auction,
                worker=bid.worker,
                price=bid.price,
                p50_ms=bid.p50_ms,
                p90_ms=bid.p90_ms,
                wait_ms=bid.wait_ms,
                deposit=bid.deposit,
            ),
            bid.owner,
            bid.quality,
            bid.mean_quality,
            bid.cases,
            (bid.expected_p50_ms, bid.expected_p90_ms) if bid.expected_p50_ms else None,
        )
        for bid in transcript.bids
    ]
    spot = transcript.closed_by == "offers"
    return decide(transcript.auction, transcript.task, terms, offered, transcript.reference_price, spot=spot)


def differences(transcript: Transcript) -> list[str]:
    """How the recorded outcome differs from the recomputed one, a line each; none if it follows."""
    decision = recompute(transcript)
    order = decision.order
    winner = order[0] if order else None
    held = transcript.deposit  # a fact, as the bids are: the ledger may not have had what was offered
    price = decision.price(winner, order[1:], held) if winner is not None else None
    found = []
    if held and (winner is None or held != decision.deposit(winner)):
        found.append(f"deposit: recorded {held}, which is not what the winner is to put up")
    if held and (second := transcript.second_score) is not None and abs(second - second_score(order[1:])) > 0.5:
        found.append(f"second score: recorded {second:.1f}, recomputed {second_score(order[1:]):.1f}")
    for what, recorded, computed in (
        ("winner", transcript.winner, winner.worker if winner else None),
        ("price", transcript.price, price),
        ("rule", transcript.rule, decision.rule(held)),
        ("order", [bid.worker for bid in transcript.bids], [bid.worker for bid in decision.ranking]),
    ):
        if recorded != computed:
            found.append(f"{what}: recorded {recorded}, recomputed {computed}")
    recorded_bids = {bid.worker: bid for bid in transcript.bids}
    for bid in decision.ranking:
        kept = recorded_bids[bid.worker]
        if round(kept.score) != round(bid.score) or kept.eligible != bid.eligible:
            found.append(f"score of {bid.worker}: recorded {kept.score:.1f}, recomputed {bid.score:.1f}")
    return found
