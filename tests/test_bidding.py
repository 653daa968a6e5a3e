"""What a worker answers to a call for proposals, idle and at work."""

from __future__ import annotations

from typing import Any

from modelnet.bidding import Bidding
from modelnet.capability import Served
from modelnet.estimates import Forecast
from modelnet.market.scarcity import Scarcity
from modelnet.messages import Award, Bid, BidRequest, CapabilityCard, Contract, Features, Refusal
from modelnet.slots import Key, Slots

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


def test_one_that_asks_for_scarcity_asks_more_of_what_must_wait() -> None:
    slots, capability = Slots(1, 1), served(price=100)
    bidding = Bidding(slots, Scarcity())

    def price(auction: str) -> int | None:
        reply = bidding.answer("w", request(auction), capability, 0.0)
        return reply.price if isinstance(reply, Bid) else None

    for auction in ("a", "b"):
        assert price(auction) == 100, "it was never full"
        slots.on_award(award(auction), suits=True, now=0.0, run_s=1.0)
    assert [price(f"c{n}") for n in range(50)] == [None] * 50
    slots.on_ended(Key("t", "k-a", 1), 0.0)
    higher = price("d")
    assert higher is not None
    assert higher > 120
    assert bidding.offer("w", capability, 0, 0.0).price == higher
    slots.on_ended(Key("t", "k-b", 1), 0.0)
    assert price("e") == 100, "a slot is free"


def test_offers_name_the_wait_too() -> None:
    slots, capability = Slots(1, 1), served()
    bidding = Bidding(slots)
    slots.on_award(award("a"), suits=True, now=0.0, run_s=3.0)
    offer = bidding.offer("w", capability, 0, 1.0)
    assert (offer.p50_ms, offer.p90_ms, offer.free, offer.price) == (3000, 6000, 1, 10)


def test_an_award_is_expected_to_run_as_its_bid_had_it() -> None:
    slots, capability = Slots(1), served(expected_ms=1000)
    bidding = Bidding(slots)
    bidding.answer("w", request("a"), capability, 0.0)
    for _ in range(9):
        capability.times.learn(3000)
    assert bidding.run_s(award("a"), capability) == 1.0
    assert bidding.run_s(award("never-bid-for"), capability) == 3.0


def test_the_time_to_the_first_text_is_bid_wait_and_all_and_held_against_what_came() -> None:
    card = CapabilityCard(pattern="a.b", contract=CONTRACT.digest, price=1)
    asked = list[Features]()

    def estimate(features: Features) -> Forecast:
        asked.append(features)
        return Forecast(1000, 2000, first_ms=100, first_p90_ms=150)

    capability = Served(card, CONTRACT, lambda ctx, value: value, price=1, expected_ms=9, estimate=estimate)
    slots = Slots(1, 1)
    bidding = Bidding(slots)
    assert bidding.offer("w", capability, 0, 0.0).first_ms is None, "nothing is known of a typical task yet"
    reply = bidding.answer("w", request("a"), capability, 0.0)
    assert isinstance(reply, Bid)
    assert (reply.first_ms, reply.first_p90_ms, reply.p50_ms) == (100, 150, 1000)
    slots.on_award(award("a"), suits=True, now=0.0, run_s=bidding.run_s(award("a"), capability))
    waiting = bidding.answer("w", request("b"), capability, 0.5)
    assert isinstance(waiting, Bid)
    assert (waiting.first_ms, waiting.first_p90_ms, waiting.p50_ms) == (600, 650, 1500)
    made = bidding.made(award("a"))
    assert made is not None
    assert bidding.made(award("never-bid-for")) is None
    capability.learn(made, run_ms=1500, first_ms=200)
    capability.learn(None, run_ms=1500, first_ms=200)
    assert (capability.accuracy.count, capability.accuracy.coverage) == (1, 1.0)
    assert capability.accuracy.median_error == 0.5
    assert (capability.first_accuracy.coverage, capability.first_accuracy.median_error) == (0.0, 1.0)
    offer = bidding.offer("w", capability, 0, 1.0)
    assert (offer.p50_ms, offer.first_ms) == (1000, 100)
    assert asked[-1].prefix == b"", "a typical task has nothing in a cache"


def test_what_comes_before_the_work_can_begin_is_in_bid_and_offer() -> None:
    card = CapabilityCard(pattern="a.b", contract=CONTRACT.digest, price=1)
    told: list[Forecast | tuple[float, float] | None] = [None, (100, 200), Forecast(100, 200, 10, 20)]
    expected = [(4000.0, 7000.0, None), (3100.0, 3200.0, None), (3100.0, 3200.0, 3010.0)]
    delays = [3.0]
    for estimate, times in zip(told, expected, strict=True):
        capability = Served(
            card,
            CONTRACT,
            lambda ctx, value: value,
            price=1,
            expected_ms=1000,
            estimate=lambda features, estimate=estimate: estimate,  # type: ignore[misc]
            delay=lambda: delays[-1],
        )
        bidding = Bidding(Slots(1, 1))
        reply = bidding.answer("w", request("a"), capability, 0.0)
        assert isinstance(reply, Bid)
        assert (reply.p50_ms, reply.p90_ms, reply.first_ms) == times
        assert bidding.run_s(award("a"), capability) == times[0] / 1e3
        assert bidding.offer("w", capability, 0, 0.0).p50_ms == 4000, "nothing is known of a typical task yet"
        delays.append(0.0)
        assert bidding.offer("w", capability, 1, 0.0).p50_ms == 1000
        delays.append(3.0)
