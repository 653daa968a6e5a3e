"""What is paid once it is known what became of an attempt, and its recomputation from transcript and Final. Pure."""

from __future__ import annotations

from modelnet.messages import Final, ScoredBid, Settlement, Transcript

from .decision import Decision, recompute
from .scoring import Terms, median_run_ms, part_payment, settled_payment

__all__ = ["payment_differences", "settle"]


def settle(
    terms: Terms,
    *,
    attempt: int,
    auction: str,
    worker: str,
    owner: str,
    deposit: int,
    most: int,
    second_score: float,
    passed: bool,
    time_ms: float,
) -> Settlement:
    """What an attempt is paid that a deposit is held for, by what became of it."""
    price = settled_payment(terms, second_score, passed=passed, time_s=time_ms / 1e3, deposit=deposit, most=most)
    return Settlement.model_construct(
        attempt=attempt,
        auction=auction,
        worker=worker,
        owner=owner,
        deposit=deposit,
        most=most,
        second_score=second_score,
        passed=passed,
        time_ms=time_ms,
        price=price,
    )


def payment_differences(transcript: Transcript, final: Final) -> list[str]:
    """How a Final's payments differ from those that follow from an auction's transcript, a line each; none if they
    follow, or if nothing that the Final pays was decided by this auction."""
    decision = recompute(transcript)
    found = []
    for one in final.settlements:
        if one.auction == transcript.auction:
            found += _settlement_differences(decision, one)
    # A runner-up of this auction, after a decline, has no transcript of its own.
    if final.price is None or (transcript.auction, transcript.winner) != (final.auction, final.worker):
        return found
    settled = next((one.price for one in final.settlements if one.attempt == final.attempt), None)
    paid = transcript.price if transcript.rule != "settled" else settled
    allowed = {paid}
    if final.status == "cancelled" and transcript.price is not None:
        bid = next(bid for bid in transcript.bids if bid.worker == transcript.winner)
        whole, run_ms = max(transcript.price - transcript.deposit, 0), final.timings.running_ms
        part = part_payment(whole, run_ms=run_ms, median_ms=median_run_ms(bid))
        allowed = {part} if settled is None and transcript.rule == "settled" else {part, paid}
    if final.price not in allowed:
        said = " or ".join(str(price) for price in sorted(allowed, key=str))
        found.append(f"paid: the Final says {final.price}, recomputed {said}")
    return found


def _settlement_differences(decision: Decision, one: Settlement) -> list[str]:
    order: list[ScoredBid] = decision.order
    place = next((place for place, bid in enumerate(order) if bid.worker == one.worker), None)
    if place is None:
        return [f"settlement of {one.worker}: it had no bid that could win"]
    bid, rest, found = order[place], order[place + 1 :], []
    for what, recorded, computed in (
        ("deposit", one.deposit, decision.deposit(bid)),
        ("most", one.most, decision.price(bid, rest, one.deposit)),
        ("second score", round(one.second_score), round(decision.second_score(rest))),
        (
            "price",
            one.price,
            settled_payment(
                decision.terms,
                one.second_score,
                passed=one.passed,
                time_s=one.time_ms / 1e3,
                deposit=one.deposit,
                most=one.most,
            ),
        ),
    ):
        if recorded != computed:
            found.append(f"settlement of {one.worker}: {what}: recorded {recorded}, recomputed {computed}")
    return found
