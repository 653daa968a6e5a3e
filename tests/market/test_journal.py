"""A negotiation and its journal: each entry on the one before, refusals, lost acknowledgements, redelivery."""

from __future__ import annotations

from typing import Literal

import pytest

from modelnet.market import State
from modelnet.market.commands import Abandon, AskForBids, CancelWork, Finished, Recall, SendAward, Write
from modelnet.messages import Awarded, CancelAsked, Final, JournalEntry, Timings, Waiting
from tests.market.table import NEGOTIATOR, Table, award_to, awarded, entry, final, finished, one, some, stopped

ENDED = Final(
    task="k",
    tenant="t",
    capability="a.b",
    status="completed",
    output={"y": 3},
    worker="v",
    price=7,
    negotiator="n2",
    timings=Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=1),
)
CANCEL = CancelAsked(task="k")
WAITING = Waiting(task="k", reason="busy", negotiator="n2")


def awarding(*workers: str) -> Table:
    """The award is sent, its entry not yet stored."""
    table = Table(*(workers or ("w", "v")))
    table.begin()
    for n, worker in enumerate(list(table.workers)):
        table.bid(worker, 10 * (n + 1))
    assert table.state is State.AWARDING
    return table


def finishing() -> tuple[Table, Final]:
    """The worker is done, the Final not yet stored; the award's entry is number 1."""
    table = Table("w")
    table.running()
    return table, final(table.done("w"))


def test_entries_are_written_one_at_a_time_each_on_the_one_before() -> None:
    table = awarding("w", "v", "u")
    commands = table.decline(1) + table.decline(2)
    assert [c.award.attempt for c in some(commands, SendAward)] == [2, 3]  # awards do not wait for the journal
    assert some(commands, Write) == []
    for attempt, sequence in ((2, 41), (3, 57)):
        written = one(table.stored(sequence), Write)
        assert isinstance(written.entry, Awarded)
        assert (written.entry.attempt, written.expected) == (attempt, sequence)
    assert table.stored(58) == []


def test_a_final_overtakes_entries_that_no_longer_matter() -> None:
    table = awarding("w", "v")
    table.decline(1)
    table.expire()
    commands = table.stored()
    assert final(commands).status == "expired"
    finished(table.stored())


def test_a_final_does_not_overtake_the_award_whose_answer_it_is() -> None:
    """Readers accept no events of an attempt that does not stand in the journal."""
    table = awarding("w", "v", "u")
    table.decline(1)
    table.decline(2)
    assert some(table.done("u", 3), Write) == []  # all this before the first entry was acknowledged
    written = entry(table.stored())
    assert isinstance(written, Awarded)
    assert (written.worker, written.attempt) == ("u", 3)
    found = final(table.stored())
    assert (found.status, found.worker, found.attempt) == ("completed", "u", 3)
    finished(table.stored())


def test_an_entry_that_never_arrived_is_written_again() -> None:
    table = awarding()
    commands = table.refused()
    assert isinstance(entry(commands), Awarded)
    assert one(commands, Write).expected == 0
    assert some(commands, CancelWork) == []


def test_an_entry_whose_acknowledgement_was_lost_is_found() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w", 10)
    written = entry(table.bid("v", 20))
    assert table.refused((5, written)) == []
    table.confirm()
    assert one(table.done("w"), Write).expected == 5


def test_a_final_whose_acknowledgement_was_lost_is_found() -> None:
    table, written = finishing()
    assert finished(table.refused((1, awarded(1, "w", negotiator=NEGOTIATOR)), (2, written))) == written
    assert table.state is State.DONE
    assert table.stored() == []


def test_a_final_by_another_stands() -> None:
    table, _ = finishing()
    commands = table.refused((1, awarded(1, "w", negotiator=NEGOTIATOR)), (2, ENDED))
    assert finished(commands) == ENDED
    assert some(commands, Write) == []
    assert table.state is State.DONE


def test_a_final_by_another_ends_the_attempt_in_hand() -> None:
    table = awarding()
    commands = table.refused((1, ENDED))
    assert stopped(commands) == [("w", 1)]
    assert finished(commands) == ENDED


def test_a_newer_award_by_another_is_a_takeover() -> None:
    table, _ = finishing()
    commands = table.refused((1, awarded(1, "w", negotiator=NEGOTIATOR)), (2, awarded(2, "v")))
    assert stopped(commands) == [("w", 1)]
    assert commands[-1] == Abandon()
    assert table.state is State.DONE
    assert [table.done("w"), table.expire(), table.cancel(), table.stored()] == [[]] * 4


def test_an_award_by_another_before_this_ones_first() -> None:
    table = awarding()
    commands = table.refused((1, awarded(1, "v")))
    assert stopped(commands) == [("w", 1)]
    assert commands[-1] == Abandon()


def test_of_the_same_attempt_given_to_the_same_worker_by_both_only_ones_own_is_stopped() -> None:
    table = awarding()
    commands = table.refused((1, awarded(1, "w")))
    assert commands == [CancelWork("w", 1, "auction1"), Abandon()]


def test_another_negotiators_wait_is_no_takeover() -> None:
    table = awarding()
    commands = table.refused((1, WAITING))
    assert isinstance(entry(commands), Awarded)
    assert one(commands, Write).expected == 1


def test_a_cancel_before_the_award_was_stored() -> None:
    table = awarding()
    commands = table.refused((1, CANCEL))
    assert stopped(commands) == [("w", 1)]
    assert final(commands).status == "cancelled"
    assert one(commands, Write).expected == 1
    assert finished(table.stored()).status == "cancelled"


def test_a_cancel_before_the_final_was_stored_decides() -> None:
    table, written = finishing()
    assert written.status == "completed"
    commands = table.refused((1, awarded(1, "w", negotiator=NEGOTIATOR)), (2, CANCEL))
    found = final(commands)
    assert (found.status, found.output, found.price) == ("cancelled", None, written.price), "its work was done"
    assert one(commands, Write).expected == 2
    assert finished(table.stored()).status == "cancelled"


def test_a_cancel_after_the_final_was_written_does_not() -> None:
    table, _ = finishing()
    assert table.cancel() == []
    assert finished(table.stored()).status == "completed"


def test_a_cancel_while_the_award_is_on_its_way_to_the_journal() -> None:
    table = Table("w")
    table.begin()
    written = entry(table.bid("w"))
    assert stopped(table.cancel(2)) == [("w", 1)]
    commands = table.stored(1)  # the award came first, the cancel stands behind it
    assert one(commands, Write).expected == 1
    commands = table.refused((1, written), (2, CANCEL))
    assert final(commands).status == "cancelled"
    assert one(commands, Write).expected == 2
    finished(table.stored())


def test_a_cancel_seen_before_the_award_was_refused_for_it() -> None:
    table = awarding()
    table.cancel(1)
    commands = table.refused((1, CANCEL))
    assert len(some(commands, Write)) == 1
    assert final(commands).status == "cancelled"
    finished(table.stored())


def test_an_acknowledgement_and_then_news_of_a_refusal_count_once() -> None:
    table = awarding()
    table.stored(1)
    assert table.refused((1, awarded(1, "w", negotiator=NEGOTIATOR))) == []
    assert table.state is State.AWARDING


# ---------------------------------------------------------------------- redelivery


def test_redelivered_after_its_end() -> None:
    table = Table("w", journal=[(1, awarded(1, "v")), (2, ENDED)])
    assert table.begin() == [Finished(ENDED)]
    assert table.state is State.DONE
    assert table.wake() == []


RAN: list[tuple[int, JournalEntry | None]] = [(3, WAITING), (7, awarded(1, "v")), (9, awarded(2, "w"))]


def test_an_attempt_that_still_runs_is_adopted() -> None:
    table = Table("w", "v", journal=RAN)
    commands = table.begin()
    assert one(commands, Recall) == Recall("w", 2, None)
    assert not some(commands, CancelWork)
    assert not some(commands, AskForBids)
    table.now += 0.5
    assert table.recalled(2, "running") == []
    assert table.negotiation.running == ("w", 2, table.now)
    commands = table.done("w", 2)
    assert one(commands, Write).expected == 9
    found = final(commands)
    assert (found.status, found.worker, found.attempt, found.attempts, found.price) == ("completed", "w", 2, 2, 10)


def test_an_attempt_that_has_ended_is_taken_as_it_ended() -> None:
    table = Table("w", "v", journal=RAN)
    table.begin()
    found = final(table.done("w", 2))
    assert (found.status, found.attempt) == ("completed", 2)


@pytest.mark.parametrize("answer", ["unknown", "silent"])
def test_an_attempt_that_nobody_runs_is_followed_by_another(answer: Literal["unknown", "silent"]) -> None:
    table = Table("w", "v", journal=RAN)
    table.begin()
    commands = table.recalled(2, answer)
    assert one(commands, AskForBids)
    assert bool(some(commands, CancelWork)) == (answer == "silent")
    table.bid("w", 10)
    commands = table.bid("v", 20)
    if not some(commands, SendAward):
        commands = table.timer("window", "auction1")
    # Who kept silent is asked again only if there is nobody else; who never got the award is as good as any.
    assert award_to(commands) == ("w" if answer == "unknown" else "v", 3)
    assert one(commands, Write).expected == 9
    assert table.done("w", 2) == []  # of the attempt before


def test_what_the_worker_of_another_attempt_says_is_void() -> None:
    table = Table("w", "v", journal=RAN)
    table.begin()
    assert table.recalled(1, "silent") == table.done("v", 1) == []
    assert table.state is State.RECALLING


def test_a_recalled_worker_that_is_lost_meanwhile_is_replaced() -> None:
    table = Table("w", "v", journal=RAN)
    table.begin()
    assert one(table.lost("w"), AskForBids)
    assert table.recalled(2, "running") == []


def test_who_failed_before_is_remembered() -> None:
    before = awarded(2, "w").model_copy(update={"failed": ("u",), "lost": ("v",)})
    table = Table("w", "v", "u", journal=[(1, awarded(1, "v")), (2, before)])
    table.begin()
    table.recalled(2, "unknown")
    assert table.bid("u", 1) == []
    commands = table.bid("w", 30)
    assert award_to(commands) == ("w", 3)
    written = entry(commands)
    assert isinstance(written, Awarded)
    assert (written.failed, written.lost) == (("u",), ("v",))


def test_redelivered_after_a_cancel() -> None:
    table = Table("w", journal=[(1, awarded(1, "v")), (2, CANCEL)])
    commands = table.begin()
    assert some(commands, AskForBids) == []
    assert stopped(commands) == [("v", 1)]
    assert final(commands).status == "cancelled"
    assert one(commands, Write).expected == 2


def test_redelivered_past_its_deadline() -> None:
    table = Table("w", age_s=61.0, journal=[(1, awarded(1, "v"))])
    commands = table.begin()
    assert stopped(commands) == [("v", 1)]
    assert final(commands).status == "expired"


@pytest.mark.parametrize("other", [NEGOTIATOR, "n2"])
def test_whose_awards_stand_in_the_journal_does_not_matter(other: str) -> None:
    table = Table("w", journal=[(1, awarded(1, "w", negotiator=other))])
    assert one(table.begin(), Recall) == Recall("w", 1, None)


# ---------------------------------------------------------------------- entries of a newer peer


def test_an_entry_that_cannot_be_read_still_has_its_place() -> None:
    table = Table("w", journal=[(1, awarded(1, "v")), (4, None)])
    table.begin()
    table.recalled(1, "unknown")
    commands = table.bid("w")
    assert award_to(commands) == ("w", 2)
    assert one(commands, Write).expected == 4
    commands = table.refused((1, awarded(1, "v")), (4, None), (6, None))
    assert one(commands, Write).expected == 6
