"""Decisions recompute from transcripts, also those that earlier versions of the rules have made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modelnet.market import differences, recompute
from modelnet.market.decision import decide
from modelnet.market.scoring import Offered, Terms
from modelnet.messages import Bid, ScoredBid, Transcript

RECORDED = sorted(Path(__file__).with_name("transcripts").glob("*.jsonl"))


def recorded() -> list[Transcript]:
    return [Transcript.decode(line) for path in RECORDED for line in path.read_bytes().splitlines()]


def test_what_was_decided_once_is_decided_still() -> None:
    """A change of the rules that fails here alters recorded decisions. Where that is meant, record anew with
    `python -m bench.market --transcripts tests/market/transcripts/simulated.jsonl` and say so."""
    for transcript in recorded():
        assert differences(transcript) == [], transcript.auction


def test_the_records_hold_every_kind_of_decision() -> None:
    found = Counter[str]()
    for transcript in recorded():
        found["posted"] += transcript.rule == "posted"
        found["nobody"] += transcript.winner is None
        found["again"] += transcript.attempt > 1
        found["alone"] += len(transcript.bids) == 1
        found["corrected"] += any(bid.expected_p50_ms != bid.p50_ms for bid in transcript.bids)
    assert min(found[kind] for kind in ("posted", "nobody", "again", "corrected")) > 0, found


@pytest.fixture
def transcript() -> Transcript:
    return max(recorded(), key=lambda one: (one.winner is not None) * len(one.bids))


def with_bid(transcript: Transcript, place: int, **changed: Any) -> Transcript:
    bids = list(transcript.bids)
    bids[place] = bids[place].model_copy(update=changed)
    return transcript.model_copy(update={"bids": tuple(bids)})


def test_a_false_winner_or_price_shows(transcript: Transcript) -> None:
    other = transcript.bids[1].worker
    assert any("winner" in line for line in differences(transcript.model_copy(update={"winner": other})))
    assert transcript.price is not None
    assert any("price" in line for line in differences(transcript.model_copy(update={"price": transcript.price + 1})))
    assert differences(transcript.model_copy(update={"winner": None, "price": None}))


@pytest.mark.parametrize(
    "changed",
    [{"price": 0}, {"quality": 1.0}, {"expected_p50_ms": 1.0, "expected_p90_ms": 1.0}, {"score": 1e6}],
    ids=str,
)
def test_a_bid_that_was_made_better_afterwards_shows(transcript: Transcript, changed: dict[str, Any]) -> None:
    assert differences(with_bid(transcript, 1, **changed))


def test_an_order_that_was_changed_shows(transcript: Transcript) -> None:
    turned = transcript.model_copy(update={"bids": transcript.bids[::-1]})
    assert any("order" in line for line in differences(turned))


def test_the_ranking_is_the_recorded_one(transcript: Transcript) -> None:
    ranking: list[ScoredBid] = recompute(transcript).ranking
    assert [bid.worker for bid in ranking] == [bid.worker for bid in transcript.bids]


def test_an_older_transcript_without_corrections_recomputes() -> None:
    """As a negotiator of before calibration wrote it."""
    bid = {"worker": "w", "owner": "o", "price": 10, "p50_ms": 10.0, "p90_ms": 20.0, "quality": 0.8}
    old = Transcript.model_validate(
        {
            "auction": "a",
            "task": "k",
            "tenant": "t",
            "capability": "a.b",
            "negotiator": "n",
            "attempt": 1,
            "closed_by": "all_answered",
            "asked": 1,
            "window_ms": 1.0,
            "remaining_ms": 60000.0,
            "budget": 1000,
            "value": 1000,
            "value_of_time": 10.0,
            "min_quality": 0.0,
            "reference_price": {"w": 100},
            "bids": [{**bid, "value": 799.88, "score": 789.88, "eligible": True}],
            "winner": "w",
            "price": 125,
        }
    )
    assert differences(old) == []


def test_a_lone_worker_that_was_slow_is_believed_and_paid_what_it_asks() -> None:
    terms = Terms(1000, 1000, 10.0, 0.0, 60.0)
    bid = Bid.model_construct(auction="a", worker="w", price=40, p50_ms=1e3, p90_ms=2e3)
    slow = Offered(bid, "o", 0.8, times_ms=(300e3, 900e3))
    decision = decide("a", "t", terms, [slow], {})
    assert (decision.rule(), [b.worker for b in decision.order]) == ("asked", ["w"])
    assert decision.price(decision.order[0], []) == 40
    quick = Offered(bid.model_copy(update={"worker": "v", "price": 90}), "o2", 0.8)
    decision = decide("a", "t", terms, [slow, quick], {})
    assert (decision.rule(), [b.worker for b in decision.order]) == ("second_score", ["v"])


def test_what_a_worker_itself_says_is_too_slow_is_not_worth_asking() -> None:
    terms = Terms(1000, 1000, 10.0, 0.0, 60.0)
    bid = Bid.model_construct(auction="a", worker="w", price=40, p50_ms=300e3, p90_ms=900e3)
    assert decide("a", "t", terms, [Offered(bid, "o", 0.8)], {}).order == []
