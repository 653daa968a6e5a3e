"""A negotiation up to the award: asking for bids, closing, ranking, waiting."""

from __future__ import annotations

import pytest

from modelnet.market import State
from modelnet.market.commands import AskForBids, Record, SendAward, Write
from modelnet.messages import Awarded, BidRequest, Selector
from tests.market.table import Table, award_to, entry, final, one, timers, transcript


def test_it_begins_by_asking_for_bids() -> None:
    table = Table("w", require=Selector(owner="me"), age_s=2.0)
    commands = table.begin()
    request = one(commands, AskForBids).request
    assert table.state is State.AUCTIONING
    assert request.capability == "a.b"
    assert request.remaining_ms == pytest.approx(58_000)
    assert request.window_ms == pytest.approx(200)
    assert request.require.owner == "me"
    assert request.features.input_bytes == 7
    assert BidRequest.decode(request.encode()) == request
    assert timers(commands) == {"deadline": pytest.approx(58.0), "window": pytest.approx(0.2)}


def test_bidders_do_not_see_the_input() -> None:
    commands = Table("w", input={"secret": "s3cr3t"}).begin()
    assert b"s3cr3t" not in one(commands, AskForBids).request.encode()


def test_the_window_never_outlasts_the_task() -> None:
    commands = Table("w", age_s=59.95).begin()
    assert timers(commands)["window"] == pytest.approx(0.05)


def test_it_closes_once_all_have_answered() -> None:
    table = Table("w", "v", "u")
    table.begin()
    assert table.bid("v", 20) == []
    assert table.refuse("u") == []
    table.now += 0.05
    commands = table.bid("w", 10)
    assert award_to(commands) == ("w", 1)
    assert table.state is State.AWARDING
    found = transcript(commands)
    assert found.closed_by == "all_answered"
    assert found.window_ms == pytest.approx(50)
    assert [b.worker for b in found.bids] == ["w", "v"]
    assert found.refusals == {"u": "busy"}
    assert (found.asked, found.attempt, found.winner) == (3, 1, "w")


def test_the_award_entry_and_transcript_agree() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("v", 20)
    commands = table.bid("w", 10)
    written, sent = entry(commands), one(commands, SendAward).award
    assert isinstance(written, Awarded)
    assert written.price == sent.price == transcript(commands).price == 20  # both are worth the same: the second price
    assert (written.worker, written.attempt, written.from_number) == ("w", 1, 0)
    assert (sent.task, sent.tenant, sent.input) == ("k", "t", {"x": 1})
    assert sent.decode(sent.encode()) == sent
    assert one(commands, Write).expected == 0
    kinds = [type(command) for command in commands]
    assert kinds.index(SendAward) < kinds.index(Record)  # the award's reader waits, the transcript's does not


def test_it_closes_at_the_time_limit() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("v", 20)
    commands = table.timer("window", "auction1")
    assert award_to(commands) == ("v", 1)
    assert transcript(commands).closed_by == "time_limit"
    assert transcript(commands).asked == 2


def test_an_unsettled_directory_waits_for_the_time_limit() -> None:
    table = Table("w", settled=False)
    table.begin()
    assert table.bid("w") == []
    assert table.bid("v", 5, newcomer=True) == []
    assert award_to(table.timer("window", "auction1")) == ("v", 1)


def test_an_unsettled_directory_waits_even_if_one_of_the_known_is_lost() -> None:
    table = Table("w", "v", settled=False)
    table.begin()
    table.bid("w")
    assert table.lost("v") == []
    assert award_to(table.timer("window", "auction1")) == ("w", 1)


def test_a_newcomer_may_win() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("new", 1, newcomer=True)
    table.bid("v", 20)
    assert award_to(table.bid("w", 10)) == ("new", 1)


def test_a_bid_of_somebody_who_may_not_answer_is_ignored() -> None:
    table = Table("w", "v")
    table.begin()
    assert table.bid("stranger", 1) == []
    table.bid("v", 20)
    assert award_to(table.bid("w", 10)) == ("w", 1)


def test_the_first_answer_is_binding() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w", 50)
    assert table.bid("w", 1) == []
    assert table.refuse("w") == []
    assert award_to(table.bid("v", 20)) == ("v", 1)


def test_a_refusal_cannot_be_taken_back() -> None:
    table = Table("w", "v")
    table.begin()
    table.refuse("w")
    assert table.bid("w", 1) == []
    assert award_to(table.bid("v", 20)) == ("v", 1)


def test_bids_for_another_auction_and_late_bids_are_ignored() -> None:
    table = Table("w", "v")
    table.begin()
    assert table.bid("w", 1, auction="auction0") == []
    table.bid("v", 20)
    table.timer("window", "auction1")
    assert table.bid("w", 1) == []
    assert table.state is State.AWARDING
    assert table.timer("window", "auction1") == []


def test_an_outdated_window_closes_nothing() -> None:
    table = Table("w")
    table.begin()
    assert table.timer("window", "auction0") == []
    assert table.state is State.AUCTIONING


def test_bids_over_budget() -> None:
    table = Table("w", "v", budget=50)
    table.begin()
    table.bid("w", 51)
    commands = table.bid("v", 60)
    error = final(commands).error
    assert error is not None
    assert error.code == "over_budget"
    assert "51" in error.message
    assert "50" in error.message
    assert transcript(commands).winner is None
    assert transcript(commands).price is None


def test_quality_too_low() -> None:
    table = Table("w", min_quality=0.9)
    table.begin()
    error = final(table.bid("w")).error
    assert error is not None
    assert error.code == "quality_too_low"
    assert "0.80" in error.message
    assert "0.90" in error.message


def test_no_bid_is_worth_its_price() -> None:
    table = Table("w", value=5)
    table.begin()
    error = final(table.bid("w", 10)).error
    assert error is not None
    assert error.code == "no_acceptable_bid"


def test_the_acceptable_bid_wins_beside_ones_that_are_not() -> None:
    table = Table("w", "v", budget=50)
    table.begin()
    table.bid("w", 51)
    assert award_to(table.bid("v", 39)) == ("v", 1)


def test_the_price_is_bounded_by_what_others_have_asked() -> None:
    table = Table("w", "v")
    for _ in range(2):
        table.prices.learn("a.b", "v", 100)
    table.begin()
    table.bid("w", 10)
    commands = table.timer("window", "auction1")  # v did not bid, but its ask is known
    assert transcript(commands).reference_price == {"w": 100}
    assert transcript(commands).price == 125


def test_the_ask_that_wins_is_learned() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("v", 30)
    table.bid("w", 10)
    assert table.prices.reference("a.b", "v") == 10
    assert table.prices.reference("a.b", "w") == 10  # nobody else has won: the first ask that did
