"""A negotiation that takes a standing offer: nobody is asked, the next is tried, and then bids are."""

from __future__ import annotations

import pytest

from modelnet.market import State, differences
from modelnet.market.commands import AskForBids, HoldFunds, SendAward
from tests.market.table import Table, award_to, entry, final, one, some, transcript

OFFERS = {"w": 10, "v": 20}


def test_the_best_offer_is_taken_without_asking_and_paid_what_it_says() -> None:
    table = Table("w", "v", "u", offers=OFFERS)
    commands = table.begin()
    assert award_to(commands) == ("w", 1)
    assert some(commands, AskForBids) == []
    found = transcript(commands)
    assert (found.closed_by, found.rule, found.price, found.strategy) == ("offers", "offered", 10, "spot: a test")
    assert (found.asked, [bid.worker for bid in found.bids]) == (2, ["w", "v"])
    assert differences(found) == []
    table.stored()
    table.confirm()
    done = final(table.done("w"))
    assert (done.price, done.attempts, done.bids) == (10, 1, 2)


def test_a_transcript_that_was_tampered_with_does_not_follow() -> None:
    found = transcript(Table("w", "v", offers=OFFERS).begin())
    assert differences(found.model_copy(update={"price": 11})) == ["price: recorded 11, recomputed 10"]
    assert differences(found.model_copy(update={"winner": "v"}))
    assert differences(found.model_copy(update={"closed_by": "all_answered"}))  # as bids they were paid otherwise


@pytest.mark.parametrize("how", ["decline", "silence"])
def test_an_offer_that_does_not_hold_falls_to_the_next_and_then_to_an_auction(how: str) -> None:
    table = Table("w", "v", "u", offers=OFFERS)
    table.begin()
    second = table.decline(1) if how == "decline" else table.silence(1)
    assert award_to([*second, *table.stored()]) == ("v", 2)
    third = table.decline(2) if how == "decline" else table.silence(2)
    one(third, AskForBids)
    assert table.state is State.AUCTIONING
    for worker in "wvu":
        commands = table.bid(worker, 30)
    if how == "silence":  # whoever did not answer is not asked again while there are others
        assert some(commands, SendAward) == [] or award_to(commands)[0] == "u"
    else:
        assert transcript(commands).rule == "second_score"


@pytest.mark.parametrize("offers", [{}, {"w": 5_000}, {"stranger": 1}])
def test_without_an_offer_that_will_do_bids_are_asked_for(offers: dict[str, int]) -> None:
    """None, too dear, or of somebody who may not have the task."""
    one(Table("w", "v", offers=offers).begin(), AskForBids)


def test_an_offer_is_taken_once_the_money_is_held() -> None:
    table = Table("w", "v", charged=True, offers=OFFERS)
    commands = table.begin()
    one(commands, HoldFunds)
    assert some(commands, SendAward) == []
    assert transcript(table.held()).closed_by == "offers"


def test_an_offer_whose_worker_leaves_meanwhile_is_not() -> None:
    table = Table("w", "v", charged=True, offers=OFFERS)
    table.begin()
    table.lost("w")
    commands = table.held()
    assert award_to(commands) == ("v", 1)
    assert transcript(commands).rule == "offered"
    assert differences(transcript(commands)) == []


def test_where_the_ledger_is_away_offers_are_stale_when_it_is_back() -> None:
    table = Table("w", "v", charged=True, offers=OFFERS)
    table.begin()
    table.ledger_away()
    table.timer("funds")
    one(table.held(), AskForBids)


def test_one_that_waited_in_line_may_take_an_offer() -> None:
    table = Table("w", offers={"w": 10})
    table.begin(queue=True)
    assert award_to(table.wake()) == ("w", 1)


def test_after_a_failed_attempt_bids_are_asked_for() -> None:
    table = Table("w", "v", offers=OFFERS)
    table.begin()
    table.stored()
    table.confirm()
    one(table.done("w", error="worker_error", retryable=True), AskForBids)


def test_the_entry_says_what_an_award_says() -> None:
    found = entry(Table("w", offers={"w": 10}).begin())
    assert found.kind == "awarded"
    assert (found.worker, found.price) == ("w", 10)
