"""The reader of one task's stream: what arrives late, twice or in any order comes out once and in order. Pure.

It accepts events of the awards that stand in the journal and of no others, orders them by number, drops repeats, holds
back what follows a gap, and ends with the Final.

An attempt that continues another starts behind a number of it. So each number belongs to the newest attempt that
starts below it: an older one's events above that are void, those up to it stand.
"""

from __future__ import annotations

from typing import NamedTuple

from modelnet.messages import (
    Awarded,
    CancelAsked,
    Delta,
    Failure,
    Final,
    JournalEntry,
    Output,
    Planned,
    Progress,
    Reset,
    Waiting,
)

__all__ = ["Position", "Reader", "StreamEvent"]

Numbered = Delta | Progress | Output | Failure
StreamEvent = Numbered | Reset | Planned | Awarded | Waiting | Final
"""What a stream yields: result events in order, `Reset` when what was shown is void, and the journal's news."""


_Source = tuple[str, int, str | None]


def _source(message: Numbered | Awarded) -> _Source:
    return message.worker, message.attempt, message.auction


class Position(NamedTuple):
    """How far a reader has come."""

    attempt: int
    """The newest attempt it has heard of."""
    number: int


class Reader:
    """Feed it entries and events; each call returns what is now due to be shown."""

    def __init__(self, after: Position | None = None) -> None:
        """`after`: what has been shown before, by another reader: it is not shown again."""
        self._lineage: list[Awarded] = []
        self._position = 0
        self._known, self._told = after or Position(0, 0)
        self._held: dict[_Source, dict[int, Numbered]] = {}
        self._unannounced: list[Awarded] = []
        self._waiting: Waiting | None = None
        self._planned: Planned | None = None
        self._final: Final | None = None
        self._parts: list[tuple[int, str]] = []
        self.done = False

    @property
    def text(self) -> str:
        """The text so far, of the first answer where there are several: always right, whatever was reset."""
        return "".join(text for _, text in self._parts)

    @property
    def position(self) -> int:
        """Number of the last event behind which nothing is missing."""
        return self._position

    @property
    def attempt(self) -> int:
        """The newest attempt heard of; 0 for none."""
        return self._lineage[-1].attempt if self._lineage else 0

    @property
    def missing(self) -> bool:
        """Whether there must be events that have not come: of a number below one that is known."""
        if self.done:
            return False
        if self._final is not None or (self._lineage and self._lineage[-1].from_number > self._position):
            return True
        return any(self._held.get(_source(award)) for award in self._lineage)

    @property
    def final(self) -> Final | None:
        """The Final, once it is known, shown or not."""
        return self._final

    def entry(self, entry: JournalEntry) -> list[StreamEvent]:
        """A journal entry. They must come in the journal's order and without a gap; repeats are harmless."""
        if self.done or isinstance(entry, CancelAsked):
            return []
        if isinstance(entry, Final):
            self._final = entry
            return self._due()
        if isinstance(entry, Planned):
            news, self._planned = entry != self._planned, entry
            return [entry] if news else []
        if isinstance(entry, Waiting):
            news, self._waiting = entry != self._waiting, entry
            return [entry] if news else []
        if entry.attempt <= self.attempt:
            return []
        self._lineage.append(entry)
        return [*self._begin(entry), *self._due()]

    def _begin(self, award: Awarded) -> list[StreamEvent]:
        """A newer attempt: what was said above its start is void."""
        start = award.from_number
        self._position = min(self._position, start)
        while self._parts and self._parts[-1][0] > start:
            self._parts.pop()
        for (_, attempt, _), held in self._held.items():
            if attempt < award.attempt:
                for number in [number for number in held if number > start]:
                    del held[number]
        if award.attempt <= self._known:
            return []
        self._unannounced.append(award)
        out: list[StreamEvent] = [*self._announce()]
        if self._told > start:
            who = {"task": award.task, "attempt": award.attempt, "worker": award.worker}
            out.append(Reset(**who, number=start + 1, to=start))
            self._told = start
        return out

    def _announce(self) -> list[Awarded]:
        """Attempts are shown in order, each once all is there that it stands on."""
        ready = [
            at for at, award in enumerate(self._unannounced, 1) if award.from_number <= max(self._position, self._told)
        ]
        count = ready[-1] if ready else 0
        due, self._unannounced = self._unannounced[:count], self._unannounced[count:]
        return due

    def event(self, event: Numbered) -> list[StreamEvent]:
        """A result event, from anywhere, in any order."""
        if self.done:
            return []
        if event.attempt <= self.attempt and (event.number <= self._position or self._void(event)):
            return []
        self._held.setdefault(_source(event), {}).setdefault(event.number, event)
        return self._due()

    def _void(self, event: Numbered) -> bool:
        """Whether a known attempt is not this one, or a newer one has put an end to it before this number."""
        return any(
            award.from_number < event.number
            if award.attempt > event.attempt
            else award.attempt == event.attempt and (award.worker != event.worker or event.number <= award.from_number)
            for award in self._lineage
        )

    def _owner(self, number: int) -> Awarded | None:
        """The newest attempt that starts below a number."""
        for award in reversed(self._lineage):
            if award.from_number < number:
                return award
        return None

    def give_up(self) -> list[StreamEvent]:
        """The Final, though events before it cannot be had any more: it carries the whole output."""
        if self._final is None or self.done:
            return []
        self.done = True
        return [self._final]

    def _due(self) -> list[StreamEvent]:
        out: list[StreamEvent] = []
        ended = self._final is not None and self._final.attempt is None  # without an attempt of its own
        if self.attempt < self._known and not ended:
            return out  # what stands is not known before the attempts are that were known when it was shown
        while (owner := self._owner(self._position + 1)) is not None:
            event = self._held.get(_source(owner), {}).pop(self._position + 1, None)
            if event is None:
                break
            self._position += 1
            if isinstance(event, Delta) and event.index == 0:
                self._parts.append((event.number, event.text))
            if event.number > self._told:
                self._told = event.number
                out.append(event)
            out += self._announce() if self._unannounced else ()
        if self._final is not None and self._complete(self._final):
            self.done = True
            out.append(self._final)
        return out

    def _complete(self, final: Final) -> bool:
        if final.number is None:
            return True
        # The award of the accepted attempt may still be missing: what was shown is then another attempt's.
        return self.attempt == final.attempt and self._position >= final.number - 1
