"""Telling: what of a task's stream may still be told to a client from whom nothing can be taken back. Pure.

The network takes text back when an attempt breaks off and the next begins anew. A client that has it already is told
the new attempt's text from where it goes on behind what was told, and an error where it says something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelnet.messages import Delta, Reset, TokenLogprob, ToolCallPart
from modelnet.reader import StreamEvent

from .refusal import Refusal

__all__ = ["Piece", "Telling"]


@dataclass(frozen=True, slots=True)
class Piece:
    """More of one answer."""

    index: int
    text: str = ""
    logprobs: Sequence[TokenLogprob] | None = None
    tool_calls: Sequence[ToolCallPart] = ()


@dataclass(slots=True)
class _Answer:
    """What was told of one answer."""

    told: list[tuple[int, str]] = field(default_factory=list)
    """Text, by number of its event, of attempts that stand."""
    owed: str = ""
    """Text that was told and taken back: what comes next must say the same."""
    marked: int = 0
    """Number of the last event that told log probabilities."""
    called: int = 0
    """Number of the last event that told a call."""

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.told)


class Telling:
    """Feed it a task's events, and in the end its output."""

    def __init__(self) -> None:
        self._answers: dict[int, _Answer] = {}

    def hear(self, event: StreamEvent) -> Piece | None:
        """What is to be told now. Raises `Refusal` if what was told turns out to be void."""
        if isinstance(event, Delta):
            return self._go_on(event)
        if isinstance(event, Reset):
            for answer in self._answers.values():
                self._take_back(answer, event.to)
        return None

    def end(self, output: Mapping[str, Any]) -> list[Piece]:
        """What was not told yet of the answers that stand."""
        return list(self._rest(output.get("choices") or [output]))

    def _go_on(self, event: Delta) -> Piece | None:
        answer = self._answers.setdefault(event.index, _Answer())
        answer.told.append((event.number, event.text))
        text, known = event.text, min(len(event.text), len(answer.owed))
        if known or answer.owed:
            if text[:known] != answer.owed[:known]:
                raise _void()
            text, answer.owed = text[known:], answer.owed[known:]
        if event.logprobs:
            answer.marked = event.number
        if event.tool_calls:
            answer.called = event.number
        if not (text or event.logprobs or event.tool_calls):
            return None
        return Piece(event.index, text, event.logprobs, event.tool_calls)

    def _take_back(self, answer: _Answer, to: int) -> None:
        if answer.called > to or answer.marked > to:
            raise _void()
        answer.owed = "".join(text for number, text in answer.told if number > to) + answer.owed
        answer.told = [(number, text) for number, text in answer.told if number <= to]

    def _rest(self, choices: Sequence[Mapping[str, Any]]) -> Iterable[Piece]:
        for index, choice in enumerate(choices):
            answer = self._answers.get(index, _Answer())
            shown, said = answer.text + answer.owed, str(choice.get("text") or "")
            if answer.owed and not said.startswith(shown):
                raise _void()
            # Without a reset the deltas stand, even if a worker's output words them otherwise.
            text = said[len(shown) :] if said.startswith(shown) else ""
            calls = (
                [] if answer.called else [_whole(at, call) for at, call in enumerate(choice.get("tool_calls") or ())]
            )
            marks = None if answer.marked else [TokenLogprob(**one) for one in choice.get("logprobs") or ()]
            if text or calls or marks:
                yield Piece(index, text, marks or None, calls)


def _whole(position: int, call: Mapping[str, Any]) -> ToolCallPart:
    return ToolCallPart(position=position, id=call["id"], name=call["name"], arguments=call["arguments"])


def _void() -> Refusal:
    return Refusal(
        502,
        "stream_reset",
        "the worker was lost, and another one answers otherwise than what was streamed so far: ask again",
    )
