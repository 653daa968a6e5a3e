"""A world for negotiations to go wrong in: a journal that compares and sets, a network that drops, repeats and delays,
workers that refuse, fail, fall silent and die, negotiators that stall or die. One seed, one history.

Faults end at `CALM_S`; from then on every message arrives, so every run must end.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial
from itertools import count

from modelnet.market import Candidate, Negotiation, Policy, ReferencePrices, State
from modelnet.market import commands as cmd
from modelnet.messages import (
    Awarded,
    Bid,
    CancelAsked,
    Confirm,
    Decline,
    Done,
    ErrorInfo,
    Features,
    Final,
    JournalEntry,
    Refusal,
    Task,
    Waiting,
    digest_of,
)

__all__ = ["CALM_S", "World"]

CALM_S = 20.0
DEADLINE_S = 45.0
JOURNAL_TIMEOUT_S = 5.0
BEAT_S = 1.0
REDELIVER_S = 10.0
OUTPUT = {"y": 2}


class Shell:
    """A negotiator's hands: carries the commands of one negotiation, and checks that they may be carried."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.dead = world, False
        self.wrote: Final | None = None
        self.awards: list[int] = []
        self.token: int | None = None
        self.ended = False
        self.negotiation = Negotiation(
            world.task,
            Features(input_bytes=1),
            negotiator=name,
            policy=Policy(),
            new_id=lambda: f"auction{next(world.ids)}",
            find=lambda excluded: ([c for c in world.candidates() if c.worker not in excluded], world.now > 2.0),
            prices=ReferencePrices(),
            now=world.now,
            age_s=world.now,
            journal=tuple(world.journal),
        )
        self.run(self.negotiation.begin(world.now))

    def hear(self, event: Callable[[Negotiation], list[cmd.Command]]) -> None:
        """Put an event in, unless the process is gone or has forgotten the task."""
        if not self.dead and not self.ended:
            self.run(event(self.negotiation))

    def run(self, commands: list[cmd.Command]) -> None:
        world = self.world
        for command in commands:
            match command:
                case cmd.Write(entry, expected):
                    assert self.token is None, "two entries at once"
                    assert self.wrote is None or isinstance(entry, Final), "an entry after a Final"
                    self.wrote = entry if isinstance(entry, Final) else None
                    self.write(entry, expected)
                case cmd.SendAward(worker, award):
                    assert self.wrote is None, "an award after a Final"
                    assert award.attempt > max([0, *self.awards]), "an attempt that is not new"
                    self.awards.append(award.attempt)
                    world.send(partial(world.award, self, worker, award.attempt))
                case cmd.AskForBids(request):
                    for worker in world.alive:
                        world.send(partial(world.ask, self, worker, request.auction))
                case cmd.StartTimer(timer, key, delay_s):
                    world.at(delay_s, partial(self.ring, timer, key))
                case cmd.CancelWork(worker, attempt):
                    world.send(partial(world.stop, worker, attempt))
                case cmd.Hold():
                    assert command is commands[-1]
                    world.at(world.random.uniform(0.1, 3.0), lambda: self.hear(lambda n: n.wake(world.now)))
                case cmd.Finished() | cmd.Abandon():
                    self.ended = True

    def ring(self, timer: cmd.Timer, key: str) -> None:
        self.hear(lambda n: n.on_timer(timer, key, self.world.now))

    def write(self, entry: Awarded | Waiting | Final, expected: int) -> None:
        world = self.world
        self.token = token = next(world.ids)

        def answer(sequence: int | None) -> None:
            if self.token == token and not self.dead and not self.ended:
                self.token = None
                journal = tuple(world.journal)
                if sequence is not None:
                    self.run(self.negotiation.on_stored(sequence))
                else:
                    self.run(self.negotiation.on_refused(journal, world.now))

        def arrive() -> None:
            sequence = world.append(entry, expected)
            world.send(lambda: answer(sequence))

        world.send(arrive)
        world.at(JOURNAL_TIMEOUT_S, lambda: answer(None))


class World:
    """One task, its journal, some workers, and one negotiator after another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.ids = count(1)
        self.task = Task(id="k", tenant="t", capability="a.b", input={}, deadline_s=DEADLINE_S)
        self.journal: list[tuple[int, JournalEntry]] = []
        self.alive = {f"w{n}" for n in range(self.random.randint(1, 4))}
        self.working: set[tuple[str, int]] = set()
        self.said: dict[tuple[str, int], Done] = {}
        self.shells: list[Shell] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    # ------------------------------------------------------------------ time and network

    def at(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self.ids), event))

    def send(self, deliver: Callable[[], None]) -> None:
        """A message on its way: until the calm it may be lost, come twice, and overtake others."""
        calm, chance = self.now > CALM_S, self.random.random()
        for _ in range(1 if calm or 0.12 < chance < 0.9 else 0 if chance <= 0.12 else 2):
            slow = not calm and self.random.random() < 0.1
            self.at(self.random.expovariate(1 / (1.0 if slow else 0.01)), deliver)

    def play(self) -> None:
        """Until nothing is left to happen, well after the deadline."""
        self.shells.append(Shell(self, "n0"))
        self.at(BEAT_S, self.beat)
        if self.random.random() < 0.4:
            self.at(self.random.uniform(0.0, DEADLINE_S), self.cancel)
        for _ in range(self.random.choice([0, 0, 1, 2])):
            self.at(self.random.uniform(0.0, CALM_S), self.take_over)
        for worker in sorted(self.alive):
            if self.random.random() < 0.3:
                self.at(self.random.uniform(0.0, CALM_S), partial(self.die, worker))
        while self._events and self.now < DEADLINE_S + 30.0:
            self.now, _, event = heapq.heappop(self._events)
            event()

    # ------------------------------------------------------------------ the journal, the owner, the negotiators

    def append(self, entry: JournalEntry, expected: int) -> int | None:
        """Store an entry if the last one is the expected one."""
        if expected != (self.journal[-1][0] if self.journal else 0):
            return None
        self.journal.append((next(self.ids), entry))
        return self.journal[-1][0]

    def cancel(self) -> None:
        """The owner's cancel, unless the task has ended; negotiators hear of it, or not."""
        if not any(isinstance(entry, Final) for _, entry in self.journal):
            sequence = self.append(CancelAsked(task="k"), self.journal[-1][0] if self.journal else 0)
            assert sequence is not None
            for shell in self.shells:
                self.send(partial(shell.hear, lambda n: n.on_cancel(sequence, self.now)))

    def take_over(self) -> None:
        """The negotiator dies, or stalls and goes on later; the stream delivers the task to another."""
        last = self.shells[-1]
        if not last.ended:
            last.dead = last.dead or self.random.random() < 0.5
            name = f"n{len(self.shells)}"
            self.at(self.random.uniform(0.0, REDELIVER_S), lambda: self.shells.append(Shell(self, name)))

    # ------------------------------------------------------------------ workers

    def candidates(self) -> list[Candidate]:
        return [Candidate(worker, worker, digest_of("c"), 0.8) for worker in sorted(self.alive)]

    def ask(self, shell: Shell, worker: str, auction: str) -> None:
        if worker in self.alive and self.random.random() < 0.9:
            reply: Bid | Refusal = Refusal(auction=auction, worker=worker, reason="busy")
            if self.random.random() < 0.8:
                price = self.random.randint(1, 50)
                reply = Bid(auction=auction, worker=worker, price=price, p50_ms=100, p90_ms=200)
            self.send(lambda: shell.hear(lambda n: n.on_bid(reply, self.now)))

    def award(self, shell: Shell, worker: str, attempt: int) -> None:
        if worker not in self.alive:
            return
        reply: Confirm | Decline = Confirm(worker=worker)
        if (worker, attempt) not in self.working and self.random.random() < 0.2:
            reply = Decline(worker=worker, reason=self.random.choice(["busy", "too_long"]))
        else:
            self.working.add((worker, attempt))
            if self.random.random() < 0.95:  # else it never returns
                self.at(self.random.expovariate(1.0), lambda: self.finish(shell, worker, attempt))
        self.send(lambda: shell.hear(lambda n: n.on_award_reply(attempt, reply, self.now)))

    def finish(self, shell: Shell, worker: str, attempt: int) -> None:
        if worker not in self.alive or (worker, attempt) not in self.working:
            return
        self.working.discard((worker, attempt))
        failed = self.random.random() < 0.3
        self.said[worker, attempt] = done = Done(
            task="k",
            tenant="t",
            worker=worker,
            attempt=attempt,
            number=1,
            output=None if failed else OUTPUT,
            error=ErrorInfo(code="worker_error") if failed else None,
            retryable=True,
        )
        self.send(lambda: shell.hear(lambda n: n.on_done(done, None, self.now)))

    def stop(self, worker: str, attempt: int) -> None:
        self.working.discard((worker, attempt))

    def die(self, worker: str) -> None:
        self.alive.discard(worker)
        for shell in self.shells:
            self.at(3 * BEAT_S, partial(shell.hear, lambda n: n.on_worker_lost(worker, self.now)))

    def beat(self) -> None:
        """A worker that no longer works on an attempt tells so: what it said last is read, or it is lost."""
        for shell in self.shells:
            running = shell.negotiation.running
            if shell.dead or shell.ended:
                continue
            if running is not None and self.now - running[2] > 2 * BEAT_S and running[:2] not in self.working:
                done = self.said.get(running[:2])
                if done is not None:
                    shell.run(shell.negotiation.on_done(done, None, self.now))
                else:
                    shell.run(shell.negotiation.on_worker_lost(running[0], self.now))
        self.at(BEAT_S, self.beat)

    # ------------------------------------------------------------------ what must hold

    def check(self) -> None:
        """Exactly one Final, the last word; attempts in order; an answer only of the attempt last awarded."""
        entries = [entry for _, entry in self.journal]
        finals = [entry for entry in entries if isinstance(entry, Final)]
        awards = [entry for entry in entries if isinstance(entry, Awarded)]
        assert len(finals) == 1
        assert entries[-1] is finals[0]
        attempts = [entry.attempt for entry in awards]
        assert attempts == sorted(set(attempts))
        (found,) = finals
        if found.status == "completed":
            assert (found.worker, found.attempt, found.price) == (
                awards[-1].worker,
                awards[-1].attempt,
                awards[-1].price,
            )
            assert found.output == OUTPUT
            assert not any(isinstance(entry, CancelAsked) for entry in entries)
        if found.status == "cancelled":
            assert any(isinstance(entry, CancelAsked) for entry in entries)
        for shell in self.shells:
            assert shell.dead or (shell.ended and shell.negotiation.state is State.DONE)
