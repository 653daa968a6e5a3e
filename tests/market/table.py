"""A negotiation on the table: events are put in by name, commands come out, the clock moves when it is told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from modelnet.market import Candidate, Claims, Invited, Negotiation, Offered, Plan, Policy, ReferencePrices, State
from modelnet.market.commands import (
    CancelWork,
    Command,
    Finished,
    Record,
    SendAward,
    StartTimer,
    Streamed,
    Timer,
    Write,
)
from modelnet.messages import (
    Awarded,
    Bid,
    Confirm,
    Decline,
    Done,
    ErrorInfo,
    Features,
    Final,
    JournalEntry,
    Planned,
    Refusal,
    Resume,
    Task,
    Transcript,
    Usage,
    Waiting,
    digest_of,
)

__all__ = [
    "CONTRACT",
    "NEGOTIATOR",
    "Table",
    "award_to",
    "awarded",
    "code",
    "entry",
    "final",
    "finished",
    "one",
    "some",
    "stopped",
    "timers",
    "transcript",
]

C = TypeVar("C", bound=Command)

CONTRACT = digest_of("contract")
NEGOTIATOR = "n1"


def some(commands: Sequence[Command], kind: type[C]) -> list[C]:
    """The commands of one kind."""
    return [command for command in commands if isinstance(command, kind)]


def one(commands: Sequence[Command], kind: type[C]) -> C:
    """The only command of its kind."""
    (command,) = some(commands, kind)
    return command


def awarded(attempt: int, worker: str, *, negotiator: str = "n2", price: int = 10, held: int | None = None) -> Awarded:
    """An entry as another negotiator would have made it."""
    return Awarded(task="k", attempt=attempt, worker=worker, price=price, held=held, negotiator=negotiator)


class Table:
    """Drives one negotiation. `workers` are the candidates, those in `continues` can go on from a text; `settled` is
    what the directory says of itself, `deposits` what they put up. `offers`: prices of standing offers; given, the task
    is to take one."""

    def __init__(
        self,
        *workers: str,
        settled: bool = True,
        age_s: float = 0.0,
        journal: Sequence[tuple[int, JournalEntry | None]] = (),
        policy: Policy | None = None,
        negotiator: str = NEGOTIATOR,
        continues: str = "",
        charged: bool = False,
        offers: Mapping[str, int] | None = None,
        deposits: Mapping[str, int] | None = None,
        **fields: Any,
    ) -> None:
        self.now = 100.0
        self.deposits = dict(deposits or {})
        self.workers = {
            name: Candidate(name, f"owner-of-{name}", CONTRACT, 0.8, "m", name in continues) for name in workers
        }
        self.settled = settled
        self.everybody = True
        self.prices = ReferencePrices()
        self.claims = Claims(2.0)
        self.policy = policy or Policy()
        self.sequence = max([0, *(sequence for sequence, _ in journal)])
        self.offers = dict(offers or {})
        self._ids = 0
        task = Task(**{"id": "k", "tenant": "t", "capability": "a.b", "input": {"x": 1}, "deadline_s": 60.0, **fields})
        self.negotiation = Negotiation(
            task,
            Features(input_bytes=7),
            negotiator=negotiator,
            policy=self.policy,
            new_id=self._new_id,
            find=self._find,
            prices=self.prices,
            claims=self.claims,
            now=self.now,
            age_s=age_s,
            journal=journal,
            charged=charged,
            plan=Plan("auction") if offers is None else Plan("spot", "spot: a test"),
            standing=self._standing,
        )

    def _new_id(self) -> str:
        self._ids += 1
        return f"auction{self._ids}"

    def _find(self, auction: str, excluded: frozenset[str], caller: str | None) -> Invited:
        return Invited([c for c in self.workers.values() if c.worker not in excluded], self.settled, self.everybody)

    def _standing(self, candidates: Sequence[Candidate]) -> list[tuple[Candidate, Offered]]:
        bids = {
            worker: Bid(auction="a", worker=worker, price=price, p50_ms=10, p90_ms=20, free=1)
            for worker, price in self.offers.items()
        }
        return [
            (candidate, candidate.offering(bids[candidate.worker], self.now))
            for candidate in candidates
            if candidate.worker in bids
        ]

    @property
    def state(self) -> State:
        return self.negotiation.state

    # ------------------------------------------------------------------ events

    def begin(self, *, queue: bool = False) -> list[Command]:
        return self.negotiation.begin(self.now, queue=queue)

    def wake(self) -> list[Command]:
        return self.negotiation.wake(self.now)

    def bid(
        self,
        worker: str,
        price: int = 10,
        *,
        auction: str | None = None,
        newcomer: bool = False,
        free: int = 1,
        slow: bool = False,
    ) -> list[Command]:
        """`slow`: it says itself that it cannot be in time."""
        on = auction or self.negotiation.auction or "none"
        reply = Bid(
            auction=on,
            worker=worker,
            price=price,
            p50_ms=1e6 if slow else 10,
            p90_ms=2e6 if slow else 20,
            free=free,
            deposit=self.deposits.get(worker, 0),
        )
        known = Candidate(worker, f"owner-of-{worker}", CONTRACT, 0.8) if newcomer else None
        return self.negotiation.on_bid(reply, self.now, known)

    def refuse(self, worker: str, reason: Literal["busy", "draining"] = "busy") -> list[Command]:
        reply = Refusal(auction=self.negotiation.auction or "none", worker=worker, reason=reason)
        return self.negotiation.on_bid(reply, self.now)

    def stored(self, sequence: int | None = None) -> list[Command]:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        return self.negotiation.on_stored(self.sequence, self.now)

    def refused(self, *journal: tuple[int, JournalEntry | None]) -> list[Command]:
        self.sequence = max([self.sequence, *(sequence for sequence, _ in journal)])
        return self.negotiation.on_refused(journal, self.now)

    def confirm(self, attempt: int = 1) -> list[Command]:
        return self.negotiation.on_award_reply(attempt, Confirm(worker="w"), self.now)

    def decline(
        self,
        attempt: int = 1,
        reason: Literal["busy", "draining", "too_long", "unsupported", "duplicate", "unknown"] = "busy",
    ) -> list[Command]:
        return self.negotiation.on_award_reply(attempt, Decline(worker="w", reason=reason), self.now)

    def silence(self, attempt: int = 1) -> list[Command]:
        return self.negotiation.on_award_reply(attempt, None, self.now)

    def done(
        self,
        worker: str,
        attempt: int = 1,
        *,
        number: int = 3,
        error: str | None = None,
        retryable: bool = False,
        violation: str | None = None,
    ) -> list[Command]:
        output = {"y": 2} if error is None else None
        done = Done(
            task="k",
            tenant="t",
            worker=worker,
            attempt=attempt,
            auction=self.negotiation.at_work[2] if self.negotiation.at_work else None,
            number=number,
            output=output,
            digest=digest_of(output) if output else None,
            error=ErrorInfo(code=error, message="said the worker") if error else None,
            retryable=retryable,
            usage=Usage(prompt_tokens=5),
        )
        return self.negotiation.on_done(done, violation, self.now)

    def lost(self, worker: str) -> list[Command]:
        self.workers.pop(worker, None)
        return self.negotiation.on_worker_lost(worker, self.now)

    def recalled(self, attempt: int, answer: Literal["running", "unknown", "silent"]) -> list[Command]:
        return self.negotiation.on_recalled(attempt, answer, self.now)

    def streamed(self, number: int, text: str) -> list[Command]:
        return self.negotiation.on_streamed(Streamed(number, Resume(text=text)), self.now)

    def cancel(self, sequence: int | None = None) -> list[Command]:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        return self.negotiation.on_cancel(self.sequence, self.now)

    def held(self, refusal: str | None = None) -> list[Command]:
        error = ErrorInfo(code=refusal, message="said the ledger") if refusal else None
        return self.negotiation.on_held(error, self.now)

    def deposit(self, worker: str, *, held: bool = True, auction: str | None = None) -> list[Command]:
        return self.negotiation.on_deposit(auction or self.negotiation.auction, worker, held, self.now)

    def ledger_away(self) -> list[Command]:
        return self.negotiation.on_ledger_away()

    def timer(self, timer: Timer, key: str = "") -> list[Command]:
        return self.negotiation.on_timer(timer, key, self.now)

    def expire(self) -> list[Command]:
        self.now = 100.0 + 60.0
        return self.timer("deadline")

    # ------------------------------------------------------------------ shortcuts

    def running(self) -> list[Command]:
        """Begin, take the bids of all in order of price, and have the cheapest confirm: w, then v, then u."""
        self.begin()
        commands: list[Command] = []
        for n, worker in enumerate(list(self.workers)):
            commands += self.bid(worker, 10 * (n + 1))
        self.stored()
        self.confirm()
        assert self.state is State.RUNNING
        return commands


def entry(commands: Sequence[Command]) -> Awarded | Planned | Waiting | Final:
    """The only entry written."""
    return one(commands, Write).entry


def final(commands: Sequence[Command]) -> Final:
    """The Final written."""
    found = entry(commands)
    assert isinstance(found, Final)
    return found


def code(found: Final) -> str:
    """Code of its error."""
    assert found.error is not None
    return found.error.code


def finished(commands: Sequence[Command]) -> Final:
    """The Final that stands."""
    return one(commands, Finished).final


def award_to(commands: Sequence[Command]) -> tuple[str, int]:
    """Worker and attempt of the award sent; the journal's entry says the same."""
    sent = one(commands, SendAward)
    assert sent.worker
    return sent.worker, sent.award.attempt


def transcript(commands: Sequence[Command]) -> Transcript:
    """The transcript kept; it must travel."""
    found = one(commands, Record).transcript
    assert Transcript.decode(found.encode()) == found
    return found


def stopped(commands: Sequence[Command]) -> list[tuple[str, int]]:
    """Worker and attempt of each order to stop."""
    return [(command.worker, command.attempt) for command in some(commands, CancelWork)]


def timers(commands: Sequence[Command]) -> dict[str, float]:
    """Delay of each timer started."""
    return {command.timer: command.delay_s for command in some(commands, StartTimer)}
