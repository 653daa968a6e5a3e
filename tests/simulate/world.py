"""Time, the network and the streams of a simulated network. One seed, one history.

Until `CALM_S` messages are lost, repeated, delayed and overtake one another, and parties crash, freeze and come back.
From then on every message arrives and everybody lives, so every task must end.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count

from modelnet.market import differences
from modelnet.market.scoring import part_payment
from modelnet.market.settlement import payment_differences
from modelnet.messages import (
    Awarded,
    CancelAsked,
    Delta,
    Failure,
    Final,
    JournalEntry,
    Output,
    Task,
    Transcript,
)
from modelnet.reader import Reader, StreamEvent
from tests.simulate.books import Books

__all__ = ["BEAT_S", "CALM_S", "DEADLINE_S", "WORDS", "Party", "World"]

CALM_S = 20.0
DEADLINE_S = 90.0
BEAT_S = 1.0
WORDS = [f"w{n} " for n in range(8)]
"""What the answer to every task is."""

Event = Delta | Output | Failure


class Party:
    """A process: it may be dead, or frozen until some time; what reaches it meanwhile is lost, or waits."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.frozen_until = 0.0

    def reach(self, deliver: Callable[[], None]) -> None:
        """Do something in this process, now or when it thaws."""
        world = self.world
        if self.dead:
            return
        if self.frozen_until > world.now:
            world.at(self.frozen_until - world.now, lambda: self.reach(deliver))
            return
        deliver()

    def receive(self, deliver: Callable[[], None]) -> None:
        """A message arrives."""
        self.reach(deliver)


class World:
    """The clock, the messages on their way, and what the streams hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.hangs = self.random.random() < 0.1
        """Whether handlers may fall silent for ever, and keep their slots until the deadline."""
        self.now = 0.0
        self.ids = count(1)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.tasks: dict[str, Task] = {}
        self.journal: dict[str, list[tuple[int, JournalEntry]]] = {}
        self.results: dict[tuple[str, str, int], list[Event]] = {}
        """By task, worker and attempt."""
        self.taken: set[tuple[str, str, int]] = set()
        """Attempts that a worker confirmed: task, worker and number."""
        self.transcripts: list[Transcript] = []
        self._readers: dict[str, tuple[Reader, list[StreamEvent]]] = {}
        self._read: dict[str, int] = {}
        """How much of the journal each task's reader has."""
        self.on_cancelled: Callable[[str, int], None] = lambda task, sequence: None
        self.books = Books(self.random) if self.random.random() < 0.5 else None
        """The tenant's account, if it is charged."""

    # ------------------------------------------------------------------ time and network

    @property
    def calm(self) -> bool:
        """Whether faults are over."""
        return self.now > CALM_S

    def chance(self, probability: float) -> bool:
        """Whether a fault happens that has this probability before the calm."""
        return not self.calm and self.random.random() < probability

    def at(self, delay_s: float, event: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._agenda, (self.now + delay_s, next(self.ids), event))

    def send(self, receiver: Party | None, deliver: Callable[[], None]) -> None:
        """A message on its way to a party, or to the server."""
        copies = 0 if self.chance(0.1) else 2 if self.chance(0.1) else 1
        for _ in range(copies):
            delay_s = self.random.expovariate(1 / (1.0 if self.chance(0.1) else 0.01))
            self.at(delay_s, deliver if receiver is None else lambda: receiver.receive(deliver))

    def play(self, until_s: float) -> None:
        """Let things happen."""
        while self._agenda and self._agenda[0][0] <= until_s:
            self.now, _, event = heapq.heappop(self._agenda)
            event()

    # ------------------------------------------------------------------ streams

    def submit(self, task: Task) -> None:
        """A client publishes a task, and reads along."""
        self.tasks[task.id], self.journal[task.id] = task, []
        self._readers[task.id], self._read[task.id] = (Reader(), []), 0

    def last(self, task: str) -> int:
        """Sequence of a journal's last entry."""
        return self.journal[task][-1][0] if self.journal[task] else 0

    def append(self, task: str, entry: JournalEntry, expected: int) -> int | None:
        """Store an entry if the last one is the expected one: its sequence."""
        if expected != self.last(task):
            return None
        assert not any(isinstance(found, Final) for _, found in self.journal[task]), "an entry after a Final"
        self.journal[task].append((next(self.ids), entry))
        place = len(self.journal[task])
        self.send(None, lambda: self._show_entry(task, place))
        return self.last(task)

    def store(self, task: str, event: Event) -> None:
        """A worker's event reaches the result stream, and its readers."""
        self.results.setdefault((task, event.worker, event.attempt), []).append(event)
        self.send(None, lambda: self._show_event(task, event))

    def cancel(self, task: str) -> None:
        """The owner's cancel, unless the task has ended."""
        if not self.ended(task):
            sequence = self.append(task, CancelAsked(task=task), self.last(task))
            assert sequence is not None
            self.on_cancelled(task, sequence)

    def ended(self, task: str) -> bool:
        """Whether the task has its Final."""
        return any(isinstance(entry, Final) for _, entry in self.journal[task])

    def _show_event(self, task: str, event: Event) -> None:
        reader, shown = self._readers[task]
        shown += reader.event(event)

    def _show_entry(self, task: str, place: int) -> None:
        """As modelnet/following.py: an entry that is not the next one tells that others were missed."""
        reader, shown = self._readers[task]
        if place == self._read[task] + 1:
            shown += reader.entry(self.journal[task][place - 1][1])
            self._read[task] = place
        elif place > self._read[task]:
            self._read[task] = len(self.journal[task])
            shown += self.fill(task, reader)

    def fill(self, task: str, reader: Reader) -> list[StreamEvent]:
        """Feed a reader all that is stored."""
        shown: list[StreamEvent] = []
        for _, entry in self.journal[task]:
            shown += reader.entry(entry)
        for (found, _, _), events in self.results.items():
            if found == task:
                for event in events:
                    shown += reader.event(event)
        return shown

    # ------------------------------------------------------------------ what must hold

    def check(self) -> None:
        """Every task: one Final, the last word; what readers saw adds up to it."""
        for task in self.tasks:
            self._check_task(task)
            late = Reader()
            self._check_stream(task, late, self.fill(task, late))
            reader, shown = self._readers[task]
            self._check_stream(task, reader, [*shown, *self.fill(task, reader)])

        if self.books is not None:
            self.books.check([entry for journal in self.journal.values() for _, entry in journal])

    def _check_task(self, task: str) -> None:
        entries = [entry for _, entry in self.journal[task]]
        finals = [entry for entry in entries if isinstance(entry, Final)]
        awards = [entry for entry in entries if isinstance(entry, Awarded)]
        assert len(finals) == 1, f"{task} has {len(finals)} Finals"
        assert entries[-1] is finals[0], "something stands behind the Final"
        attempts = [entry.attempt for entry in awards]
        assert attempts == sorted(set(attempts)), "an attempt was given twice"
        (final,) = finals
        asked = any(isinstance(entry, CancelAsked) for entry in entries)
        for one in final.settlements:
            award = next(award for award in awards if award.attempt == one.attempt)
            assert (award.worker, award.auction, award.deposit) == (one.worker, one.auction, one.deposit)
            assert (task, one.worker, one.attempt) in self.taken
            assert -one.deposit <= one.price <= one.most == award.price
            assert not one.passed or final.attempt == one.attempt, "two answers were accepted"
        assert len({one.attempt for one in final.settlements}) == len(final.settlements)
        for transcript in self.transcripts:
            if transcript.task == task:
                assert differences(transcript) == []
                assert payment_differences(transcript, final) == []
        assert (final.status == "cancelled") == asked, "cancelled if and only if that was asked before the end"
        assert self.hangs or final.status != "expired", "somebody lived who could have answered, and there was time"
        if final.price is not None and final.status != "completed":
            self._check_part(final, awards[-1])
        if final.status == "completed":
            last = awards[-1]
            assert (final.worker, final.attempt, final.auction) == (last.worker, last.attempt, last.auction)
            assert final.price == last.price or last.deposit
            assert final.output == {"text": "".join(WORDS)}, "a wrong answer was accepted"
            stored = [event for event in self.results[task, last.worker, last.attempt] if event.auction == last.auction]
            numbers = [event.number for event in stored if isinstance(event, Output)]
            assert numbers == [(final.number or 0) - 1], "the answer that was accepted is not stored"

    def _check_part(self, final: Final, last: Awarded) -> None:
        """A cancelled attempt is paid for what it ran as far as is known, if it was taken, and no other."""
        assert final.status == "cancelled", f"{final.task} is {final.status} and costs {final.price}"
        assert (final.worker, final.attempt) == (last.worker, last.attempt)
        assert (final.task, last.worker, last.attempt) in self.taken, "paid for work that nobody took"
        assert last.median_ms is not None
        ordinary = max(last.price - last.deposit, 0)
        part = part_payment(ordinary, run_ms=final.timings.running_ms, median_ms=last.median_ms)
        stored = self.results.get((final.task, last.worker, last.attempt), ())
        answered = any(isinstance(event, Output) and event.auction == last.auction for event in stored)
        settled = [one.price for one in final.settlements if one.attempt == last.attempt]
        whole = settled or [last.price]
        assert final.price == part or (answered and [final.price] == whole), f"{final.price} instead of {part}"

    def _check_stream(self, task: str, reader: Reader, shown: list[StreamEvent]) -> None:
        assert reader.done, f"the stream does not end: {reader.position}, {reader.attempt}"
        standing: list[StreamEvent] = []
        for event in shown:
            if event.kind == "reset":
                del standing[event.to :]
            elif event.kind in ("delta", "output", "error"):
                assert event.number == len(standing) + 1, "a gap or a repeat"
                standing.append(event)
        final = shown[-1]
        assert isinstance(final, Final)
        assert sum(isinstance(event, Final) for event in shown) == 1
        text = "".join(event.text for event in standing if event.kind == "delta")
        assert reader.text == text
        if final.status == "completed":
            assert final.output == {"text": text}, f"the stream says {text!r}"
