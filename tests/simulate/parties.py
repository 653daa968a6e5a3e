"""The parties of a simulated network: workers around the real `Slots`, negotiators around the real `Negotiation`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from modelnet.market import Directory, Negotiation, Policy, ReferencePrices, State
from modelnet.market import commands as cmd
from modelnet.messages import (
    HANDED_ON,
    AdoptAttempt,
    Award,
    Awarded,
    Beat,
    Bid,
    CapabilityCard,
    Claim,
    Confirm,
    Contract,
    Decline,
    Delta,
    Done,
    ErrorInfo,
    Failure,
    Features,
    Final,
    Output,
    Planned,
    Refusal,
    Resume,
    RunningAttempt,
    Waiting,
    WorkerCard,
    digest_of,
)
from modelnet.reader import Reader
from modelnet.slots import GiveUp, Key, Order, Reason, Slots, Stop
from tests.simulate.world import BEAT_S, WORDS, Event, Party, World

__all__ = ["CONTRACT", "Shell", "SimulatedWorker"]

CONTRACT = Contract(capability="a.b")
JOURNAL_TIMEOUT_S = 5.0
MISSED_BEATS = 3
LEDGER_TIMEOUT_S = 3.0


class SimulatedWorker(Party):
    """Answers in words, one event each; some go on behind another's, some begin anew; some fail."""

    def __init__(self, world: World, name: str, *, count: int, backlog: int, continues: bool, instance: int) -> None:
        super().__init__(world)
        self.name, self.continues, self.instance = name, continues, f"i{instance}"
        self.slots = Slots(count, backlog)
        self.shells: list[Shell] = []
        self._working: dict[Key, int] = {}
        """Words said of each attempt at work."""
        self._begun: set[Key] = set()
        self.queued = 0
        """Awards that had to wait for a slot."""
        self.given_up = Counter[str]()
        """Attempts that never began, by why."""
        self.cut = False
        self._connection = 0
        self._arrives_at = 0.0
        self._kept: dict[Key, list[Event]] = {}
        """As modelnet/bus/outbox.py: the events of each attempt until its end is told."""
        self._to_tell: list[Callable[[], None]] = []

    @property
    def card(self) -> WorkerCard:
        """What the catalogue says of it."""
        offered = CapabilityCard(pattern="a.b", contract=CONTRACT.digest, continues=self.continues, model="m")
        return WorkerCard(worker=self.name, capabilities=(offered,), slots=self.slots.count, instance=self.instance)

    def beat(self) -> Beat:
        """What it says of itself."""
        running = tuple(RunningAttempt(tenant=k.tenant, task=k.task, attempt=k.attempt) for k in self.slots)
        return Beat(
            worker=self.name,
            instance=self.instance,
            slots=self.slots.count,
            backlog=self.slots.backlog,
            running=running,
            draining=self.slots.draining,
        )

    def work_off(self) -> None:
        """Look for what has waited too long, as with each beat."""
        self._obey(self.slots.overdue(self.world.now))

    def drain(self) -> None:
        """Take nothing more, and hand on what waits."""
        self._obey(self.slots.drain())

    # ------------------------------------------------------------------ orders

    def ask(self, shell: Shell, task: str, auction: str) -> None:
        """A request for bids."""
        if self.world.chance(0.1):
            return  # too slow
        reply: Bid | Refusal = Bid(
            auction=auction,
            worker=self.name,
            price=self.world.random.randint(1, 50),
            p50_ms=3000,
            p90_ms=6000,
            wait_ms=self.world.random.choice([0, 0, 500, 2900]),
            free=max(self.slots.free, 1),
            deposit=self.world.random.choice([0, 0, 100, 700]),
        )
        if (reason := self.slots.refusal()) is not None:
            reply = Refusal(auction=auction, worker=self.name, reason=reason)
        self.world.send(shell, lambda: shell.on_bid(task, reply))

    def award(self, shell: Shell, award: Award) -> None:
        """An award."""
        suits = (award.resume is None or self.continues) and not self.world.chance(0.1)
        run_s = self.world.random.uniform(0.1, 3.0)
        reason, orders = self.slots.on_award(award, suits=suits, now=self.world.now, run_s=run_s)
        assert 0 <= self.slots.wait_s(self.world.now) < 1e3
        self._obey(orders)
        key = Key(award.tenant, award.task, award.attempt)
        self.queued += reason is None and key not in self._begun
        if reason is None:
            self.world.taken.add((award.task, self.name, award.attempt))
        reply = self._answer(reason)
        self.world.send(shell, lambda: shell.on_award_reply(award.task, award.attempt, reply))

    def adopt(self, shell: Shell, asked: AdoptAttempt, answer: Callable[[str], None]) -> None:
        """Another negotiator's question."""
        reason = self.slots.on_adopt(asked)
        self.world.send(shell, lambda: answer("unknown" if reason else "running"))

    def cancel(self, key: Key, auction: str | None) -> None:
        """An order to stop."""
        self._obey(self.slots.on_cancel(key, auction))

    def _answer(self, reason: Reason | None) -> Confirm | Decline:
        return Decline(worker=self.name, reason=reason) if reason else Confirm(worker=self.name)

    def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, Stop):
                self._working.pop(order.key, None)
                self.world.at(0.01, partial(self.reach, partial(self._stopped, order.key)))
                continue
            award = order.award
            key = Key(award.tenant, award.task, award.attempt)
            assert key not in self._begun, "an attempt was run twice"
            self._begun.add(key)
            if isinstance(order, GiveUp):
                self.given_up[order.why] += 1
                stamp = self._stamp(award, award.from_number + 1)
                code, again = ("expired", False) if order.why == "expired" else (HANDED_ON, True)
                self._tell(key, Failure(**stamp, error=ErrorInfo(code=code), retryable=again), order.negotiator)
                continue
            said = award.resume.text.split() if award.resume else []
            self._working[key] = len(said)
            assert len(self._working) <= self.slots.count, "more at work than slots"
            self.world.at(award.remaining_ms / 1e3, partial(self.reach, partial(self._time_out, key, award)))
            if not (self.world.hangs and self.world.chance(0.2)):
                self._later(partial(self._say, key, award, award.from_number + 1))

    def _stopped(self, key: Key) -> None:
        self._obey(self.slots.on_ended(key, self.world.now)[1])

    def _later(self, step: Callable[[], None]) -> None:
        self.world.at(self.world.random.expovariate(3.0), lambda: self.reach(step))

    # ------------------------------------------------------------------ work

    def _say(self, key: Key, award: Award, number: int) -> None:
        if key not in self._working:
            return
        stamp = self._stamp(award, number)
        said = self._working[key]
        if self.world.chance(0.05):
            self._end(key, Failure(**stamp, error=ErrorInfo(code="worker_error"), retryable=True))
        elif said == len(WORDS):
            output = {"text": "".join(WORDS)}
            self._end(key, Output(**stamp, output=output, digest=digest_of(output)))
        else:
            self._publish(key, Delta(**stamp, text=WORDS[said]))
            self._working[key] = said + 1
            self._later(partial(self._say, key, award, number + 1))

    def _stamp(self, award: Award, number: int) -> dict[str, Any]:
        who = {"worker": self.name, "auction": award.auction}
        return {"task": award.task, "attempt": award.attempt, "number": number, **who}

    def _time_out(self, key: Key, award: Award) -> None:
        if key in self._working:
            number = award.from_number + len(self._kept.get(key, ())) + 1
            stamp = self._stamp(award, number)
            self._end(key, Failure(**stamp, error=ErrorInfo(code="expired")))

    def _publish(self, key: Key, event: Event, then: Callable[[], None] = lambda: None) -> None:
        """In order, and for certain unless the connection breaks on the way."""
        self._kept.setdefault(key, []).append(event)
        self._transmit(event, then)

    def _transmit(self, event: Event, then: Callable[[], None] = lambda: None) -> None:
        """`then`: what is sent behind it, so that it cannot arrive unless the event did."""
        world, connection = self.world, self._connection
        self._arrives_at = max(self._arrives_at, world.now + world.random.expovariate(100.0))

        def arrive() -> None:
            if connection == self._connection and not self.cut:
                world.store(event.task, event)
                then()

        if not self.cut:
            world.at(self._arrives_at - world.now, arrive)

    def disconnect(self, for_s: float) -> None:
        """The connection breaks; it comes back."""
        self.cut = True
        self.world.at(for_s, lambda: self.reach(self._reconnect))

    def _reconnect(self) -> None:
        self.cut = False
        self._connection += 1
        for events in self._kept.values():
            for event in events:
                if event not in self.world.results.get((event.task, event.worker, event.attempt), ()):
                    self._transmit(event)
        waiting, self._to_tell = self._to_tell, []
        for tell in waiting:
            tell()

    def receive(self, deliver: Callable[[], None]) -> None:
        """What comes while the connection is down is lost."""
        if not self.cut:
            super().receive(deliver)

    def _end(self, key: Key, last: Output | Failure) -> None:
        del self._working[key]
        negotiator, orders = self.slots.on_ended(key, self.world.now)
        self._obey(orders)
        self._tell(key, last, negotiator)

    def _tell(self, key: Key, last: Output | Failure, negotiator: str | None) -> None:
        done = Done.of(last, key.tenant)

        def notify() -> None:
            for shell in self.shells:
                if shell.name == negotiator:
                    self.world.send(shell, partial(shell.on_done, done))

        def tell() -> None:
            self._publish(key, last, notify)

        if self.cut:
            self._to_tell.append(tell)
        else:
            tell()


@dataclass(slots=True)
class _Held:
    negotiation: Negotiation
    token: int | None = None
    wrote: Final | None = None
    suspect: int = 0


class Shell(Party):
    """A negotiator's hands: carries events and commands as workers/negotiator does, and checks both."""

    def __init__(self, world: World, name: str, workers: dict[str, SimulatedWorker], peers: list[Shell]) -> None:
        super().__init__(world)
        self.name, self._workers = name, workers
        self.directory = Directory(lost_after_s=BEAT_S * MISSED_BEATS + 0.5, now=world.now)
        self.directory.learn_contracts([CONTRACT])
        self.held: dict[str, _Held] = {}
        self.peers = peers
        """All negotiators, this one too."""
        self.adopted = 0
        """Attempts of other negotiators that it went on with."""
        self._last_tick = world.now
        self._tick()

    def take(self, task: str) -> None:
        """The stream delivers a task; the one in hand already is kept."""
        if task in self.held:
            return
        world = self.world
        self.held[task] = _Held(
            Negotiation(
                world.tasks[task],
                Features(input_bytes=1),
                negotiator=self.name,
                policy=Policy(),
                new_id=lambda: f"auction{next(world.ids)}",
                find=lambda auction, excluded, caller: self.directory.invite(
                    world.tasks[task], auction, excluded, world.now, caller=caller
                ),
                prices=ReferencePrices(),
                claims=self.directory.claims,
                now=world.now,
                age_s=world.now,
                journal=tuple(world.journal[task]),
                charged=world.books is not None,
            )
        )
        self._hear(task, lambda n: n.begin(world.now))

    # ------------------------------------------------------------------ events

    def _hear(self, task: str, event: Callable[[Negotiation], list[cmd.Command]]) -> None:
        held = self.held.get(task)
        if held is not None and not self.dead:
            self._run(task, held, event(held.negotiation))

    def on_bid(self, task: str, reply: Bid | Refusal) -> None:
        """A bid or refusal."""
        self._hear(task, lambda n: n.on_bid(reply, self.world.now))

    def on_claim(self, worker: str, claim: Claim) -> None:
        """Another negotiator has awarded."""
        self.directory.hear_claim(worker, claim, self.world.now)

    def on_award_reply(self, task: str, attempt: int, reply: Confirm | Decline) -> None:
        """Confirm or Decline."""
        self._hear(task, lambda n: n.on_award_reply(attempt, reply, self.world.now))

    def _on_inquired(self, task: str, worker: str, attempt: int, answer: str) -> None:
        running = answer == "running"
        self.on_award_reply(
            task, attempt, Confirm(worker=worker) if running else Decline(worker=worker, reason="unknown")
        )

    def on_done(self, done: Done) -> None:
        """A worker's notice."""
        self._hear(done.task, lambda n: n.on_done(done, None, self.world.now))

    def on_cancelled(self, task: str, sequence: int) -> None:
        """The journal's word that a cancel stands."""
        self._hear(task, lambda n: n.on_cancel(sequence, self.world.now))

    def on_beat(self, worker: SimulatedWorker, beat: Beat) -> None:
        """A worker's beat."""
        now = self.world.now
        restarted = self.directory.restarted(beat)
        if self.directory.unknown(beat):
            self.directory.learn_card(worker.card, now)
        self.directory.hear(beat, now)
        at_work = {(running.task, running.attempt) for running in beat.running}
        for task, attempt in at_work:
            stale = self.held.get(task)
            if stale is not None and attempt < stale.negotiation.attempt:
                self._cancel_work(beat.worker, task, attempt)
        for task, held in list(self.held.items()):
            if held.negotiation.state is State.WAITING and worker.slots.free:
                self._hear(task, lambda n: n.wake(now))
            elif (running := held.negotiation.running) is not None:
                if running[0] != beat.worker or (task, running[1]) in at_work or now - running[2] < BEAT_S:
                    continue
                if held.suspect == running[1] or restarted:
                    self._missed_done(task, *held.negotiation.at_work)  # type: ignore[misc]
                held.suspect = running[1]

    def _missed_done(self, task: str, worker: str, attempt: int, auction: str | None) -> None:
        if (done := self._last(task, worker, attempt, auction)) is not None:
            self._hear(task, lambda n: n.on_done(done, None, self.world.now))
        else:
            self._hear(task, lambda n: n.on_worker_lost(worker, self.world.now))

    def _last(self, task: str, worker: str, attempt: int, auction: str | None) -> Done | None:
        for event in self.world.results.get((task, worker, attempt), []):
            if not isinstance(event, Delta) and event.auction == auction:
                return Done.of(event, "t")
        return None

    def _tick(self) -> None:
        now = self.world.now
        if now - self._last_tick > 1.25 * BEAT_S:  # it was frozen
            self.directory.excuse(now - self._last_tick - BEAT_S)
        self._last_tick = now
        for worker in self.directory.lost(now):
            for task, held in list(self.held.items()):
                at_work = held.negotiation.at_work
                if at_work is not None and at_work[0] == worker:
                    self._missed_done(task, *at_work)
                else:
                    self._hear(task, partial(Negotiation.on_worker_lost, worker=worker, now=now))
        self.world.at(BEAT_S, lambda: self.reach(self._tick))

    # ------------------------------------------------------------------ commands

    def _run(self, task: str, held: _Held, commands: list[cmd.Command]) -> None:
        world = self.world
        for command in commands:
            match command:
                case cmd.Write(entry, expected):
                    assert held.token is None, "two entries at once"
                    assert held.wrote is None or isinstance(entry, Final), "an entry after a Final"
                    held.wrote = entry if isinstance(entry, Final) else None
                    self._write(task, held, entry, expected)
                case cmd.SendAward(worker, award):
                    assert held.wrote is None, "an award after a Final"
                    assert world.books is None or task in world.books.held, "an award before its hold"
                    receiver = self._workers[worker]
                    world.send(receiver, partial(receiver.award, self, award))
                case cmd.Inquire(worker, attempt, auction):
                    asked = AdoptAttempt(tenant="t", task=task, attempt=attempt, auction=auction, negotiator=self.name)
                    receiver, said = self._workers[worker], partial(self._on_inquired, task, worker, attempt)
                    world.send(receiver, partial(receiver.adopt, self, asked, said))
                case cmd.TellClaim(worker, claim):
                    for other in self.peers:
                        if other is not self:
                            world.send(other, partial(other.on_claim, worker, claim))
                case cmd.AskForBids(request):
                    for bidder in self._workers.values():
                        world.send(bidder, partial(bidder.ask, self, task, request.auction))
                case cmd.HoldFunds(amount):
                    self._hold_funds(task, held, amount)
                case cmd.HoldDeposit():
                    self._hold_deposit(task, held, command)
                case cmd.Record(transcript):
                    world.transcripts.append(transcript)
                case cmd.StartTimer(timer, key, delay_s):
                    world.at(delay_s, partial(self.reach, partial(self._ring, task, timer, key)))
                case cmd.CancelWork(worker, attempt, auction):
                    self._cancel_work(worker, task, attempt, auction)
                case cmd.Recall(worker, attempt, auction):
                    self._recall(task, worker, attempt, auction)
                case cmd.ReadStream():
                    self._later(partial(self._read_stream, task))
                case cmd.Hold():
                    assert command is commands[-1]
                case cmd.Finished():
                    del self.held[task]
                case cmd.Abandon():
                    del self.held[task]

    def _later(self, step: Callable[[], None]) -> None:
        """A question to the streams: it is repeated until it is answered."""
        self.world.at(self.world.random.expovariate(1 / 0.02), lambda: self.reach(step))

    def _cancel_work(self, worker: str, task: str, attempt: int, auction: str | None = None) -> None:
        receiver = self._workers[worker]
        self.world.send(receiver, partial(receiver.cancel, Key("t", task, attempt), auction))

    def _ring(self, task: str, timer: cmd.Timer, key: str) -> None:
        self._hear(task, lambda n: n.on_timer(timer, key, self.world.now))

    def _recall(self, task: str, worker: str, attempt: int, auction: str | None) -> None:
        asked = AdoptAttempt(tenant="t", task=task, attempt=attempt, auction=auction, negotiator=self.name)
        answered = False

        def end() -> bool:
            done = self._last(task, worker, attempt, auction)
            if done is not None:
                self._hear(task, lambda n: n.on_done(done, None, self.world.now))
            return done is not None

        def answer(said: str) -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            self.adopted += said == "running"
            if said == "running" or not end():
                self._hear(task, lambda n: n.on_recalled(attempt, said, self.world.now))  # type: ignore[arg-type]

        def ask() -> None:
            if not end():
                receiver = self._workers[worker]
                self.world.send(receiver, partial(receiver.adopt, self, asked, answer))
                self.world.at(2.0, lambda: self.reach(lambda: answer("silent")))

        self._later(ask)

    def _read_stream(self, task: str) -> None:
        reader = Reader()
        self.world.fill(task, reader)
        text = reader.text
        streamed = cmd.Streamed(reader.position, Resume(text=text)) if text else cmd.Streamed()
        self._hear(task, lambda n: n.on_streamed(streamed, self.world.now))

    def _hold_funds(self, task: str, held: _Held, amount: int) -> None:
        """Ask the ledger; it may be away, and the question or its answer may be lost."""
        world, answered = self.world, False

        def answer(event: Callable[[Negotiation], list[cmd.Command]]) -> None:
            nonlocal answered
            if not answered and self.held.get(task) is held:
                answered = True
                self._hear(task, event)

        def arrive() -> None:
            assert world.books is not None
            if world.now >= world.books.away_until_s:
                refusal = world.books.hold(task, amount)
                world.send(self, lambda: answer(lambda n: n.on_held(refusal, world.now)))

        world.send(None, arrive)
        world.at(LEDGER_TIMEOUT_S, lambda: self.reach(lambda: answer(lambda n: n.on_ledger_away())))

    def _hold_deposit(self, task: str, held: _Held, asked: cmd.HoldDeposit) -> None:
        """As `_hold_funds`; no answer counts as no."""
        world, answered = self.world, False

        def answer(there: bool) -> None:
            nonlocal answered
            if not answered and self.held.get(task) is held:
                answered = True
                self._hear(task, lambda n: n.on_deposit(asked.auction, asked.worker, there, world.now))

        def arrive() -> None:
            assert world.books is not None
            if world.now >= world.books.away_until_s:
                there = world.books.deposit(task, asked.auction, asked.worker, asked.amount)
                world.send(self, lambda: answer(there))

        world.send(None, arrive)
        world.at(LEDGER_TIMEOUT_S, lambda: self.reach(lambda: answer(False)))

    def _write(self, task: str, held: _Held, entry: Awarded | Planned | Waiting | Final, expected: int) -> None:
        world = self.world
        held.token = token = next(world.ids)

        def answer(sequence: int | None) -> None:
            if held.token == token and self.held.get(task) is held:
                held.token = None
                if sequence is not None:
                    self._hear(task, lambda n: n.on_stored(sequence, world.now))
                else:
                    journal = tuple(world.journal[task])
                    self._hear(task, lambda n: n.on_refused(journal, world.now))

        def arrive() -> None:
            sequence = world.append(task, entry, expected)
            world.send(self, lambda: answer(sequence))

        world.send(None, arrive)
        world.at(JOURNAL_TIMEOUT_S, lambda: self.reach(lambda: answer(None)))
