"""A tenant that is charged: its money is held beside the auction, and nothing is awarded before."""

from __future__ import annotations

import pytest

from modelnet.market import State
from modelnet.market.commands import AskForBids, Command, Hold, HoldFunds, Record, SendAward, StartTimer
from modelnet.messages import Awarded, CancelAsked, Waiting
from tests.market.table import Table, award_to, awarded, code, entry, final, finished, one, some, timers


def paying(*workers: str, **options: object) -> Table:
    """A table at which the tenant pays, 500 at most."""
    return Table(*(workers or ("w",)), charged=True, budget=500, **options)  # type: ignore[arg-type]


def first_entry(commands: list[Command]) -> Awarded:
    found = entry(commands)
    assert isinstance(found, Awarded)
    return found


def test_money_is_asked_for_beside_the_bids() -> None:
    table = paying()
    commands = table.begin()
    assert [type(command) for command in commands] == [StartTimer, AskForBids, HoldFunds, StartTimer]
    asked = one(commands, HoldFunds)
    assert asked.amount == 500
    assert asked.deadline_s == pytest.approx(60.0)


def test_a_free_tenant_asks_for_none() -> None:
    table = Table("w")
    assert some(table.begin(), HoldFunds) == []
    assert first_entry(table.bid("w")).held is None
    assert table.held() == []
    assert table.ledger_away() == []


@pytest.mark.parametrize("held_first", [True, False])
def test_the_award_goes_out_when_both_are_there(held_first: bool) -> None:
    table = paying()
    table.begin()
    assert (table.held() if held_first else table.bid("w")) == []
    commands = table.bid("w") if held_first else table.held()
    assert award_to(commands) == ("w", 1)
    assert first_entry(commands).held == 500
    assert first_entry(commands).owner == "owner-of-w"
    assert one(commands, Record).transcript.closed_by == "all_answered"
    table.stored()
    table.confirm()
    ended = final(table.done("w"))
    assert (ended.held, ended.owner, ended.price) == (500, "owner-of-w", one(commands, SendAward).award.price)


def test_bids_count_until_the_money_is_there() -> None:
    table = paying("w", "v")
    table.begin()
    table.bid("w", 90)
    assert table.timer("window", "auction1") == []
    assert table.bid("v", 20) == []
    commands = table.held()
    assert award_to(commands) == ("v", 1)
    assert one(commands, Record).transcript.closed_by == "all_answered"


@pytest.mark.parametrize("reason", ["no_funds", "over_limit", "task_ended"])
def test_without_money_it_fails_at_once(reason: str) -> None:
    table = paying()
    table.begin()
    ended = final(table.held(reason))
    assert code(ended) == reason
    assert ended.held == 500, "an answer may have been lost before: the ledger sees to it"
    assert (ended.worker, ended.owner) == (None, None)
    table.stored()
    assert table.bid("w") == []
    assert table.state is State.DONE


def test_without_a_worker_the_money_stays_free() -> None:
    unserved = Table(charged=True, budget=500)
    assert some(unserved.begin(), HoldFunds) == []
    assert final(unserved.expire()).held == 500, "another negotiator may have held it: the ledger sees to that"


def test_money_is_asked_for_once_whatever_is_auctioned_again() -> None:
    table = paying("w", "v")
    asked = some(table.begin(), HoldFunds)
    table.refuse("w")
    table.held()
    table.refuse("v")
    asked += some(table.wake(), HoldFunds)
    table.bid("w")
    table.bid("v", 50)
    table.stored()
    table.confirm()
    asked += some(table.done("w", error="worker_error", retryable=True), HoldFunds)
    assert table.state is State.AUCTIONING
    assert len(asked) == 1
    assert first_entry(table.bid("v", 50)).held == 500


# ---------------------------------------------------------------------- the ledger is away


def test_it_waits_while_the_ledger_is_away_and_no_worker_wakes_it() -> None:
    table = paying()
    table.begin()
    table.bid("w")
    commands = table.ledger_away()
    assert one(commands, Hold).reason == "ledger_away"
    assert commands[-1] is one(commands, Hold)
    assert timers(commands) == {"funds": pytest.approx(1.0), "notice": pytest.approx(0.5)}
    assert table.wake() == []
    told = entry(table.timer("notice", "ledger_away"))
    assert isinstance(told, Waiting)
    assert told.reason == "ledger_away"
    table.stored()
    assert some(table.timer("funds"), AskForBids) == []
    assert some(table.timer("funds"), HoldFunds) == [], "an answer is awaited"
    assert one(table.ledger_away(), Hold).reason == "ledger_away"
    assert one(table.timer("funds"), HoldFunds).amount == 500
    commands = table.held()
    assert one(commands, AskForBids).request.auction == "auction2"
    assert award_to(table.bid("w")) == ("w", 1)


def test_it_waits_for_a_worker_once_the_ledger_is_back() -> None:
    table = paying()
    table.begin()
    table.ledger_away()
    table.workers.clear()
    table.timer("funds")
    assert one(table.held(), Hold).reason == "no_worker"
    table.workers = Table("w").workers
    commands = table.wake()
    assert some(commands, AskForBids)
    assert some(commands, HoldFunds) == []


def test_the_ledger_may_be_away_while_the_task_waits_for_a_worker() -> None:
    table = paying()
    table.begin()
    table.refuse("w")
    assert table.state is State.AUCTIONING, "the auction is open until the money is there"
    assert one(table.ledger_away(), Hold).reason == "ledger_away"


def test_it_expires_if_the_ledger_stays_away() -> None:
    table = paying()
    table.begin()
    table.ledger_away()
    ended = final(table.expire())
    assert code(ended) == "expired"
    assert ended.error is not None
    assert "ledger away" in ended.error.message
    assert ended.held == 500
    assert table.held() == []


def test_what_the_ledger_says_after_the_end_changes_nothing() -> None:
    table = paying()
    table.begin()
    table.cancel()
    assert table.held() == []
    assert table.held("no_funds") == []
    assert table.ledger_away() == []


# ---------------------------------------------------------------------- another negotiator's task


def test_an_adopted_task_is_held_already() -> None:
    table = paying(journal=[(7, awarded(1, "w", held=500))])
    assert some(table.begin(), HoldFunds) == []
    table.recalled(1, "unknown")
    commands = table.bid("w")
    assert award_to(commands) == ("w", 2)
    assert first_entry(commands).held == 500


def test_a_task_that_was_awarded_for_nothing_stays_free() -> None:
    table = paying(journal=[(7, awarded(1, "w"))])
    table.begin()
    table.recalled(1, "running")
    ended = final(table.done("w"))
    assert ended.held is None
    assert ended.owner == "local"


def test_a_task_that_was_charged_stays_so() -> None:
    table = Table("w", journal=[(7, awarded(1, "w", held=300))])
    table.begin()
    table.recalled(1, "running")
    assert final(table.done("w")).held == 300


def test_a_task_that_was_not_awarded_is_held_by_its_next_negotiator_too() -> None:
    waited = Waiting(task="k", reason="ledger_away", negotiator="n2")
    table = paying(journal=[(7, waited)])
    assert one(table.begin(), HoldFunds).amount == 500
    table.held()
    assert award_to(table.bid("w")) == ("w", 1)


def test_the_money_of_an_id_used_before_is_refused_and_the_journal_has_the_last_word() -> None:
    table = paying()
    table.begin()
    written = table.held("task_ended")
    assert code(final(written)) == "task_ended"
    other = Table("w")
    other.running()
    standing = final(other.done("w"))
    assert finished(table.refused((4, standing))) == standing


def test_a_cancel_in_the_journal_ends_it_without_asking() -> None:
    table = paying(journal=[(3, CancelAsked(task="k"))])
    commands = table.begin()
    assert some(commands, HoldFunds) == []
    assert some(commands, SendAward) == []
    assert final(commands).held == 500, "another negotiator may have asked"
