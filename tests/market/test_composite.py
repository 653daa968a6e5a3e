"""Tasks that are made of parts: races, panels and cascades, in every order of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelnet.market import State
from modelnet.market.commands import Abandon, Command, Finished, StartTimer, Write
from modelnet.market.composite import normalized
from modelnet.messages import (
    Awarded,
    CancelAsked,
    ErrorInfo,
    Final,
    Planned,
    Reference,
    Strategy,
    Task,
    digest_of,
    part_id,
)
from tests.market.board import Board, Kind, ended
from tests.market.table import code, one, some

CHECK = Strategy(kind="cascade", check="check.it")
WITHOUT = {"race": (), "panel": (), "cascade": ("w", "v", "u")}


def begun(kind: Kind, *workers: str, **given: Any) -> Board:
    board = Board(kind, *workers, **given)
    board.begin()
    return board


def reference(name: str = "1") -> Reference:
    return Reference(name=f"t.k.{name}", size=1_000_000, chunks=2, digest=digest_of(name), key="A" * 43 + "=")


# ---------------------------------------------------------------------- the plan


def test_no_part_is_published_before_the_plan_stands() -> None:
    board = Board("race", width=2, stored=False)
    commands = board.begin()
    assert not board.parts
    assert some(commands, StartTimer)[0].delay_s == 60.0
    plan = one(commands, Write).entry
    assert isinstance(plan, Planned)
    assert (plan.strategy, plan.width, plan.why, plan.workers) == ("race", 2, "race: a test", ())
    board.store()
    assert list(board.parts) == [1]


def test_a_plan_whose_acknowledgement_is_lost_stands_once() -> None:
    board = Board("panel", stored=False)
    board.begin()
    board.store(lost=True)
    assert list(board.parts) == [1]
    assert board.plan.strategy == "panel"


@pytest.mark.parametrize(
    "entry",
    [
        Planned(task="k", strategy="panel", width=3, why="another's", negotiator="n2"),
        Awarded(task="k", attempt=1, worker="w", price=1, negotiator="n2"),
    ],
)
def test_a_task_that_another_negotiator_has_begun_is_left_to_it(entry: Planned | Awarded) -> None:
    board = Board("race", width=2, stored=False)
    board.begin()
    board.append(entry)
    commands = board.store()
    one(commands, Abandon)
    assert board.state is State.DONE
    assert not board.parts
    assert not board.cancelled


def test_an_unreadable_entry_before_the_plan_is_written_behind() -> None:
    board = Board("race", width=2, journal=[(3, None)], stored=False)
    assert one(board.begin(), Write).expected == 3


# ---------------------------------------------------------------------- race


def test_the_second_starts_once_the_first_is_awarded_and_to_another_worker() -> None:
    board = begun("race", width=2, exclude={"worker": "bad"}, min_quality=0.4, value=500)
    assert list(board.parts) == [1]
    board.award(1, "w")
    second = board.parts[2]
    assert second.exclude.worker == ("bad", "w")
    assert (second.budget, second.value, second.min_quality, second.input) == (50, 500, 0.4, {"x": 1})
    board.award(2, "v")
    board.award(1, "u")  # again, after its first worker was lost
    assert list(board.parts) == [1, 2]


@pytest.mark.parametrize("first", [1, 2])
def test_the_first_good_answer_of_a_race_wins(first: int) -> None:
    board = begun("race", width=2)
    board.award(1, "w")
    board.award(2, "v")
    board.end(first, "wv"[first - 1], "yes", price=7)
    final = board.final
    assert (final.status, final.output, final.worker) == ("completed", {"text": "yes"}, "wv"[first - 1])
    assert (final.price, final.held, final.attempts, final.bids) == (7, None, 2, 2)
    assert final.parts == (part_id("k", 1), part_id("k", 2))
    assert board.cancelled == [part_id("k", 3 - first)]
    assert board.finished == final
    assert Final.decode(final.encode()) == final


def test_a_race_goes_on_while_somebody_runs() -> None:
    board = begun("race", width=2)
    board.award(1, "w")
    board.award(2, "v")
    board.fail(1, "w")
    assert not board.finals
    board.end(2, "v", "late")
    assert board.final.output == {"text": "late"}


def test_a_part_that_fails_before_anybody_has_it_calls_the_next_at_once() -> None:
    board = begun("race", width=3)
    board.award(1, "w")
    board.fail(2, None)
    assert list(board.parts) == [1, 2, 3]
    assert board.parts[3].exclude.worker == ("w",)


def test_a_race_that_all_lose_fails_with_the_last_error() -> None:
    board = begun("race", width=2)
    board.fail(1, None, error=ErrorInfo(code="over_budget", message="dear"))
    board.award(2, "v")
    board.fail(2, "v", error=ErrorInfo(code="worker_error", message="broken"))
    assert (board.final.status, code(board.final)) == ("failed", "worker_error")
    assert board.final.price == 0


def test_where_all_parts_expire_the_task_has_expired() -> None:
    board = begun("race", width=2)
    board.fail(1, status="expired")
    board.fail(2, status="expired")
    assert (board.final.status, code(board.final)) == ("expired", "expired")


# ---------------------------------------------------------------------- panel


def test_a_panel_is_of_different_owners() -> None:
    board = begun("panel", exclude={"owner": ["bad"]}, min_quality=0.9)
    board.award(1, "w", "ann")
    board.award(2, "v", "bob")
    assert board.parts[3].exclude.owner == ("bad", "ann", "bob")
    assert [part.min_quality for part in board.parts.values()] == [0.0] * 3
    assert [part.budget for part in board.parts.values()] == [33] * 3


def panel(*answers: str | None, width: int | None = None) -> Board:
    """A panel, all of whose parts are awarded and some have answered; None: failed."""
    board = begun("panel", width=width or len(answers))
    for number in range(1, (width or len(answers)) + 1):
        board.award(number, f"w{number}")
    for number, answer in enumerate(answers, 1):
        if answer is None:
            board.fail(number, f"w{number}")
        else:
            board.end(number, f"w{number}", answer)
    return board


def test_a_majority_ends_a_panel_before_the_rest_has_answered() -> None:
    board = panel("Berlin", "berlin ", width=3)
    assert board.final.output == {"text": "Berlin"}
    assert board.final.price == 20
    assert board.cancelled == [part_id("k", 3)]
    assert board.learned == [("w1", "panel", True), ("w2", "panel", True)]


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (("a", "b", "a"), "w1"),
        (("b", "a", "a"), "w2"),
        ((None, "a", "a"), "w2"),
        (("a", "a"), "w1"),
        (("a", "b", "c", "b", "b"), "w2"),
        (("a", "b", "b", None, None), "w2"),
        (("a",), "w1"),
    ],
)
def test_the_majority_wins(answers: tuple[str | None, ...], winner: str) -> None:
    board = panel(*answers)
    assert (board.final.status, board.final.worker) == ("completed", winner)
    voted = {f"w{n}": answer for n, answer in enumerate(answers, 1) if answer is not None}
    assert board.learned == [(w, "panel", answer == voted[winner]) for w, answer in voted.items()]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (("a", "b", "c"), "of 3 answers at most 1 are alike: there is no majority"),
        (("a", "b"), "of 2 answers at most 1 are alike: there is no majority"),
        (("a", None, None), "of 1 answers at most 1 are alike: there is no majority"),
        (("a", "a", "b", "b"), "of 4 answers at most 2 are alike: there is no majority"),
    ],
)
def test_without_a_majority_nobody_is_right_and_nobody_is_blamed(answers: tuple[str | None, ...], message: str) -> None:
    board = panel(*answers)
    assert board.final.error == ErrorInfo(code="no_majority", message=message)
    assert board.final.output is None
    assert board.learned == []


def test_a_panel_without_an_answer_fails_with_the_last_error() -> None:
    assert code(panel(None, None, None).final) == "failed"


def test_an_owner_votes_once() -> None:
    """A part whose worker failed may go to the owner of another."""
    board = begun("panel")
    for number, worker in ((1, "w1"), (2, "w2"), (3, "w3")):
        board.award(number, worker)
    board.end(2, "w2", "lie")
    board.end(1, "w2-twin", "lie", owner="owner-of-w2")
    assert not board.finals
    board.end(3, "w3", "truth")
    assert code(board.final) == "no_majority"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": " Two\n words", "b": [1, {}]}, {"b": [1.0, {}], "a": "two Words"}),
        ({"a": 0.1 + 0.2}, {"a": 0.3}),
        ({"a": None}, {"a": None}),
    ],
)
def test_answers_that_say_the_same_are_alike(one: Any, other: Any) -> None:
    assert normalized(one) == normalized(other)
    assert len({normalized(one), normalized(other)}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": True}, {"a": 1}),
        ({"a": "1"}, {"a": 1}),
        ({"a": {}}, {"a": []}),
        ({"a": None}, {"a": "null"}),
        ({}, {"a": 1}),
    ],
)
def test_answers_that_do_not_are_not(one: Any, other: Any) -> None:
    assert normalized(one) != normalized(other)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values | st.just(10**400))
def test_anything_can_be_compared(value: Any) -> None:
    assert hash(normalized(value)) == hash(normalized(value))


def test_large_answers_are_compared_by_digest_and_stay_where_they_are() -> None:
    board = begun("panel")
    for number in (1, 2, 3):
        board.award(number, f"w{number}")
    for number in (1, 2):
        stored = {"output_ref": reference(), "digest": digest_of("same")}
        final = ended(part_id("k", number), f"w{number}").model_copy(update=stored)
        board.take(board.composite.on_part_ended(number, final, board.now))
    assert board.final.output is None
    assert board.final.output_ref == reference()
    assert board.final.digest == digest_of("same")


# ---------------------------------------------------------------------- cascade


def test_a_cascade_asks_the_cheapest_first_alone() -> None:
    board = begun("cascade", "w", "v", "u", min_quality=0.9, require={"labels": {"zone": "eu"}})
    first = board.parts[1]
    assert (first.require.worker, first.require.labels, first.budget, first.min_quality) == (
        "w",
        {"zone": "eu"},
        100,
        0,
    )
    board.award(1, "w")
    assert list(board.parts) == [1]


def test_a_cascade_without_a_checker_takes_the_first_that_is_sure() -> None:
    board = begun("cascade", "w", "v", "u")
    board.end(1, "w", {"text": "hm", "confidence": 0.6}, price=10)
    assert board.parts[2].budget == 90
    board.end(2, "v", {"text": "yes", "confidence": 0.7}, price=20)
    assert (board.final.worker, board.final.price, board.final.attempts) == ("v", 30, 2)
    assert board.learned == []


@pytest.mark.parametrize("confidence", [None, 0.7, 1, True, "high"])
def test_an_answer_that_doubts_nothing_is_taken(confidence: object) -> None:
    board = begun("cascade", "w", "v")
    board.end(1, "w", {"text": "x", "confidence": confidence} if confidence is not None else {"text": "x"})
    assert board.final.worker == "w"


def test_the_last_rung_is_taken_however_unsure() -> None:
    board = begun("cascade", "w", "v")
    board.end(1, "w", {"confidence": 0.1})
    board.end(2, "v", {"confidence": 0.0})
    assert board.final.worker == "v"


def test_an_unsure_answer_stands_where_the_dearer_ones_fail() -> None:
    board = begun("cascade", "w", "v")
    board.end(1, "w", {"confidence": 0.1})
    board.fail(2, "v")
    assert board.final.worker == "w"


def test_a_check_is_a_part_too_and_never_its_own_workers() -> None:
    board = begun("cascade", "w", "v", strategy=CHECK, contract=digest_of("contract"), require={"labels": {"z": "1"}})
    board.end(1, "w", "wrong", price=30)
    check = board.parts[2]
    assert check.capability == "check.it"
    assert check.input == {"capability": "a.b", "input": {"x": 1}, "output": {"text": "wrong"}}
    assert (check.budget, check.contract, bool(check.require), check.exclude.worker) == (70, None, False, "w")
    board.end(2, "c", {"passed": False}, price=5)
    assert board.learned == [("w", "checker", False)]
    assert (board.parts[3].require.worker, board.parts[3].budget) == ("v", 65)
    board.end(3, "v", "right", price=40)
    board.end(4, "c", {"passed": True}, price=5)
    assert board.learned[1:] == [("v", "checker", True)]
    assert (board.final.worker, board.final.price, len(board.final.parts)) == ("v", 80, 4)


def test_what_passes_no_check_is_no_answer() -> None:
    board = begun("cascade", "w", strategy=CHECK)
    board.end(1, "w", "wrong")
    board.end(2, "c", {"passed": False})
    assert board.final.error == ErrorInfo(code="not_verified", message="w's answer did not pass check.it")


@pytest.mark.parametrize("verdict", [{}, {"passed": "yes"}, {"passed": 1}, None])
def test_a_check_that_cannot_tell_ends_it(verdict: dict[str, Any] | None) -> None:
    board = begun("cascade", "w", "v", strategy=CHECK)
    board.end(1, "w", "x")
    if verdict is None:
        board.fail(2, "c")
    else:
        board.end(2, "c", verdict)
    assert code(board.final) == "check_failed"
    assert board.final.error is not None
    assert board.final.error.message.startswith("check.it could not tell: ")
    assert board.learned == []


def test_large_values_are_fetched_for_a_check() -> None:
    board = begun("cascade", "w", strategy=CHECK, input={}, input_ref=reference("in"))
    assert board.parts[1].input_ref == reference("in")
    final = ended(part_id("k", 1), "w", None, output_ref=reference("out"))
    board.take(board.composite.on_part_ended(1, final, board.now))
    assert board.orders[2].stored == {"input": reference("in"), "output": reference("out")}
    assert board.parts[2].input_ref is None


def test_every_rung_gets_its_turn() -> None:
    """However long one before is busy."""
    board = begun("cascade", "w", "v", "u")
    assert board.parts[1].deadline_s == pytest.approx(20)
    board.now += 20
    board.fail(1, None, status="expired")
    assert board.parts[2].deadline_s == pytest.approx(20)
    board.now += 5
    board.fail(2, "v")
    assert board.parts[3].deadline_s == pytest.approx(35)


def test_a_rung_whose_worker_is_not_there_is_over_at_once() -> None:
    board = begun("cascade", "w", "v", absent="w")
    assert board.cancelled == [part_id("k", 1)]
    board.fail(1, None, status="cancelled")
    assert board.parts[2].require.worker == "v"
    assert board.cancelled == [part_id("k", 1)]


def test_a_rung_whose_worker_leaves_is_over() -> None:
    board = begun("cascade", "w", "v")
    for worker in ("v", "x", "w"):
        board.take(board.composite.on_worker_lost(worker, board.now))
    assert board.cancelled == [part_id("k", 1)]
    racing = begun("race", width=2)
    racing.award(1, "w")
    assert racing.composite.on_worker_lost("w", racing.now) == []  # its part sees to it


def test_a_cascade_that_nobody_is_planned_for_fails() -> None:
    """A plan like that is nobody's of ours."""
    plan = Planned(task="k", strategy="cascade", width=9, why="forged", negotiator="n2")
    board = Board("cascade", journal=[(1, plan)])
    board.begin()
    assert board.final.status == "failed"


# ---------------------------------------------------------------------- ends

KINDS: tuple[Kind, ...] = ("race", "panel", "cascade")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["cancel", "expire", "client", "refused"])
@pytest.mark.parametrize("parts", [0, 1, 2])
def test_an_end_cancels_all_parts_that_run(kind: Kind, how: str, parts: int) -> None:
    board = Board(kind, *WITHOUT[kind], width=3, stored=False)
    board.begin()
    if parts:
        board.store()
        if parts == 2 and kind == "cascade":
            board.fail(1, "w")
        elif parts == 2:
            board.award(1, "w")
    if how == "cancel":
        board.cancel()
    elif how == "expire":
        board.expire()
    elif how == "client":
        board.take(board.composite.on_client_gone(board.now))
    else:
        board.take(board.composite.on_part_refused(max(parts, 1), ErrorInfo(code="too_large"), board.now))
    while board.outstanding is not None:
        board.store()
    wanted = {"cancel": "cancelled", "expire": "expired", "client": "cancelled", "refused": "failed"}[how]
    assert board.final.status == wanted
    assert board.finished == board.final
    running = {part_id("k", number) for number in range(1, parts + 1)}
    if kind == "cascade":
        running -= {part_id("k", 1)} if parts == 2 else set()
    assert set(board.cancelled) == running
    assert len(board.final.parts) == parts


def test_what_comes_after_the_end_changes_nothing() -> None:
    board = begun("race", width=2)
    board.award(1, "w")
    board.end(1, "w", "yes")
    assert list(board.award(2, "v")) == list(board.end(2, "v", "too")) == list(board.cancel()) == []
    assert board.composite.on_part_refused(2, ErrorInfo(code="too_large"), board.now) == []
    assert board.composite.on_client_gone(board.now) == []
    assert board.expire() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_ends_once(kind: Kind) -> None:
    board = begun(kind, *WITHOUT[kind], width=3)
    board.fail(1, "w")
    assert list(board.fail(1, "w")) == list(board.award(1, "v")) == []
    assert list(board.parts) == [1, 2]
    assert board.parts[2].exclude.worker == (("w",) if kind == "race" else None)


def test_a_cancel_before_the_final_stands_counts() -> None:
    board = Board("race", width=2, stored=False)
    board.begin()
    board.store()
    board.end(1, "w", "yes")
    board.append(CancelAsked(task="k"))
    board.store()
    board.store()
    assert board.final.status == "cancelled"


def test_another_negotiators_final_ends_it_and_what_runs_here() -> None:
    board = Board("race", width=2, stored=False)
    board.begin()
    board.store()
    board.award(1, "w")
    board.end(1, "w", "yes")
    board.append(ended("k", "x", {"text": "other"}))
    commands = board.store()
    assert one(commands, Finished).final.worker == "x"
    assert part_id("k", 2) in board.cancelled


# ---------------------------------------------------------------------- taking over


def of(task: Task) -> dict[str, Any]:
    """Its fields."""
    return {name: getattr(task, name) for name in Task.model_fields}


def taken_over(board: Board, *more: Any, **given: Any) -> Board:
    """Another negotiator has it now."""
    heir = Board(
        "race",
        width=9,  # what it would choose by itself
        journal=[*board.journal, *more],
        negotiator="n2",
        **{**of(board.task), **given},
    )
    heir.begin()
    return heir


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_over_with_the_same_plan_and_the_same_parts(kind: Kind) -> None:
    board = begun(kind, *WITHOUT[kind], width=3, strategy=CHECK)
    for number, (worker, output) in enumerate((("w", {"text": "a"}), ("v", {"passed": False})), 1):
        heir = taken_over(board)
        assert heir.plan == board.plan
        for seen in range(1, number):
            heir.award(seen, "w")
            heir.end(seen, "w", {"text": "a"})
        assert {n: part.id for n, part in heir.parts.items()} == {n: part.id for n, part in board.parts.items()}
        assert all(order.perhaps_known for order in heir.orders.values())
        board.award(number, worker)
        board.end(number, worker, output, **({"status": "failed"} if kind == "race" else {}))
        if board.finals or kind == "race":
            break


def test_a_task_that_was_cancelled_between_two_negotiators_has_no_parts_left() -> None:
    board = begun("panel")
    heir = taken_over(board, (7, CancelAsked(task="k")))
    assert heir.final.status == "cancelled"
    assert heir.cancelled == [part_id("k", number) for number in (1, 2, 3)]
    late = taken_over(board, age_s=61.0)
    assert late.final.status == "expired"
    assert late.cancelled == heir.cancelled
    checked = taken_over(begun("cascade", "w", "v", strategy=CHECK), (7, CancelAsked(task="k")))
    assert len(checked.cancelled) == 4


def test_a_final_whose_writer_died_is_cleared_up_behind() -> None:
    """The parts that it wanted to cancel run on."""
    board = begun("race", width=2)
    board.award(1, "w")
    board.end(1, "w", "yes")
    heir = taken_over(board)
    assert heir.finished == board.final
    assert heir.cancelled == [part_id("k", 1), part_id("k", 2)]  # harmless for the one that has ended
    assert len(heir.finals) == 1


def test_ids_of_parts_are_ids_whatever_the_tasks_is() -> None:
    for length in (1, 52, 53, 64):
        board = begun("race", width=2, id="k" * length)
        assert len(board.parts[1].id) <= 64
    assert part_id("a" * 64, 1) != part_id("a" * 63 + "b", 1)


# ---------------------------------------------------------------------- anything, at any time


class CompositeMachine(RuleBasedStateMachine):
    """A composite that hears anything at any time. Its parts are auctioned elsewhere: each has a journal, which it is
    told of later, and whoever takes the task over is told of from the start."""

    @initialize(kind=st.sampled_from(KINDS), width=st.integers(1, 4), check=st.booleans(), budget=st.integers(0, 50))
    def begin(self, kind: Kind, width: int, check: bool, budget: int) -> None:
        workers = tuple("wvux"[:width]) if kind == "cascade" else ()
        strategy = Strategy(kind=kind, check="check.it" if check else None)
        self.board = Board(kind, *workers, width=width, stored=False, budget=budget, strategy=strategy)
        self.published: dict[int, Task] = {}
        self.happened: dict[int, list[Awarded | Final]] = {}
        self.told: dict[int, int] = {}
        self._see(self.board.begin())

    def _see(self, commands: Sequence[Command]) -> None:
        for number, task in self.board.parts.items():
            assert self.published.setdefault(number, task).id == task.id
        for final in [c.entry for c in commands if isinstance(c, Write) and isinstance(c.entry, Final)]:
            assert final.held is None
            assert {self.published[n].id for n in self._running} <= set(self.board.cancelled), "each is cancelled"
            assert final.price is None or final.price <= self.board.task.budget

    def _final_of(self, number: int) -> Final | None:
        return next((one for one in self.happened.get(number, ()) if isinstance(one, Final)), None)

    @property
    def _running(self) -> list[int]:
        return [number for number in self.published if self._final_of(number) is None]

    @property
    def _news(self) -> list[int]:
        return [n for n in self.board.parts if len(self.happened.get(n, ())) > self.told.get(n, 0)]

    @precondition(lambda self: self.board.outstanding)
    @rule(lost=st.booleans())
    def journal_answers(self, lost: bool) -> None:
        self._see(self.board.store(lost=lost))

    @precondition(lambda self: not self.board.finals)
    @rule(told=st.booleans())
    def owner_cancels(self, told: bool) -> None:
        if told:
            self._see(self.board.cancel())
        else:
            self.board.append(CancelAsked(task="k"))

    @precondition(lambda self: self._running)
    @rule(data=st.data(), worker=st.sampled_from("wvux"))
    def part_is_awarded(self, data: st.DataObject, worker: str) -> None:
        number = data.draw(st.sampled_from(self._running))
        entry = Awarded(task="p", attempt=1, worker=worker, owner=f"owner-of-{worker}", price=1, negotiator="n9")
        self.happened.setdefault(number, []).append(entry)

    @precondition(lambda self: self._running)
    @rule(
        data=st.data(),
        worker=st.sampled_from("wvux"),
        text=st.sampled_from("ab"),
        sure=st.sampled_from([None, 0.1, 0.9]),
        passed=st.sampled_from([None, True, False]),
        status=st.sampled_from(["completed", "completed", "failed", "expired", "cancelled"]),
        share=st.floats(0, 1),
    )
    def part_ends(
        self,
        data: st.DataObject,
        worker: str,
        text: str,
        sure: float | None,
        passed: bool | None,
        status: Literal["completed", "failed", "expired", "cancelled"],
        share: float,
    ) -> None:
        number = data.draw(st.sampled_from(self._running))
        price = int(share * self.published[number].budget)
        output = {"text": text, "confidence": sure, "passed": passed}
        final = ended(part_id("k", number), worker, output, status=status, price=price)
        self.happened.setdefault(number, []).append(final)

    @precondition(lambda self: self._news)
    @rule(data=st.data(), twice=st.booleans())
    def part_has_news(self, data: st.DataObject, twice: bool) -> None:
        number = data.draw(st.sampled_from(self._news))
        at = self.told.get(number, 0)
        self.told[number] = at + 1
        entry, board = self.happened[number][at], self.board
        for _ in range(1 + twice):
            if isinstance(entry, Final):
                self._see(board.take(board.composite.on_part_ended(number, entry, board.now)))
            else:
                self._see(board.award(number, entry.worker))

    @rule(worker=st.sampled_from("wvux"))
    def worker_is_lost(self, worker: str) -> None:
        self._see(self.board.take(self.board.composite.on_worker_lost(worker, self.board.now)))

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.board.now += seconds

    @precondition(lambda self: len(self.published) > 1)
    @rule(how=st.sampled_from(["client", "deadline", "refused"]))
    def it_is_over(self, how: str) -> None:
        board = self.board
        if how == "client":
            self._see(board.take(board.composite.on_client_gone(board.now)))
        elif how == "deadline":
            self._see(board.take(board.composite.on_timer("deadline", "", board.now)))
        else:
            self._see(board.take(board.composite.on_part_refused(1, ErrorInfo(code="too_large"), board.now)))

    @precondition(lambda self: self.published)
    @rule()
    def another_takes_over(self) -> None:
        """The first one is dead: nothing that it has not written counts."""
        old = self.board
        self.board = heir = Board("race", width=9, journal=old.journal, stored=False, negotiator="n2", **of(old.task))
        heir.now, heir.cancelled = old.now, list(old.cancelled)
        self.told = {}
        self._see(heir.begin())
        if heir.finals:
            assert {self.published[number].id for number in self._running} <= set(heir.cancelled)

    @invariant()
    def one_final(self) -> None:
        assert len(self.board.finals) <= 1
        assert not self.board.finals or isinstance(self.board.journal[-1][1], Final)

    @invariant()
    def within_budget(self) -> None:
        finals = [final for number in self.published if (final := self._final_of(number)) is not None]
        paid = sum(final.price or 0 for final in finals)
        assert paid + sum(self.published[number].budget for number in self._running) <= self.board.task.budget

    def teardown(self) -> None:
        """Whatever happened, the deadline ends it."""
        if not hasattr(self, "board"):
            return
        self._see(self.board.take(self.board.composite.on_timer("deadline", "", self.board.now)))
        for _ in range(20):
            if self.board.outstanding is not None:
                self.journal_answers(lost=False)
        assert self.board.state is State.DONE
        assert len(self.board.finals) == 1


TestComposite = CompositeMachine.TestCase
TestComposite.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
