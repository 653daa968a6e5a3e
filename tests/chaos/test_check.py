"""The campaign's own judgements: a gap, a repeat, a second end and a wrong text are found."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.messages import Delta, Final, Output, Reset, Timings, digest_of
from modelnet.reader import StreamEvent
from tests.chaos.check import StreamCheck

BY: dict[str, Any] = {"task": "t", "attempt": 1, "worker": "w"}


def delta(number: int, text: str) -> Delta:
    return Delta(**BY, number=number, text=text)


def output(number: int, text: str) -> Output:
    return Output(**BY, number=number, output={"text": text}, digest=digest_of({"text": text}))


def reset(to: int) -> Reset:
    return Reset(**BY, number=to + 1, to=to)


def final(number: int, text: str) -> Final:
    return Final(
        task="t",
        tenant="t",
        capability="chaos.story",
        status="completed",
        output={"text": text},
        number=number,
        negotiator="n",
        timings=Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0),
    )


GOOD: list[StreamEvent] = [delta(1, "a"), delta(2, "b"), output(3, "ab"), final(4, "ab")]
STREAMS: dict[str, tuple[list[StreamEvent], str | None]] = {
    "whole": ([*GOOD], None),
    "from the start again": ([delta(1, "x"), reset(0), *GOOD], None),
    "continued": ([delta(1, "a"), delta(2, "x"), reset(1), *GOOD[1:]], None),
    "gap": ([GOOD[0], *GOOD[2:]], "gap: output 3 after 1"),
    "gap at the end": ([*GOOD[:2], final(4, "ab")], "gap: Final 4 after 2"),
    "repeat": ([*GOOD[:2], *GOOD[1:]], "repeat: delta 2 after 2"),
    "two ends": ([*GOOD, GOOD[-1]], "final after the Final"),
    "reset to what was not shown": ([GOOD[0], reset(5)], "reset to 5, but only 1 were shown"),
    "another text": ([*GOOD[:2], output(3, "ab"), final(4, "ac")], "the text streamed is not the text of the output"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_is_wrong_with_a_stream_is_found(name: str) -> None:
    events, problem = STREAMS[name]
    check = StreamCheck()
    for event in events:
        check.see(event, _text(events))
    assert check.problems[:1] == ([problem] if problem else [])


def _text(events: list[StreamEvent]) -> str:
    """What a right text view shows at the end."""
    check = StreamCheck()
    for event in events:
        check.see(event, "")
    return check.text


def test_a_text_view_that_is_wrong_at_the_end_is_found() -> None:
    check = StreamCheck()
    for event in GOOD:
        check.see(event, "a")
    assert check.problems == ["the text view shows 1 characters, the events 2"]
