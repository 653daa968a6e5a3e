"""The reader: whatever order its messages come in, and however often, a stream is shown once and in order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelnet.messages import (
    Awarded,
    CancelAsked,
    Delta,
    ErrorInfo,
    Failure,
    Final,
    JournalEntry,
    Output,
    Planned,
    Progress,
    Reset,
    Timings,
    Waiting,
    digest_of,
)
from modelnet.reader import Position, Reader, StreamEvent

WAITING = Waiting(task="k", reason="busy", negotiator="n")
Numbered = Delta | Progress | Output | Failure


def awarded(attempt: int = 1, worker: str = "w", from_number: int = 0) -> Awarded:
    return Awarded(task="k", attempt=attempt, worker=worker, price=1, from_number=from_number, negotiator="n")


def delta(number: int, attempt: int = 1, worker: str = "w", text: str | None = None) -> Delta:
    said = f"{worker}{number} " if text is None else text
    return Delta(task="k", attempt=attempt, worker=worker, number=number, text=said)


def output(number: int, attempt: int = 1, worker: str = "w") -> Output:
    value = {"y": number}
    return Output(task="k", attempt=attempt, worker=worker, number=number, output=value, digest=digest_of(value))


def failure(number: int, attempt: int = 1, worker: str = "w") -> Failure:
    return Failure(task="k", attempt=attempt, worker=worker, number=number, error=ErrorInfo(code="worker_error"))


def final(number: int | None, attempt: int | None = 1, worker: str | None = "w", **given: Any) -> Final:
    zero = Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0)
    fields = {"status": "completed", "worker": worker, "attempt": attempt, "number": number, **given}
    return Final(task="k", tenant="t", capability="a", negotiator="n", timings=zero, **fields)


def feed(reader: Reader, *found: Numbered | JournalEntry) -> list[StreamEvent]:
    shown: list[StreamEvent] = []
    for message in found:
        if isinstance(message, Delta | Progress | Output | Failure):
            shown += reader.event(message)
        else:
            shown += reader.entry(message)
    return shown


def test_a_stream_in_order() -> None:
    reader, progress = Reader(), Progress(task="k", attempt=1, worker="w", number=2)
    assert feed(reader, awarded(), delta(1), progress, delta(3)) == [awarded(), delta(1), progress, delta(3)]
    assert reader.text == "w1 w3 "
    assert not reader.done
    assert feed(reader, output(4), final(5)) == [output(4), final(5)]
    assert reader.done
    assert not reader.missing


def test_events_wait_for_their_award() -> None:
    reader = Reader()
    assert feed(reader, delta(2), delta(1)) == []
    assert reader.text == ""
    assert feed(reader, awarded()) == [awarded(), delta(1), delta(2)]


def test_what_follows_a_gap_is_held_back() -> None:
    reader = Reader()
    assert feed(reader, awarded(), delta(1), delta(3), delta(4)) == [awarded(), delta(1)]
    assert feed(reader, delta(2)) == [delta(2), delta(3), delta(4)]


def test_repeats_are_dropped() -> None:
    reader = Reader()
    shown = feed(reader, awarded(), awarded(), delta(1), delta(1), delta(3), delta(3), delta(2), delta(1), delta(3))
    assert shown == [awarded(), delta(1), delta(2), delta(3)]
    assert reader.text == "w1 w2 w3 "


def test_of_two_events_of_one_number_the_first_counts() -> None:
    reader = Reader()
    feed(reader, awarded(), delta(2, text="a"), delta(2, text="b"), delta(1, text="c"))
    assert reader.text == "ca"


def test_a_new_attempt_resets_what_was_shown() -> None:
    reader = Reader()
    feed(reader, awarded(), delta(1), delta(2))
    shown = feed(reader, awarded(2, "v"))
    assert shown == [awarded(2, "v"), Reset(task="k", attempt=2, worker="v", number=1, to=0)]
    assert reader.text == ""
    assert feed(reader, delta(3), delta(1, 2, "v")) == [delta(1, 2, "v")]
    assert reader.text == "v1 "


def test_nothing_shown_nothing_reset() -> None:
    reader = Reader()
    assert feed(reader, awarded(), awarded(2, "v"), delta(1, 2, "v")) == [
        awarded(),
        awarded(2, "v"),
        delta(1, 2, "v"),
    ]


def test_an_older_award_changes_nothing() -> None:
    reader = Reader()
    feed(reader, awarded(2, "v"), delta(1, 2, "v"))
    assert feed(reader, awarded(1, "w"), delta(1, 1, "w"), delta(2, 1, "w")) == []
    assert feed(reader, delta(2, 2, "v")) == [delta(2, 2, "v")]


def test_only_the_worker_that_was_awarded_is_heard() -> None:
    reader = Reader()
    forged: list[Numbered] = [delta(1, 1, "z"), delta(1, 2, "z"), delta(1, 9, "w"), output(1, 1, "z")]
    assert feed(reader, *forged, awarded(), *forged) == [awarded()]
    assert feed(reader, delta(1), *forged, delta(2)) == [delta(1), delta(2)]
    assert feed(reader, awarded(2, "v"), *forged)[0] == awarded(2, "v")
    assert reader.text == ""


def test_a_final_waits_for_missing_events() -> None:
    reader = Reader()
    assert feed(reader, awarded(), delta(1), final(4)) == [awarded(), delta(1)]
    assert reader.missing
    assert not reader.done
    assert feed(reader, output(3)) == []
    assert feed(reader, delta(2)) == [delta(2), output(3), final(4)]
    assert reader.done
    assert not reader.missing


def test_a_final_waits_for_the_award_of_the_accepted_attempt() -> None:
    reader = Reader()
    feed(reader, awarded(), delta(1), delta(2), delta(3))
    assert feed(reader, final(3, 2, "v")) == []  # three were shown, but of another attempt
    assert reader.missing
    shown = feed(reader, awarded(2, "v"), delta(1, 2, "v"), output(2, 2, "v"))
    assert [type(event) for event in shown] == [Awarded, Reset, Delta, Output, Final]
    assert reader.text == "v1 "


def test_a_final_without_an_accepted_attempt_comes_at_once() -> None:
    reader = Reader()
    feed(reader, awarded(), delta(1))
    cancelled = final(None, status="cancelled")
    assert feed(reader, CancelAsked(task="k"), cancelled) == [cancelled]


def test_a_final_after_a_failure_waits_for_it() -> None:
    reader = Reader()
    failed = final(3, status="failed")
    assert feed(reader, awarded(), delta(1), failed) == [awarded(), delta(1)]
    assert feed(reader, failure(2)) == [failure(2), failed]


def test_nothing_follows_the_final() -> None:
    reader = Reader()
    feed(reader, awarded(), output(1), final(2))
    assert feed(reader, final(2), awarded(2, "v"), delta(1, 2, "v"), WAITING, delta(2)) == []
    assert reader.give_up() == []


def test_giving_up_shows_the_final_alone() -> None:
    reader = Reader()
    assert reader.give_up() == []
    feed(reader, awarded(), delta(2), final(4))
    assert reader.give_up() == [final(4)]
    assert reader.done
    assert reader.give_up() == []
    assert feed(reader, delta(1)) == []


def test_waits_are_told_once_each() -> None:
    reader, other = Reader(), Waiting(task="k", reason="no_bids", negotiator="n")
    assert feed(reader, WAITING, WAITING, other, awarded(), other) == [WAITING, other, awarded()]


def test_it_tells_how_far_it_came() -> None:
    reader = Reader()
    assert (reader.attempt, reader.position) == (0, 0)
    feed(reader, awarded(), delta(1), delta(3))
    assert (reader.attempt, reader.position) == (1, 1)
    assert reader.missing


# ---------------------------------------------------------------------- an attempt that goes on behind another


def test_what_is_continued_stands() -> None:
    reader = Reader()
    assert feed(reader, awarded(), delta(1), delta(2), awarded(2, "v", 2), delta(3, 2, "v"))[2:] == [
        delta(2),
        awarded(2, "v", 2),
        delta(3, 2, "v"),
    ]
    assert reader.text == "w1 w2 v3 "
    assert feed(reader, delta(3), delta(4), output(4, 2, "v"), final(5, 2, "v")) == [
        output(4, 2, "v"),
        final(5, 2, "v"),
    ]


def test_only_what_is_above_the_start_is_void() -> None:
    reader = Reader()
    shown = feed(reader, awarded(), delta(1), delta(2), delta(3), awarded(2, "v", 1))
    assert shown[-1] == Reset(task="k", attempt=2, worker="v", number=2, to=1)
    assert reader.text == "w1 "
    assert feed(reader, delta(2, 2, "v")) == [delta(2, 2, "v")]
    assert reader.text == "w1 v2 "


def test_a_reader_behind_is_given_the_older_attempts_events_up_to_the_start() -> None:
    reader = Reader()
    assert feed(reader, awarded(), delta(1), awarded(2, "v", 3), delta(4, 2, "v"))[-1] == delta(1)
    assert reader.missing
    assert feed(reader, delta(4), delta(3), delta(2)) == [delta(2), delta(3), awarded(2, "v", 3), delta(4, 2, "v")]
    assert not reader.missing


def test_a_reader_goes_on_where_another_stopped() -> None:
    reader = Reader(Position(1, 2))
    assert feed(reader, awarded(), delta(1), delta(2), delta(3)) == [delta(3)]
    assert reader.text == "w1 w2 w3 "
    assert feed(reader, awarded(2, "v", 3), delta(4, 2, "v")) == [awarded(2, "v", 3), delta(4, 2, "v")]


def test_a_reader_that_was_away_learns_what_became_void() -> None:
    """It had four events; of the third and fourth nothing is left, not even in the stream."""
    reader = Reader(Position(1, 4))
    reset = Reset(task="k", attempt=2, worker="v", number=3, to=2)
    assert feed(reader, awarded(), delta(1), delta(2), awarded(2, "v", 2)) == [awarded(2, "v", 2), reset]
    assert feed(reader, delta(3, 2, "v")) == [delta(3, 2, "v")]


# ---------------------------------------------------------------------- any order, any number of times


def interleaved(draw: st.DrawFn, journal: list[JournalEntry], events: list[Numbered]) -> list[Numbered | JournalEntry]:
    """The entries in their order and the events in any, each at least once, repeats anywhere after the first."""
    messages: list[Numbered | JournalEntry] = list(draw(st.permutations(events)))
    messages += draw(st.lists(st.sampled_from(events), max_size=len(events)))
    place = 0
    for entry in journal:
        place = draw(st.integers(place, len(messages)))
        messages.insert(place, entry)
        place += 1
    for _ in range(draw(st.integers(0, 3))):  # a reader that fills a gap is given the journal from its beginning
        place = draw(st.integers(place, len(messages)))
        messages[place:place] = journal
    return messages


@given(st.data())
def test_any_order_of_one_attempt_shows_the_same(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    events: list[Numbered] = [*(delta(n) for n in range(1, count)), output(count)]
    noise: list[Numbered] = [delta(n, attempt, "z") for n in (1, 2) for attempt in (1, 2)]
    end = final(count + 1)

    @st.composite
    def histories(draw: st.DrawFn) -> list[Numbered | JournalEntry]:
        return interleaved(draw, [awarded(), end], [*events, *noise])

    reader = Reader()
    assert feed(reader, *data.draw(histories())) == [awarded(), *events, end]
    assert reader.done


class History:
    """Attempts of random length, each from a random number of what stands; and what stands at the end."""

    def __init__(self, data: st.DataObject) -> None:
        workers = data.draw(st.lists(st.sampled_from("wvu"), min_size=1, max_size=4))
        self.journal: list[JournalEntry] = []
        self.events: list[Numbered] = []
        self.standing: list[Numbered] = []
        for attempt, worker in enumerate(workers, 1):
            start = data.draw(st.integers(0, len(self.standing)))
            self.journal.append(awarded(attempt, worker, start))
            said: list[Numbered] = [
                delta(start + n, attempt, worker, text=f"{attempt}.{n} ")
                for n in range(1, data.draw(st.integers(1, 4)))
            ]
            self.events += said
            self.standing = [*self.standing[:start], *said]
        answer = output(len(self.standing) + 1, len(workers), workers[-1])
        self.end = final(answer.number + 1, len(workers), workers[-1])
        self.events.append(answer)
        self.standing.append(answer)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.standing if isinstance(event, Delta))

    def told(self, data: st.DataObject) -> list[Numbered | JournalEntry]:
        """All of it, in some order."""

        @st.composite
        def histories(draw: st.DrawFn) -> list[Numbered | JournalEntry]:
            return interleaved(draw, [*self.journal, self.end], self.events)

        return data.draw(histories())


def follow(standing: list[Numbered], shown: list[StreamEvent]) -> list[Numbered]:
    """What stands for somebody who keeps what is shown, and obeys resets; numbers have no gap and no repeat."""
    standing = list(standing)
    for event in shown:
        if isinstance(event, Reset):
            del standing[event.to :]
        elif not isinstance(event, Awarded | Planned | Waiting | Final):
            assert event.number == len(standing) + 1
            standing.append(event)
    return standing


@given(st.data())
def test_any_order_of_several_attempts_leaves_the_same(data: st.DataObject) -> None:
    """How much of a void attempt is seen depends on the order; what stands after the resets does not."""
    history, reader = History(data), Reader()
    shown = feed(reader, *history.told(data))
    assert follow([], shown) == history.standing
    assert shown[-1] == history.end
    assert reader.text == history.text
    assert reader.done


@given(st.data())
def test_a_reader_that_was_cut_off_anywhere_goes_on_without_a_gap_or_a_repeat(data: st.DataObject) -> None:
    history, first = History(data), Reader()
    told = history.told(data)
    cut = data.draw(st.integers(0, len(told)))
    before = follow([], feed(first, *told[:cut]))
    second = Reader(Position(first.attempt, first.position))
    after = feed(second, *history.told(data))
    assert follow(before, after) == history.standing
    assert after[-1:] == ([] if first.done else [history.end]) or first.done
    assert second.text == history.text


PLANNED = Planned(task="k", strategy="panel", width=3, why="panel of 3: asked for", negotiator="n")


def test_a_task_of_parts_has_a_plan_and_an_end() -> None:
    reader, end = Reader(), final(None, attempt=None)
    assert feed(reader, PLANNED, PLANNED, end) == [PLANNED, end]
    assert reader.done


def test_whoever_resumes_a_task_of_parts_gets_its_end() -> None:
    """It has no attempts of its own to wait for."""
    reader, end = Reader(after=Position(1, 0)), final(None, attempt=None)
    assert feed(reader, PLANNED, end)[-1] == end
    assert reader.done
