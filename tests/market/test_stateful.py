"""Events in any order, at any time, from anybody: what the state machines must never do."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelnet.market import State
from modelnet.market.commands import Command, Finished, Hold, HoldFunds, SendAward, Timer, Write
from modelnet.messages import AdoptAttempt, Award, CancelAsked, Final, JournalEntry
from modelnet.slots import Begin, GiveUp, Key, Order, Slots, Stop
from tests.market.table import Table, awarded

COUNT, BACKLOG = 2, 2
TIME_S = 10.0
"""What every award has."""
keys = st.builds(Key, st.just("t"), st.sampled_from(["k0", "k1", "k2"]), st.integers(1, 3))
auctions = st.sampled_from(["a", "b"])


class SlotsMachine(RuleBasedStateMachine):
    """A worker that is told anything by anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(COUNT, BACKLOG)
        self.working: dict[Key, str] = {}
        """Those that run, with their auction."""
        self.waiting: dict[Key, tuple[str, float]] = {}
        """Those that wait for a slot, in order, with auction and deadline."""
        self.begun: set[Key] = set()
        self.now = 0.0

    @rule(key=keys, auction=auctions, suits=st.booleans())
    def award(self, key: Key, auction: str, suits: bool) -> None:
        given = Award(
            auction=auction,
            negotiator=f"n-{auction}",
            task=key.task,
            tenant=key.tenant,
            attempt=key.attempt,
            capability="c",
            input={},
            price=1,
            remaining_ms=TIME_S * 1e3,
        )
        before = self._in_hand()
        reason, orders = self.slots.on_award(given, suits=suits, now=self.now, run_s=1.0)
        if reason is None and before.get(key) == auction:
            assert not orders, "the same award again"
            return
        if reason != "duplicate":
            for older in [k for k in self.waiting if k[:2] == key[:2]]:
                del self.waiting[older]
        if reason is None:
            assert suits
            assert key not in self.begun, "an attempt begins once"
            self.waiting[key] = auction, self.now + TIME_S
        self._obey(orders)
        assert not self.waiting or len(self.working) == COUNT, "nobody waits beside a free slot"

    @rule(seconds=st.sampled_from([0.5, TIME_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def look_for_the_late(self) -> None:
        self._obey(self.slots.overdue(self.now))
        assert all(until > self.now for _, until in self.waiting.values())

    @rule(key=keys, auction=st.none() | auctions)
    def cancel(self, key: Key, auction: str | None) -> None:
        before = self._in_hand()
        orders = self.slots.on_cancel(key, auction)
        if key in before and auction in (None, before[key]):
            self.waiting.pop(key, None)
            self._obey(orders)
            assert key not in self.working
        else:
            assert not orders

    @rule(key=keys, auction=auctions)
    def adopt(self, key: Key, auction: str) -> None:
        asked = AdoptAttempt(tenant=key.tenant, task=key.task, attempt=key.attempt, auction=auction, negotiator="heir")
        assert (self.slots.on_adopt(asked) is None) == (self._in_hand().get(key) == auction)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        auction = self.working.pop(key)
        negotiator, orders = self.slots.on_ended(key, self.now)
        assert negotiator in (f"n-{auction}", "heir")
        self._obey(orders)
        assert self.slots.on_ended(key, self.now) == (None, [])
        assert not self.waiting or len(self.working) == COUNT, "a free slot is for the next"

    @rule()
    def drain(self) -> None:
        self._obey(self.slots.drain())
        assert not self.waiting, "who leaves keeps nobody waiting"

    def _in_hand(self) -> dict[Key, str]:
        return self.working | {key: auction for key, (auction, _) in self.waiting.items()}

    def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Stop(key):
                    del self.working[key]
                    negotiator, following = self.slots.on_ended(key, self.now)
                    assert negotiator is None, "what was stopped is told to nobody"
                    self._obey(following)
                case Begin(award):
                    key = Key(award.tenant, award.task, award.attempt)
                    assert key == next(iter(self.waiting)), "first come, first served"
                    auction, until = self.waiting.pop(key)
                    assert award.auction == auction
                    assert award.remaining_ms == pytest.approx((until - self.now) * 1e3)
                    assert award.remaining_ms > 0
                    newer = [k for k in self.begun if k[:2] == key[:2] and k.attempt > key.attempt]
                    assert not newer, "only newer ones begin"
                    self.begun.add(key)
                    self.working[key] = auction
                case GiveUp(award, negotiator, why):
                    auction, until = self.waiting.pop(Key(award.tenant, award.task, award.attempt))
                    assert negotiator in (f"n-{auction}", "heir")
                    assert why == ("expired" if until <= self.now else "leaving") or self.slots.draining

    @invariant()
    def bounded(self) -> None:
        assert set(self._in_hand()) == set(self.slots)
        assert len(self.working) <= COUNT
        assert len(self.waiting) <= BACKLOG
        free = COUNT + BACKLOG - len(self.working) - len(self.waiting)
        assert self.slots.free == (0 if self.slots.draining else free)
        assert (self.slots.wait_s(self.now) > 0) <= (len(self.working) == COUNT)


workers = st.sampled_from("wvux")
attempts = st.integers(1, 5)


class NegotiationMachine(RuleBasedStateMachine):
    """A negotiation that hears anything at any time; the journal is kept as the server would."""

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[tuple[int, JournalEntry | None]] = []
        self.outstanding: Write | None = None
        self.finished = False
        self.last_award = 0
        self.asked = False
        self.funded = False

    @initialize(charged=st.booleans())
    def begin(self, charged: bool) -> None:
        self.table = Table("w", "v", "u", continues="wv", charged=charged, deposits={"w": 50, "u": 9})
        self.funded = not charged
        self._take(self.table.begin())

    def _take(self, commands: list[Command]) -> None:
        assert not (self.finished and commands), "nothing after the end"
        for command in commands:
            match command:
                case Write():
                    assert self.outstanding is None, "one entry at a time"
                    self.outstanding = command
                case HoldFunds():
                    assert not self.asked, "one question at a time"
                    assert not self.funded, "the money is held once"
                    self.asked = True
                case SendAward(_, award):
                    assert self.funded, "an award without money"
                    assert award.attempt > self.last_award
                    self.last_award = award.attempt
                case Hold():
                    assert command is commands[-1]
                case Finished():
                    self.finished = True

    def _append(self, entry: JournalEntry) -> int:
        sequence = (self.journal[-1][0] if self.journal else 0) + 1
        self.journal.append((sequence, entry))
        return sequence

    @property
    def ended(self) -> bool:
        return any(isinstance(entry, Final) for _, entry in self.journal)

    @precondition(lambda self: self.outstanding)
    @rule(lost=st.booleans())
    def journal_answers(self, lost: bool) -> None:
        """It stores the entry or refuses it; the answer may be lost, and then it is read back."""
        assert self.outstanding is not None
        write, self.outstanding = self.outstanding, None
        stored = write.expected == (self.journal[-1][0] if self.journal else 0)
        sequence = self._append(write.entry) if stored else 0
        if stored and not lost:
            self._take(self.table.stored(sequence))
        else:
            self._take(self.table.refused(*self.journal))

    @precondition(lambda self: not self.ended)
    @rule(told=st.booleans())
    def owner_cancels(self, told: bool) -> None:
        sequence = self._append(CancelAsked(task="k"))
        if told:
            self._take(self.table.cancel(sequence))

    @precondition(lambda self: not self.ended)
    @rule(worker=workers)
    def another_takes_over(self, worker: str) -> None:
        self._append(awarded(self.last_award + 1, worker))

    @precondition(lambda self: self.asked)
    @rule(answer=st.sampled_from(["held", "away", "no_funds"]))
    def ledger_answers(self, answer: str) -> None:
        self.asked = False
        if answer == "away":
            self._take(self.table.ledger_away())
        else:
            self.funded = answer == "held"
            self._take(self.table.held(None if self.funded else answer))

    @rule(worker=workers, held=st.booleans())
    def deposit_answers(self, worker: str, held: bool) -> None:
        self._take(self.table.deposit(worker, held=held))

    @rule(worker=workers, price=st.integers(1, 2000), newcomer=st.booleans())
    def bid(self, worker: str, price: int, newcomer: bool) -> None:
        self._take(self.table.bid(worker, price, newcomer=newcomer))

    @rule(worker=workers)
    def refuse(self, worker: str) -> None:
        self._take(self.table.refuse(worker))

    @rule(attempt=attempts)
    def confirm(self, attempt: int) -> None:
        self._take(self.table.confirm(attempt))

    @rule(attempt=attempts, reason=st.sampled_from(["busy", "draining", "too_long", "duplicate", "unknown"]))
    def decline(self, attempt: int, reason: Literal["busy", "draining", "too_long", "duplicate", "unknown"]) -> None:
        self._take(self.table.decline(attempt, reason))

    @rule(attempt=attempts, answer=st.sampled_from(["running", "unknown", "silent"]))
    def recalled(self, attempt: int, answer: Literal["running", "unknown", "silent"]) -> None:
        self._take(self.table.recalled(attempt, answer))

    @rule(attempt=attempts)
    def silence(self, attempt: int) -> None:
        self._take(self.table.silence(attempt))

    @rule(worker=workers, attempt=attempts, error=st.sampled_from([None, "worker_error"]), retryable=st.booleans())
    def done(self, worker: str, attempt: int, error: str | None, retryable: bool) -> None:
        self._take(self.table.done(worker, attempt, error=error, retryable=retryable))

    @rule(worker=workers)
    def lost(self, worker: str) -> None:
        kept = dict(self.table.workers)
        self._take(self.table.lost(worker))
        self.table.workers = kept

    @rule(number=st.integers(0, 9))
    def streamed(self, number: int) -> None:
        self._take(self.table.streamed(number, "text"))

    @rule(seconds=st.floats(0.0, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.table.now += seconds

    @rule(timer=st.sampled_from(["window", "award", "notice", "retry", "deadline", "funds"]), attempt=attempts)
    def timer(self, timer: Timer, attempt: int) -> None:
        key = self.table.negotiation.auction if timer in ("window", "retry") else str(attempt)
        self._take(self.table.timer(timer, key))

    @rule()
    def wake(self) -> None:
        self._take(self.table.wake())

    @invariant()
    def one_final(self) -> None:
        finals = [entry for _, entry in self.journal if isinstance(entry, Final)]
        assert len(finals) <= 1
        assert not finals or self.journal[-1][1] is finals[0]

    def teardown(self) -> None:
        """Whatever happened, the deadline ends it."""
        self._take(self.table.timer("deadline"))
        for _ in range(20):
            if self.outstanding is not None:
                self.journal_answers(lost=False)
        assert self.table.state is State.DONE
        assert self.outstanding is None


BOUNDS = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestSlots = SlotsMachine.TestCase
TestSlots.settings = BOUNDS
TestNegotiation = NegotiationMachine.TestCase
TestNegotiation.settings = BOUNDS
