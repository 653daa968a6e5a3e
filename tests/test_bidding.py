"""What a worker answers to a call for proposals, idle and at work."""

from __future__ import annotations

from typing import Any

from modelnet.bidding import Bidding
from modelnet.capability import Served
from modelnet.messages import Award, Bid, BidRequest, CapabilityCard, Contract, Features, Refusal
from modelnet.slots import Slots

CONTRACT = Contract(capability="a.b")


def served(price: int = 10, expected_ms: float = 1000.0) -> Served:
    card = CapabilityCard(pattern="a.b", contract=CONTRACT.digest, price=price)
    return Served(card, CONTRACT, lambda ctx, value: value, price=price, expected_ms=expected_ms, estimate=None)


def request(auction: str) -> BidRequest:
    facts: dict[str, Any] = {"negotiator": "n", "capability": "a.b", "remaining_ms": 1e5, "window_ms": 200}
    return BidRequest(auction=auction, features=Features(input_bytes=2), **facts)


def award(auction: str) -> Award:
    facts: dict[str, Any] = {"tenant": "t", "attempt": 1, "capability": "a.b", "price": 1, "remaining_ms": 1e5}
    return Award(auction=auction, negotiator="n", task=f"k-{auction}", **facts)


def test_bids_name_the_wait_once_all_slots_are_taken() -> None:
    slots, capability = Slots(1, 2), served()
    bidding = Bidding(slots)

    def bid(auction: str, now: float) -> tuple[float, float]:
        reply = bidding.answer("w", request(auction), capability, now)
        assert isinstance(reply, Bid)
        return reply.p50_ms, reply.p90_ms

    def take(auction: str, now: float) -> None:
        run_s = bidding.run_s(award(auction), capability)
        assert slots.on_award(award(auction), suits=True, now=now, run_s=run_s)[0] is None

    assert bid("a", 0.0) == (1000, 4000)
    take("a", 0.0)
    assert bid("b", 0.25) == (1750, 4750)
    take("b", 0.25)
    assert bid("c", 0.5) == (2500, 5500)
    take("c", 0.5)
    reply = bidding.answer("w", request("d"), capability, 0.75)
    assert isinstance(reply, Refusal)
    assert reply.reason == "busy"


def test_an_award_is_expected_to_run_as_its_bid_had_it() -> None:
    slots, capability = Slots(1), served(expected_ms=1000)
    bidding = Bidding(slots)
    bidding.answer("w", request("a"), capability, 0.0)
    for _ in range(9):
        capability.times.learn(3000)
    assert bidding.run_s(award("a"), capability) == 1.0
    assert bidding.run_s(award("never-bid-for"), capability) == 3.0
