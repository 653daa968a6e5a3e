"""A negotiation from the award on: confirm, decline, the answer, failures, cancel and deadline in each state."""

from __future__ import annotations

from typing import Literal

import pytest

from modelnet.market import Policy, State
from modelnet.market.commands import AskForBids, Bury, CancelWork, Hold, Inquire, ReadStream, Recall, SendAward, Write
from modelnet.messages import Awarded, ErrorInfo, Final
from tests.market.table import Table, award_to, code, entry, final, finished, one, some, stopped, timers, transcript


def test_an_answer_completes_the_task() -> None:
    table = Table("w", "v", age_s=1.0)
    table.begin()
    table.bid("v", 20)
    table.now += 0.1
    table.bid("w", 10)
    table.stored()
    table.now += 0.1
    assert table.confirm() == []
    assert table.negotiation.running == ("w", 1, table.now)
    table.now += 2.0
    commands = table.done("w", number=3)
    found = final(commands)
    assert found == Final.decode(found.encode())
    assert (found.status, found.output, found.worker, found.price) == ("completed", {"y": 2}, "w", 20)
    assert (found.attempt, found.attempts, found.number, found.bids) == (1, 1, 4, 2)
    assert found.error is None
    assert found.usage is not None
    assert found.usage.prompt_tokens == 5
    times = found.timings
    measured = [times.queued_ms, times.negotiation_ms, times.running_ms, times.total_ms]
    assert measured == pytest.approx([1000, 200, 2000, 3200])
    assert one(commands, Write).expected == 1
    assert finished(table.stored()) == found
    assert table.state is State.DONE


def test_an_answer_before_its_confirm_counts() -> None:
    table = Table("w")
    table.begin()
    table.bid("w")
    table.stored()
    assert final(table.done("w")).status == "completed"
    assert table.confirm() == []


def test_the_answer_waits_for_the_award_to_be_stored() -> None:
    table = Table("w")
    table.begin()
    table.bid("w")
    table.confirm()
    assert some(table.done("w"), Write) == []
    commands = table.stored(1)
    assert final(commands).status == "completed"
    assert one(commands, Write).expected == 1


@pytest.mark.parametrize(("worker", "attempt"), [("v", 1), ("w", 2), ("stranger", 1)])
def test_nobody_elses_answer_counts(worker: str, attempt: int) -> None:
    table = Table("w", "v")
    table.running()
    assert table.done(worker, attempt) == []
    assert table.state is State.RUNNING


def test_a_second_answer_changes_nothing() -> None:
    table = Table("w")
    table.running()
    table.done("w")
    assert table.done("w") == []
    table.stored()
    assert table.done("w") == []


# ---------------------------------------------------------------------- decline, silence


def test_after_a_decline_the_runner_up() -> None:
    table = Table("w", "v", "u")
    table.begin()
    for worker, price in (("w", 10), ("v", 20), ("u", 30)):
        commands = table.bid(worker, price)
    assert award_to(commands) == ("w", 1)
    table.stored()
    commands = table.decline(1)
    assert award_to(commands) == ("v", 2)
    assert some(commands, CancelWork) == []
    assert one(commands, SendAward).award.price == 30  # what the third asks: both are worth the same
    table.stored()
    assert award_to(table.decline(2)) == ("u", 3)


def test_when_all_have_declined_it_waits_and_may_ask_the_same_again() -> None:
    table = Table("w")
    table.begin()
    table.bid("w")
    table.stored()
    assert one(table.decline(1), Hold).reason == "busy"
    table.wake()
    assert award_to(table.bid("w")) == ("w", 2)


@pytest.mark.parametrize("reason", ["too_long", "unsupported"])
def test_who_cannot_do_it_is_not_asked_again(reason: str) -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w")
    table.timer("window", "auction1")
    table.stored()
    commands = table.decline(1, reason)  # type: ignore[arg-type]
    assert one(commands, AskForBids)
    assert table.bid("w", 1) == []
    assert award_to(table.bid("v")) == ("v", 2)


def test_when_nobody_can_do_it_the_task_fails() -> None:
    table = Table("w")
    table.begin()
    table.bid("w")
    table.stored()
    assert code(final(table.decline(1, "too_long"))) == "too_long"


def unanswered() -> Table:
    """Two have bid, the better does not answer its award, and is asked whether it has it."""
    table = Table("w", "v")
    table.begin()
    table.bid("w", 10)
    assert timers(table.bid("v", 20))["award"] == pytest.approx(2.0)
    table.stored()
    assert table.timer("award", "2") == []
    commands = table.timer("award", "1")
    assert one(commands, Inquire) == Inquire("w", 1, "auction1")
    assert timers(commands) == {"award": pytest.approx(2.0)}
    assert stopped(commands) == []
    return table


def test_an_award_without_an_answer_goes_to_the_runner_up() -> None:
    table = unanswered()
    commands = table.timer("award", "1")
    assert stopped(commands) == [("w", 1)]
    assert award_to(commands) == ("v", 2)
    assert table.confirm(1) == []  # too late
    assert table.negotiation.running is None


def test_who_has_it_and_says_so_when_asked_goes_on() -> None:
    table = unanswered()
    assert table.confirm(1) == []
    assert table.negotiation.running == ("w", 1, table.now)
    assert table.timer("award", "1") == []
    found = final(table.done("w"))
    assert (found.status, found.worker, found.attempt, found.attempts) == ("completed", "w", 1, 1)


def test_who_does_not_know_of_it_when_asked_may_be_through() -> None:
    table = unanswered()
    assert table.decline(1, "unknown") == [Recall("w", 1, "auction1")]
    assert table.timer("award", "1") == []
    assert final(table.done("w")).attempts == 1


def test_an_award_that_is_answered_so_is_declined() -> None:
    table = Table("w", "v")
    table.begin()
    for worker, price in (("w", 10), ("v", 20)):
        table.bid(worker, price)
    table.stored()
    commands = table.decline(1, "unknown")
    assert some(commands, Recall) == []
    assert award_to(commands) == ("v", 2)


@pytest.mark.parametrize("answer", ["unknown", "silent"])
def test_who_never_had_it_is_passed_over(answer: Literal["unknown", "silent"]) -> None:
    table = unanswered()
    table.decline(1, "unknown")
    commands = table.recalled(1, answer)
    assert stopped(commands) == [("w", 1)]
    assert award_to(commands) == ("v", 2)


def test_who_never_takes_its_award_is_asked_a_few_times_if_there_is_nobody_else() -> None:
    table = Table("w", policy=Policy(max_silent=3))
    table.begin()
    for attempt in (1, 2, 3):
        table.bid("w")
        table.stored()
        commands = table.silence(attempt)
        assert stopped(commands) == [("w", attempt)]
    assert code(final(commands)) == "worker_lost"


def test_who_vanishes_before_it_confirms_is_asked_a_few_times_if_there_is_nobody_else() -> None:
    table = Table("w", policy=Policy(max_silent=3))
    table.begin()
    known = dict(table.workers)
    for _ in range(3):
        table.bid("w")
        table.stored()
        commands = table.lost("w")
        table.workers = known.copy()
        if table.state is State.WAITING:
            table.wake()
    assert code(final(commands)) == "worker_lost"


def test_the_timer_of_a_confirmed_award_is_void() -> None:
    table = Table("w")
    table.running()
    assert table.timer("award", "1") == []
    assert table.state is State.RUNNING


# ---------------------------------------------------------------------- failures


def test_after_a_retryable_error_another_worker_is_asked() -> None:
    table = Table("w", "v")
    table.running()
    commands = table.done("w", error="worker_error", retryable=True)
    assert one(commands, AskForBids)
    assert table.bid("w", 1) == []  # it had its chance
    assert award_to(table.bid("v")) == ("v", 2)
    table.stored()
    table.confirm(2)
    found = final(table.done("v", 2))
    assert (found.status, found.worker, found.attempt, found.attempts) == ("completed", "v", 2, 2)


def test_an_error_that_is_not_retryable_ends_the_task() -> None:
    table = Table("w", "v")
    table.running()
    found = final(table.done("w", error="bad_prompt"))
    assert (found.status, code(found), found.worker, found.attempt) == ("failed", "bad_prompt", "w", 1)
    assert found.price is None
    assert found.output is None


def test_an_output_that_breaks_the_contract_goes_to_the_next_worker() -> None:
    table = Table("w", "v")
    table.running()
    table.done("w", violation="value: 3 is not a string")
    award_to(table.bid("v"))
    table.stored()
    table.confirm(2)
    found = final(table.done("v", 2, violation="nor this"))
    assert (found.status, code(found), found.worker) == ("failed", "bad_output", "v")
    assert found.output is None
    assert found.error is not None
    assert "nor this" in found.error.message


def test_it_fails_after_the_last_attempt() -> None:
    table = Table("w", "v", "u", policy=Policy(max_attempts=2))
    table.running()
    table.done("w", error="worker_error", retryable=True)
    table.bid("v", 10)
    assert award_to(table.bid("u", 20)) == ("v", 2)
    table.stored()
    found = final(table.done("v", 2, error="worker_error", retryable=True))
    assert (found.status, found.worker, found.attempt, found.attempts) == ("failed", "v", 2, 2)


def test_declines_do_not_count_as_attempts_that_failed() -> None:
    table = Table("w", "v", policy=Policy(max_attempts=1))
    table.begin()
    table.bid("w", 10)
    table.bid("v", 20)
    table.stored()
    table.decline(1)
    table.stored()
    table.confirm(2)
    assert final(table.done("v", 2)).status == "completed"


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_lost_worker_is_replaced(confirmed: bool) -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w", 10)
    table.bid("v", 20)
    table.stored()
    if confirmed:
        table.confirm()
    assert table.lost("v") == []  # the runner-up: not its task
    table.workers = Table("w", "v").workers
    commands = table.lost("w")
    assert stopped(commands) == [("w", 1)]
    assert one(commands, AskForBids)
    assert table.done("w", 1) == []  # of a lost worker that came back: void
    assert award_to(table.bid("v")) == ("v", 2)


def test_the_only_worker_is_lost_and_comes_back() -> None:
    table = Table("w")
    table.running()
    assert one(table.lost("w"), Hold).reason == "no_worker"
    table.workers = Table("w").workers
    assert one(table.wake(), AskForBids)
    assert award_to(table.bid("w")) == ("w", 2)


def test_who_vanished_is_asked_again_only_if_there_is_nobody_else() -> None:
    table = Table("w", "v")
    table.running()
    table.workers["w"] = Table("w").workers["w"]
    commands = table.negotiation.on_worker_lost("w", table.now)
    assert one(commands, AskForBids)
    assert award_to(table.bid("v", 500)) == ("v", 2)


def test_a_task_that_makes_three_workers_vanish_is_poison() -> None:
    table = Table("w", "v", "u", "t")
    commands = table.running()
    for attempt, (worker, following) in enumerate([("w", "v"), ("v", "u")], 1):
        commands = table.lost(worker)
        assert some(commands, Bury) == []
        table.bid(following)
        commands = table.timer("window", table.negotiation.auction)
        assert award_to(commands) == (following, attempt + 1)
        table.stored()
        table.confirm(attempt + 1)
    commands = table.lost("u")
    assert "w, v, u" in one(commands, Bury).reason
    assert code(final(commands)) == "poison"
    assert some(commands, AskForBids) == []


def test_a_worker_that_vanishes_again_and_again_is_no_sign_of_poison() -> None:
    table = Table("w")
    table.running()
    for attempt in (1, 2):
        assert one(table.lost("w"), Hold)
        table.workers = Table("w").workers
        table.wake()
        assert award_to(table.bid("w")) == ("w", attempt + 1)
        table.stored()
        table.confirm(attempt + 1)
    commands = table.lost("w")
    assert some(commands, Bury) == []
    assert code(final(commands)) == "worker_lost"


# ---------------------------------------------------------------------- continuation


def lost_in_the_middle(*workers: str, continues: str) -> Table:
    """w has streamed and vanished."""
    table = Table(*workers, continues=continues)
    table.running()
    assert one(table.lost("w"), ReadStream)
    assert table.state is State.READING
    return table


def test_the_next_attempt_goes_on_behind_what_was_streamed() -> None:
    table = lost_in_the_middle("w", "v", continues="wv")
    assert one(table.streamed(7, "what was said"), AskForBids)
    commands = table.bid("v")
    award = one(commands, SendAward).award
    assert (award.from_number, award.resume and award.resume.text) == (7, "what was said")
    written = entry(commands)
    assert isinstance(written, Awarded)
    assert (written.from_number, written.continues, written.model) == (7, True, "m")
    table.stored()
    table.confirm(2)
    assert final(table.done("v", 2, number=9)).number == 10


def test_who_cannot_go_on_begins_at_the_beginning() -> None:
    table = lost_in_the_middle("w", "v", "u", continues="wu")
    table.streamed(7, "what was said")
    table.bid("v", 10)
    commands = table.bid("u", 20)
    award = one(commands, SendAward).award
    assert award_to(commands) == ("v", 2)
    assert (award.from_number, award.resume) == (0, None)
    table.stored()
    # Readers were told that nothing stands: the runner-up cannot bring it back.
    award = one(table.decline(2), SendAward).award
    assert (award.from_number, award.resume) == (0, None)


def test_what_cannot_be_continued_is_not_read() -> None:
    table = Table("w", "v", continues="v")
    table.running()
    assert one(table.lost("w"), AskForBids)
    assert one(table.bid("v"), SendAward).award.resume is None


def test_after_an_error_the_text_goes_on_but_not_behind_what_breaks_the_contract() -> None:
    table = Table("w", "v", continues="wv")
    table.running()
    assert one(table.done("w", error="worker_error", retryable=True), ReadStream)
    table = Table("w", "v", continues="wv")
    table.running()
    assert one(table.done("w", violation="wrong"), AskForBids)


def test_a_cancel_while_the_stream_is_read() -> None:
    table = lost_in_the_middle("w", "v", continues="wv")
    assert final(table.cancel()).status == "cancelled"
    assert table.streamed(7, "x") == []


def test_the_client_is_gone() -> None:
    table = Table("w")
    table.running()
    commands = table.negotiation.on_client_gone(table.now)
    assert stopped(commands) == [("w", 1)]
    found = final(commands)
    assert (found.status, code(found)) == ("cancelled", "client_gone")
    assert table.negotiation.on_client_gone(table.now) == []


def test_a_task_that_should_not_have_been_asked_for() -> None:
    table = Table("w")
    found = final(table.negotiation.reject(ErrorInfo(code="contract_violation", message="x"), table.now))
    assert (found.status, code(found), found.attempts, found.worker) == ("failed", "contract_violation", 0, None)
    assert Final.decode(found.encode()) == found
    finished(table.stored())


def test_each_attempt_has_a_transcript_of_its_own_auction() -> None:
    table = Table("w", "v")
    table.begin()
    table.bid("w", 10)
    first = transcript(table.bid("v", 20))
    table.stored()
    table.confirm()
    table.done("w", error="worker_error", retryable=True)
    second = transcript(table.bid("v", 20))
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.auction != second.auction
