"""The reader of one task's stream: what arrives late, twice or in any order comes out once and in order. Pure.

It accepts events of the (worker, attempt) pairs that stand in the journal and of no others, orders them by number,
drops repeats, holds back what follows a gap, and ends with the Final.
"""

from __future__ import annotations

from typing import Any

from modelnet.messages import (
    Awarded,
    CancelAsked,
    Delta,
    Failure,
    Final,
    JournalEntry,
    Output,
    Progress,
    Reset,
    Waiting,
)

__all__ = ["Reader", "StreamEvent"]

Numbered = Delta | Progress | Output | Failure
StreamEvent = Numbered | Reset | Awarded | Waiting | Final
"""What a stream yields: result events in order, `Reset` when what was shown is void, and the journal's news."""


class Reader:
    """Feed it entries and events; each call returns what is now due to be shown."""

    def __init__(self) -> None:
        self._attempt: Awarded | None = None
        self._shown = 0
        self._held: dict[tuple[str, int], dict[int, Numbered]] = {}
        self._waiting: Waiting | None = None
        self._final: Final | None = None
        self._parts: list[str] = []
        self.done = False

    @property
    def text(self) -> str:
        """The text so far: always right, whatever was reset."""
        return "".join(self._parts)

    @property
    def missing(self) -> bool:
        """Whether the Final is known but events before it are not."""
        return self._final is not None and not self.done

    def entry(self, entry: JournalEntry) -> list[StreamEvent]:
        """A journal entry, in the journal's order; repeats are harmless."""
        if self.done or isinstance(entry, CancelAsked):
            return []
        if isinstance(entry, Final):
            self._final = entry
            return self._due()
        if isinstance(entry, Waiting):
            news, self._waiting = entry != self._waiting, entry
            return [entry] if news else []
        if self._attempt is not None and entry.attempt <= self._attempt.attempt:
            return []
        out: list[StreamEvent] = [entry]
        if self._shown > entry.from_number:
            out.append(
                Reset(
                    task=entry.task,
                    attempt=entry.attempt,
                    worker=entry.worker,
                    number=entry.from_number + 1,
                    to=entry.from_number,
                )
            )
            self._parts.clear()
        self._attempt, self._shown = entry, entry.from_number
        self._held = {key: held for key, held in self._held.items() if key[1] >= entry.attempt}
        return out + self._due()

    def event(self, event: Numbered) -> list[StreamEvent]:
        """A result event, from anywhere, in any order."""
        current = self._attempt
        if self.done or (current is not None and event.attempt < current.attempt):
            return []
        if current is not None and event.attempt == current.attempt:
            repeat = event.number <= self._shown
            if repeat or event.worker != current.worker:
                return []
        self._held.setdefault((event.worker, event.attempt), {}).setdefault(event.number, event)
        return self._due()

    def give_up(self) -> list[StreamEvent]:
        """The Final, though events before it cannot be had any more: it carries the whole output."""
        if self._final is None or self.done:
            return []
        self.done = True
        return [self._final]

    def _due(self) -> list[StreamEvent]:
        out: list[StreamEvent] = []
        if self._attempt is not None:
            held = self._held.get((self._attempt.worker, self._attempt.attempt), {})
            while (event := held.pop(self._shown + 1, None)) is not None:
                self._shown += 1
                out.append(event)
                if isinstance(event, Delta):
                    self._parts.append(event.text)
        if self._final is not None and self._complete(self._final):
            self.done = True
            out.append(self._final)
        return out

    def _complete(self, final: Final) -> bool:
        if final.number is None:
            return True
        # The award of the accepted attempt may still be missing: what was shown is then another attempt's.
        attempt = self._attempt.attempt if self._attempt else None
        return attempt == final.attempt and self._shown >= final.number - 1

    def state(self) -> dict[str, Any]:
        """For error messages: how far the stream has come."""
        return {"shown": self._shown, "attempt": self._attempt.attempt if self._attempt else None}
