"""A negotiation that nobody can take now: why it waits, what wakes it, what its readers are told."""

from __future__ import annotations

import pytest

from modelnet.market import State
from modelnet.market.commands import AskForBids, Hold, Record, StartTimer
from modelnet.messages import Final, Waiting
from tests.market.table import Table, award_to, entry, one, some, timers


def test_without_a_worker_it_waits() -> None:
    table = Table()
    commands = table.begin()
    assert some(commands, AskForBids) == []
    assert one(commands, Hold).reason == "no_worker"
    assert table.state is State.WAITING
    table.workers = Table("w").workers
    assert some(table.wake(), AskForBids)
    assert award_to(table.bid("w")) == ("w", 1)


def test_it_waits_while_all_are_busy_and_asks_again_when_woken() -> None:
    table = Table("w", "v")
    table.begin()
    table.refuse("w")
    commands = table.refuse("v")
    assert one(commands, Hold).reason == "busy"
    assert some(commands, Record) == []
    assert "retry" not in timers(commands)  # a worker that frees a slot says so
    assert one(table.wake(), AskForBids).request.auction == "auction2"
    assert table.bid("w", auction="auction1") == []  # of the auction before
    table.bid("w")
    assert award_to(table.bid("v")) is not None


def test_it_tries_again_by_itself_when_nobody_answered() -> None:
    table = Table("w")
    table.begin()
    commands = table.timer("window", "auction1")
    assert one(commands, Hold).reason == "no_bids"
    assert timers(commands)["retry"] == pytest.approx(0.1)
    assert table.timer("retry", "auction0") == []
    assert some(table.timer("retry", "auction1"), AskForBids)
    assert table.timer("retry", "auction1") == []


def test_a_hold_is_the_last_command() -> None:
    """A shell that gives the task back then ends its timers: none may be started after that."""
    queued, unserved, refused, silent = Table("w"), Table(), Table("w"), Table("w")
    refused.begin()
    silent.begin()
    for commands in (
        queued.begin(queue=True),
        unserved.begin(),
        refused.refuse("w"),
        silent.timer("window", "auction1"),
    ):
        assert [type(command) for command in commands].index(Hold) == len(commands) - 1


def test_behind_others_it_waits_at_once() -> None:
    table = Table("w")
    commands = table.begin(queue=True)
    assert one(commands, Hold).reason == "busy"
    assert timers(commands) == {"deadline": pytest.approx(60.0), "notice": pytest.approx(0.5)}
    assert some(table.wake(), AskForBids)


def test_only_a_waiting_task_is_woken() -> None:
    table = Table("w")
    table.begin()
    assert table.wake() == []
    table.bid("w")
    assert table.wake() == []


def test_readers_are_told_of_a_long_wait_once() -> None:
    table = Table("w")
    table.begin(queue=True)
    for _ in range(3):  # each wait starts a timer until the first has run out
        table.wake()
        assert "notice" in timers(table.refuse("w"))
    written = entry(table.timer("notice", "busy"))
    assert isinstance(written, Waiting)
    assert written.reason == "busy"
    assert table.timer("notice", "busy") == []
    table.stored()
    table.wake()
    assert "notice" not in timers(table.refuse("w"))


def test_a_wait_that_is_over_is_not_told() -> None:
    table = Table("w")
    table.begin(queue=True)
    table.wake()
    assert table.timer("notice", "busy") == []
    table.bid("w")
    assert table.timer("notice", "busy") == []


def test_another_reason_is_news() -> None:
    table = Table("w")
    table.begin(queue=True)
    table.timer("notice", "busy")
    table.stored()
    table.wake()
    table.timer("window", "auction1")
    written = entry(table.timer("notice", "no_bids"))
    assert isinstance(written, Waiting)
    assert written.reason == "no_bids"


# ---------------------------------------------------------------------- poor bids


def test_who_is_too_busy_to_bid_may_bid_better_later() -> None:
    table = Table("w", "v")
    table.begin()
    for auction, pause_s in enumerate((1, 2, 4, 8, 16, 16), 1):
        table.bid("w", slow=True)
        waiting = table.refuse("v")
        hold = one(waiting, Hold)
        assert (hold.reason, hold.aside) == ("poor_bids", True)
        assert timers(waiting)["retry"] == pytest.approx(pause_s)
        assert some(waiting, Record), "why is on record"
        assert table.wake() == [], "a free slot is for those that could take it"
        assert some(table.timer("retry", f"auction{auction}"), AskForBids)
    table.bid("w", slow=True)
    assert award_to(table.bid("v")) == ("v", 1)


def test_where_nobody_is_too_busy_poor_bids_are_the_end() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w", slow=True)
    final = entry(table.bid("v", slow=True))
    assert isinstance(final, Final)
    assert final.error is not None
    assert final.error.code == "no_acceptable_bid"


def test_a_budget_that_is_too_small_is_told_at_once() -> None:
    table = Table("w", "v", budget=5)
    table.begin()
    table.bid("w", 6)
    final = entry(table.refuse("v"))
    assert isinstance(final, Final)
    assert final.error is not None
    assert final.error.code == "over_budget"


# ---------------------------------------------------------------------- lost bidders


def test_nobody_waits_for_a_lost_bidder() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w")
    assert award_to(table.lost("v")) == ("w", 1)


def test_a_lost_bidder_does_not_win() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w", 1)
    assert table.lost("w") == []
    assert award_to(table.bid("v", 50)) == ("v", 1)


def test_when_all_bidders_are_lost_it_waits_for_a_worker() -> None:
    table = Table("w")
    table.begin()
    commands = table.lost("w")
    assert one(commands, Hold).reason == "no_worker"
    assert [c for c in some(commands, StartTimer) if c.timer == "retry"] == []


def test_the_loss_of_somebody_else_changes_nothing() -> None:
    table = Table("w")
    table.begin()
    assert table.lost("stranger") == []
    assert table.state is State.AUCTIONING
