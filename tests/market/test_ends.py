"""Cancel and deadline in each state of a negotiation, and that nothing happens after its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelnet.market import State
from modelnet.market.commands import AskForBids, Finished, Write
from tests.market.table import Table, code, entry, final, finished, one, some, stopped


def waiting(table: Table) -> None:
    table.begin(queue=True)


def auctioning(table: Table) -> None:
    table.begin()
    table.bid("v", 20)


def awarding(table: Table) -> None:
    auctioning(table)
    table.bid("w", 10)
    table.stored()


def running(table: Table) -> None:
    awarding(table)
    table.confirm()


STATES = [waiting, auctioning, awarding, running]


@pytest.mark.parametrize("reach", STATES)
def test_a_cancel(reach: Callable[[Table], None]) -> None:
    table = Table("w", "v")
    reach(table)
    working = table.state in (State.AWARDING, State.RUNNING)
    commands = table.cancel()
    assert stopped(commands) == ([("w", 1)] if working else [])
    found = final(commands)
    part = 0 if table.state is State.FINISHING and reach is running else None
    assert (found.status, code(found), found.price) == ("cancelled", "cancelled", part)
    assert one(commands, Write).expected == table.sequence  # on the cancel's own entry
    assert table.cancel() == []
    assert finished(table.stored()).status == "cancelled"


@pytest.mark.parametrize("reach", STATES)
def test_the_deadline(reach: Callable[[Table], None]) -> None:
    table = Table("w", "v")
    reach(table)
    working = table.state in (State.AWARDING, State.RUNNING)
    commands = table.expire()
    assert stopped(commands) == ([("w", 1)] if working else [])
    found = final(commands)
    assert (found.status, code(found), found.price) == ("expired", "expired", None)
    assert found.timings.total_ms == pytest.approx(60_000)
    assert table.timer("deadline") == []
    assert finished(table.stored()).status == "expired"
    assert table.timer("deadline") == []


def test_a_task_that_expired_while_waiting_says_for_what() -> None:
    table = Table()
    table.begin()
    found = final(table.expire())
    assert found.error is not None
    assert "no worker" in found.error.message


@pytest.mark.parametrize("reach", STATES)
def test_nothing_happens_after_the_end(reach: Callable[[Table], None]) -> None:
    table = Table("w", "v")
    reach(table)
    table.expire()
    ended = [table.stored()]
    assert some(ended[0], Finished)
    late = [
        table.bid("w"),
        table.refuse("w"),
        table.confirm(),
        table.decline(),
        table.silence(),
        table.done("w"),
        table.lost("w"),
        table.cancel(),
        table.wake(),
        *(table.timer(timer, key) for timer in ("window", "award", "notice", "deadline", "retry") for key in ("", "1")),
        table.refused(),
    ]
    assert late == [[]] * len(late)


def test_past_its_deadline_a_task_is_not_auctioned() -> None:
    table = Table("w", age_s=61.0)
    commands = table.begin()
    assert entry(commands) == final(commands)
    assert final(commands).status == "expired"
    assert some(commands, AskForBids) == []
