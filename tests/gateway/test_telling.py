"""What is told of a stream that takes things back, to a client from whom nothing can be taken back."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.messages import Delta, Reset, TokenLogprob, ToolCallPart
from workers.gateway.refusal import Refusal
from workers.gateway.telling import Piece, Telling

CALL = ToolCallPart(position=0, id="c", name="f", arguments="{}")
MARK = TokenLogprob(token="a", logprob=-1.0)


def delta(number: int, text: str, attempt: int = 1, **more: Any) -> Delta:
    """More text."""
    return Delta(task="t", attempt=attempt, worker="w", number=number, text=text, **more)


def reset(to: int) -> Reset:
    """All above is void."""
    return Reset(task="t", attempt=2, worker="w", number=to + 1, to=to)


def told(telling: Telling, *events: Delta | Reset) -> str:
    """The text that a client has seen."""
    return "".join(piece.text for event in events if (piece := telling.hear(event)) is not None)


def output(text: str, **more: Any) -> dict[str, Any]:
    """An answer."""
    return {"text": text, "finish_reason": "stop", **more}


def test_text_is_told_as_it_comes_and_the_end_adds_what_was_not() -> None:
    telling = Telling()
    assert told(telling, delta(1, "one "), delta(2, "two")) == "one two"
    assert telling.end(output("one two")) == []
    assert telling.end(output("one two three")) == [Piece(0, " three", None, [])]
    assert Telling().end(output("all at once")) == [Piece(0, "all at once", None, [])]


@pytest.mark.parametrize("cuts", [(3, 4), (1, 11), (8, 9), (7, 7)])
def test_what_is_said_again_is_told_once_however_it_is_cut(cuts: tuple[int, int]) -> None:
    text = "one two three"
    telling = Telling()
    seen = told(telling, delta(1, "one "), delta(2, "two"), reset(0))
    parts = (text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :])
    seen += told(telling, *(delta(number, part, attempt=2) for number, part in enumerate(parts, 1) if part))
    assert seen == text
    assert telling.end(output(text)) == []


def test_what_stands_below_the_reset_needs_not_be_said_again() -> None:
    telling = Telling()
    assert told(telling, delta(1, "one "), delta(2, "two "), reset(1), delta(2, "two three", 2)) == "one two three"


def test_two_resets_in_a_row() -> None:
    telling = Telling()
    seen = told(telling, delta(1, "one two"), reset(0), delta(1, "one", 2), reset(0), delta(1, "one two three", 3))
    assert seen == "one two three"


def test_another_text_ends_the_stream() -> None:
    telling = Telling()
    told(telling, delta(1, "one "), reset(0))
    with pytest.raises(Refusal) as void:
        telling.hear(delta(1, "other", 2))
    assert (void.value.status, void.value.code) == (502, "stream_reset")


def test_a_shorter_text_ends_the_stream() -> None:
    telling = Telling()
    told(telling, delta(1, "one two"), reset(0), delta(1, "one", 2))
    with pytest.raises(Refusal):
        telling.end(output("one"))


@pytest.mark.parametrize("more", [{"tool_calls": (CALL,)}, {"logprobs": (MARK,)}])
def test_calls_and_marks_that_were_told_cannot_be_void(more: dict[str, Any]) -> None:
    telling = Telling()
    told(telling, delta(1, "", **more))
    assert told(telling, reset(1)) == ""
    with pytest.raises(Refusal):
        telling.hear(reset(0))


def test_calls_and_marks_come_at_the_end_if_they_did_not_before() -> None:
    said = output("a", tool_calls=[{"id": "c", "name": "f", "arguments": "{}"}], logprobs=[MARK.to_dict()])
    assert Telling().end(said) == [Piece(0, "a", [MARK], [CALL])]
    telling = Telling()
    told(telling, delta(1, "a", tool_calls=(CALL,), logprobs=(MARK,)))
    assert telling.end(said) == []


def test_several_answers_are_told_apart() -> None:
    telling = Telling()
    pieces = [telling.hear(delta(1, "a")), telling.hear(delta(2, "b", index=1))]
    assert [(piece.index, piece.text) for piece in pieces if piece] == [(0, "a"), (1, "b")]
    rest = telling.end({**output("a"), "choices": [output("a"), output("b c"), output("d")]})
    assert [(piece.index, piece.text) for piece in rest] == [(1, " c"), (2, "d")]
