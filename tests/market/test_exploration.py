"""Exploration: newcomers get a bounded share, at a posted price, each owner a part of it; and who is asked at all."""

from __future__ import annotations

from collections import Counter

import pytest

from modelnet.market import Terms, rank
from modelnet.market.exploration import BOUND_ASKED, EXPLORED, OWNER_SHARE, SHARE, Standing, pick, places
from modelnet.market.scoring import Offered
from modelnet.messages import Bid, ScoredBid

TERMS = Terms(1000, 1000, 10.0, 0.0, 60.0)
AUCTIONS = 4000


def offered(worker: str, price: int, *, cases: float = 0.0, owner: str | None = None, mean: float = 0.8) -> Offered:
    bid = Bid(auction="a", worker=worker, price=price, p50_ms=100, p90_ms=200)
    quality = mean - (0.01 if cases else 0.1)
    return Offered(bid, owner or f"owner-of-{worker}", quality, mean, cases)


def tried(*bids: Offered, posted: int = 100, terms: Terms = TERMS, auctions: int = AUCTIONS) -> Counter[str]:
    """How often each is tried."""
    found = Counter[str]()
    for n in range(auctions):
        ranking = rank("task", terms, list(bids))
        one: ScoredBid | None = pick(f"auction{n}", terms, ranking, {bid.bid.worker: posted for bid in bids})
        if one is not None:
            found[one.worker] += 1
    return found


OLD = offered("old", 80, cases=50)


def test_a_newcomer_gets_its_owners_share() -> None:
    assert tried(OLD, offered("new", 100))["new"] / AUCTIONS == pytest.approx(OWNER_SHARE, abs=0.007)


def test_many_owners_share_what_there_is() -> None:
    found = tried(OLD, *(offered(f"new{n}", 100) for n in range(12)))
    assert sum(found.values()) / AUCTIONS == pytest.approx(SHARE, abs=0.01)
    assert max(found.values()) / AUCTIONS < OWNER_SHARE
    assert len(found) == 12


def test_false_identities_of_one_owner_get_no_more_than_one() -> None:
    found = tried(OLD, *(offered(f"new{n}", 100, owner="sybil") for n in range(20)))
    assert sum(found.values()) / AUCTIONS == pytest.approx(OWNER_SHARE, abs=0.007)


def test_the_price_is_posted() -> None:
    assert not tried(OLD, offered("new", 101))
    assert not tried(OLD, offered("new", 10), posted=1001)  # above the budget
    # What it asks below that makes no difference: neither to its chance nor, since the price is posted, to its pay.
    assert tried(OLD, offered("new", 1)) == tried(OLD, offered("new", 100))


def test_nobody_is_tried_where_the_best_is_a_newcomer_or_nobody_may_win() -> None:
    assert not tried(offered("old", 900, cases=50), offered("new", 10))
    assert not tried(offered("old", 2000, cases=50), offered("new", 2000))
    assert not tried()


def test_not_one_that_is_not_good_enough_or_not_worth_its_price() -> None:
    assert not tried(OLD, offered("new", 10, mean=0.7), terms=Terms(1000, 1000, 10.0, 0.75, 60.0))
    assert not tried(OLD, offered("new", 10), terms=Terms(1000, 200, 2000.0, 0.0, 60.0), posted=100)


def test_the_more_promising_is_tried_more_often() -> None:
    found = tried(OLD, *(offered(f"new{n}", 100, mean=0.6 if n % 2 else 0.8) for n in range(12)))
    good = sum(found[f"new{n}"] for n in range(0, 12, 2))
    assert good > 0.75 * sum(found.values())


def standing(count: int) -> Standing:
    """Workers w0, w1, …, the best first."""
    found = Standing()
    for n in reversed(range(count)):
        found.put(f"w{n}", 1000.0 - n)
    return found


def test_a_small_market_is_asked_whole() -> None:
    assert standing(BOUND_ASKED).shortlist("a") == [f"w{n}" for n in range(BOUND_ASKED)]
    assert places("a", 0) == []


def test_in_a_large_market_the_best_are_asked_and_some_others_alike() -> None:
    large, asked = standing(100), Counter[str]()
    for n in range(5000):
        found = large.shortlist(f"auction{n}")
        assert len(found) == len(set(found)) == BOUND_ASKED
        asked.update(found)
    best = BOUND_ASKED - EXPLORED
    assert all(asked[f"w{n}"] == 5000 for n in range(best))
    expected = 5000 * EXPLORED / (100 - best)
    assert all(0.7 * expected < asked[f"w{n}"] < 1.3 * expected for n in range(best, 100))


def test_the_same_auction_asks_the_same() -> None:
    assert places("a", 1000) == places("a", 1000) != places("b", 1000)


def test_offers_change_and_workers_leave() -> None:
    found = standing(5)
    found.put("w4", 2000.0)
    found.drop("w0")
    found.drop("w0")
    found.put("w1", 999.0)
    assert found.shortlist("a") == ["w4", "w1", "w2", "w3"]
    assert len(found) == 4
