"""One task's life, from being taken off the queue to its Final, as a state machine: events in, commands out.

    AUCTIONING -> AWARDING -> RUNNING -> FINISHING -> DONE        WAITING -> AUCTIONING when capacity may be there, or
    the ledger answers again        DEPOSITING: before AWARDING, where the winner's owner puts up money
    RECALLING: what became of an attempt that another negotiator gave away      READING: what an attempt that ended has
    streamed, so that the next can go on behind it

No I/O, no clock, no randomness: times are handed in as monotonic seconds, ids by `new_id`, the state of the network by
`find`. An award goes out beside its journal entry, without waiting for it, because only the pair in the journal makes
an attempt's events count and only a Final written after that entry can be stored. A tenant's money is asked for beside
the bids, and an auction closes only once it is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from modelnet.messages import (
    HANDED_ON,
    Award,
    Awarded,
    Bid,
    BidRequest,
    CancelAsked,
    Confirm,
    Decline,
    Done,
    ErrorInfo,
    Features,
    Final,
    JournalEntry,
    Refusal,
    Settlement,
    Task,
    Timings,
    Waiting,
)

from .auction import Auction
from .commands import (
    Abandon,
    AskForBids,
    Bury,
    CancelWork,
    Command,
    Finished,
    Hold,
    HoldDeposit,
    Learn,
    ReadStream,
    Recall,
    Record,
    SendAward,
    StartTimer,
    Streamed,
    Timer,
    WaitingReason,
)
from .directory import Candidate
from .funds import Funds
from .journal_writer import JournalWriter
from .records import Outcome, TrackRecords
from .reference import ReferencePrices
from .reputation import Source
from .scoring import Terms, part_payment
from .settlement import settle

__all__ = ["Negotiation", "Policy", "State"]

_CANCELLED = ErrorInfo(code="cancelled", message="cancelled")


class State(Enum):
    """Where the task stands with this negotiator."""

    AUCTIONING = auto()
    DEPOSITING = auto()
    AWARDING = auto()
    RUNNING = auto()
    RECALLING = auto()
    READING = auto()
    WAITING = auto()
    FINISHING = auto()
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Policy:
    """The negotiator's bounds. Times in seconds."""

    window_s: float = 0.2
    award_timeout_s: float = 2.0
    max_attempts: int = 3
    """Attempts that may end in an error."""
    max_lost: int = 3
    """Attempts whose worker may vanish at work. With as many different workers the task is poison: it kills them."""
    max_silent: int = 8
    """Awards that may stay without an answer."""
    notice_s: float = 0.5
    """How long a task waits before its readers are told why."""
    retry_s: float = 0.1
    """Pause before an auction that nobody answered is held again."""
    ledger_retry_s: float = 1.0
    """Pause before the ledger is asked again."""


@dataclass(slots=True)
class _Attempt:
    """The attempt in hand."""

    number: int
    worker: str
    owner: str
    price: int
    auction: str | None
    contract: str | None
    continues: bool
    awarded_at: float | None = None
    """None: not known, as for one that an older negotiator gave away."""
    confirmed_at: float | None = None
    claimed_ms: tuple[float, float] | None = None
    """Its bid's median and 90th percentile; None for an attempt that another negotiator gave away."""
    usual_price: int | None = None
    load: int = 0
    expected_ms: float | None = None
    """That median as corrected by what was known of its worker then."""
    median_ms: float | None = None
    """The larger of the two: what a part of its price is reckoned by."""
    began_at: float | None = None
    """When its run began, as far as is known; None before it is confirmed."""
    answered: bool = False
    """Whether its output is there, and good."""
    deposit: int = 0
    """Held of its owner's: `price` is then the most that it is paid."""
    second_score: float = 0.0
    settlement: Settlement | None = None
    """What became of it, if that sets its price."""

    def overdue(self, now: float) -> bool:
        """Whether it has had the 90th percentile that its bid claimed."""
        if self.claimed_ms is None or self.awarded_at is None:
            return False
        return now - self.awarded_at > self.claimed_ms[1] / 1e3


class Negotiation:
    """One task in one negotiator's hands. Every method returns the commands to carry out, in order."""

    def __init__(
        self,
        task: Task,
        features: Features,
        *,
        negotiator: str,
        policy: Policy,
        new_id: Callable[[], str],
        find: Callable[[frozenset[str]], tuple[list[Candidate], bool]],
        prices: ReferencePrices,
        records: TrackRecords | None = None,
        now: float,
        age_s: float,
        journal: Sequence[tuple[int, JournalEntry | None]] = (),
        charged: bool = False,
    ) -> None:
        """`age_s`: how long ago the server stamped the task. `journal`: its entries with their sequences, if any; None
        stands for one that cannot be read. `charged`: whether its tenant's money must be held before an award.

        `find(excluded)` gives the workers that may answer now, and whether the directory is settled.
        """
        self.task = task
        self.state = State.AUCTIONING
        self._features = features
        self._negotiator = negotiator
        self._policy = policy
        self._new_id = new_id
        self._find = find
        self._prices = prices
        self._records = records
        self._submitted_at = now - age_s
        self._deadline = self._submitted_at + task.deadline_s
        self._opened_at: float | None = None
        self._negotiating_s = 0.0
        self._auction = Auction("", (), settled=False, now=now)
        self._attempt: _Attempt | None = None
        self._last_attempt: _Attempt | None = None
        self._attempts = 0
        self._bids_taken = 0
        self._failed: set[str] = set()
        self._errors = 0
        self._lost: list[str] = []
        self._silent: list[str] = []
        self._last_error = ErrorInfo(code="failed", message="")
        self._streamed = Streamed()
        self._final: Final | None = None
        self._funds = Funds(task.budget if charged else None)
        self._closed_by: Literal["all_answered", "time_limit"] | None = None
        """Why the open auction would be closed, while it waits for the tenant's money."""
        self._unrecorded: tuple[Literal["all_answered", "time_limit"], float] | None = None
        """Why and when the auction was closed, until its transcript is recorded."""
        self._settlements: list[Settlement] = []
        """Of attempts that have failed."""
        self._entered = set[int]()
        """Attempts that stand in the journal."""
        self._waiting_reason: WaitingReason | None = None
        self._told_waiting: str | None = None
        self._writer = JournalWriter()
        self._cancel_asked = False
        self._catch_up(journal)

    @property
    def auction(self) -> str:
        """Id of the auction that is open or was last open."""
        return self._auction.id

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return self._attempts

    @property
    def running(self) -> tuple[str, int, float] | None:
        """Worker, attempt number and time of the Confirm, while a confirmed attempt runs."""
        attempt = self._attempt
        if self.state is not State.RUNNING or attempt is None or attempt.confirmed_at is None:
            return None
        return attempt.worker, attempt.number, attempt.confirmed_at

    @property
    def at_work(self) -> tuple[str, int, str | None] | None:
        """Worker, number and auction of the attempt that was given away, whether it was confirmed or not."""
        attempt = self._attempt
        if attempt is None or self.state not in (State.AWARDING, State.RUNNING, State.RECALLING):
            return None
        return attempt.worker, attempt.number, attempt.auction

    @property
    def failed(self) -> frozenset[str]:
        """Workers that must not try again."""
        return frozenset(self._failed)

    @property
    def contract(self) -> str | None:
        """Digest of the contract that the attempt in hand must keep."""
        return self._attempt.contract if self._attempt else None

    # ------------------------------------------------------------------ beginning and waiting

    def begin(self, now: float, *, queue: bool = False) -> list[Command]:
        """Take the task in hand. `queue`: others wait for the same capability, so it waits behind them."""
        if self._final is not None:
            self.state = State.DONE
            return [Finished(self._final)]
        if self._cancel_asked:
            return self._cancel(_CANCELLED, now)
        if now >= self._deadline:
            return [*self._stop_work(), *self._expire(now)]
        timer = StartTimer("deadline", "", self._deadline - now)
        if self._attempt is not None:
            self.state = State.RECALLING
            return [timer, Recall(self._attempt.worker, self._attempt.number, self._attempt.auction)]
        if queue:
            self._opened_at = now
            return [timer, *self._wait("busy")]
        return [timer, *self._open_auction(now)]

    def reject(self, error: ErrorInfo, now: float) -> list[Command]:
        """End a task that should never have been asked for: unknown capability, contract violation."""
        return self._finish("failed", now, error)

    def on_recalled(self, attempt: int, answer: Literal["running", "unknown", "silent"], now: float) -> list[Command]:
        """What the worker says of the attempt that this negotiator found in the journal."""
        current = self._attempt
        if self.state is not State.RECALLING or current is None or attempt != current.number:
            return []
        if answer == "running":
            current.confirmed_at = now
            current.began_at = now if current.awarded_at is None else current.awarded_at
            self.state = State.RUNNING
            return []
        if answer == "silent":
            return [*self._stop_work(), *self._lose(f"{current.worker} stopped answering", now)]
        return self._read_stream(now)  # the award never reached it, or it has started anew since

    def wake(self, now: float) -> list[Command]:
        """Capacity may be there: try again, if the task waits for that."""
        waits = self.state is State.WAITING and self._waiting_reason != "ledger_away"
        return self._open_auction(now) if waits else []

    def _wait(self, reason: WaitingReason) -> list[Command]:
        self.state, self._waiting_reason = State.WAITING, reason
        commands: list[Command] = []
        if reason == "no_bids":  # they live but were too slow: nothing will announce that they are quicker now
            commands.append(StartTimer("retry", self._auction.id, self._policy.retry_s))
        if reason == "ledger_away":
            commands.append(StartTimer("funds", "", self._policy.ledger_retry_s))
        if self._told_waiting != reason:
            commands.append(StartTimer("notice", reason, self._policy.notice_s))
        # Last: a shell that gives the task back ends its timers, and must not be told to start more.
        return [*commands, Hold(reason)]

    # ------------------------------------------------------------------ the auction

    def _open_auction(self, now: float) -> list[Command]:
        absent = {*self._lost, *self._silent}
        found, settled = self._find(frozenset(self._failed | absent))
        if not found and absent:  # who vanished may have come back
            found, settled = self._find(frozenset(self._failed))
        if self._opened_at is None:
            self._opened_at = now
        if not found:
            if self._failed and self._failed.issuperset(absent):
                return [*self._bury(), *self._finish("failed", now, self._last_error)]
            return self._wait("no_worker")
        self.state, self._closed_by = State.AUCTIONING, None
        self._auction = Auction(self._new_id(), found, settled=settled, now=now)
        task, window_s = self.task, min(self._policy.window_s, max(self._deadline - now, 1e-3))
        request = BidRequest.model_construct(
            auction=self._auction.id,
            negotiator=self._negotiator,
            capability=task.capability,
            features=self._features,
            remaining_ms=max((self._deadline - now) * 1e3, 1.0),
            window_ms=window_s * 1e3,
            require=task.require,
            exclude=task.exclude,
            contract=task.contract,
        )
        funds = self._funds.ask(self._deadline - now)
        return [AskForBids(request), *funds, StartTimer("window", self._auction.id, window_s)]

    def on_bid(self, reply: Bid | Refusal, now: float, newcomer: Candidate | None = None) -> list[Command]:
        """A bid or refusal. `newcomer`: what is known of a bidder that was unknown when the request went out."""
        if self.state is not State.AUCTIONING or reply.auction != self._auction.id or reply.worker in self._failed:
            return []
        if not self._auction.take(reply, newcomer):
            return []
        return self._close("all_answered", now) if self._auction.answered else []

    def on_held(self, refusal: ErrorInfo | None, now: float) -> list[Command]:
        """The ledger holds the tenant's money, or says why it does not."""
        if not self._funds.asked or self.state in (State.FINISHING, State.DONE):
            return []
        if refusal is not None:
            return self._finish("failed", now, refusal)
        self._funds.stand()
        if self.state is State.WAITING and self._waiting_reason == "ledger_away":
            return self._open_auction(now)
        if self.state is State.AUCTIONING and self._closed_by is not None:
            return self._close(self._closed_by, now)
        return []

    def on_ledger_away(self) -> list[Command]:
        """The ledger did not answer. The auction is void: by the time it does, its bids may be."""
        if not self._funds.asked or self.state in (State.FINISHING, State.DONE):
            return []
        self._funds.delay()
        return self._wait("ledger_away")

    def _close(self, closed_by: Literal["all_answered", "time_limit"], now: float) -> list[Command]:
        if not self._funds.ready:
            self._closed_by = closed_by
            return []
        auction = self._auction
        self._bids_taken += len(auction.bids)
        if not auction.bids:
            return self._wait("busy" if auction.refused else "no_bids")
        auction.close(self.task, self._deadline - now, self._prices, self._records)
        self._unrecorded = closed_by, now
        if auction.winner() is None:
            return [*self._record(), *self._finish("failed", now, auction.no_acceptable_bid(self.task))]
        return self._award_next(now)

    def _record(self, deposit: int = 0) -> list[Command]:
        """The auction's transcript, unless it was recorded."""
        if self._unrecorded is None:
            return []
        (closed_by, closed_at), self._unrecorded = self._unrecorded, None
        transcript = self._auction.transcript(
            self.task,
            negotiator=self._negotiator,
            attempt=self._attempts + 1,
            closed_by=closed_by,
            now=closed_at,
            deposit=deposit,
        )
        return [Record(transcript)]

    # ------------------------------------------------------------------ award and attempt

    def _award_next(self, now: float) -> list[Command]:
        """Award the best that is left, once its owner's deposit is held if it offers one. A free tenant asks for none:
        nobody holds anything for its tasks."""
        asked = self._auction.deposit() if self._funds.held is not None else None
        if asked is None:
            return self._award(now)
        self.state = State.DEPOSITING
        candidate, amount = asked
        return [HoldDeposit(amount, self._auction.id, candidate.worker, candidate.owner)]

    def on_deposit(self, auction: str, worker: str, held: bool, now: float) -> list[Command]:
        """The ledger holds the deposit of the winner's owner. If it does not, the bid counts as one without."""
        asked = self._auction.deposit() if self.state is State.DEPOSITING else None
        if asked is None or (auction, worker) != (self._auction.id, asked[0].worker):
            return []
        return self._award(now, asked[1] if held else 0)

    def _award(self, now: float, deposit: int = 0) -> list[Command]:
        won = self._auction.winner(deposit)
        assert won is not None
        (winner, price), task = won, self.task
        recorded = self._record(deposit)
        second_score = self._auction.second_score() if deposit else 0.0
        self._auction.take_winner()
        self._attempts += 1
        if not winner.continues:
            self._streamed = Streamed()  # void from here on, also for whoever comes after
        bid = self._auction.bid_of(winner.worker)
        self._attempt = attempt = _Attempt(
            self._attempts,
            winner.worker,
            winner.owner,
            price,
            self._auction.id,
            winner.contract,
            winner.continues,
            awarded_at=now,
            claimed_ms=(bid.p50_ms, bid.p90_ms),
            usual_price=self._auction.usual_price(winner.worker),
            load=winner.load,
            expected_ms=bid.expected_p50_ms or bid.p50_ms,
            deposit=deposit,
            second_score=second_score,
        )
        attempt.median_ms = max(bid.p50_ms, bid.expected_p50_ms)
        self.state = State.AWARDING
        entry = Awarded.model_construct(
            task=task.id,
            attempt=attempt.number,
            worker=attempt.worker,
            owner=attempt.owner,
            auction=attempt.auction,
            price=price,
            median_ms=attempt.median_ms,
            after_ms=max(now - self._submitted_at, 0.0) * 1e3,
            deposit=deposit,
            second_score=second_score if deposit else None,
            settlements=tuple(self._settlements),
            held=self._funds.held,
            from_number=self._streamed.number,
            contract=winner.contract,
            continues=winner.continues,
            model=winner.model,
            failed=tuple(sorted(self._failed)),
            lost=tuple(self._lost),
            negotiator=self._negotiator,
        )
        award = Award.model_construct(
            auction=self._auction.id,
            negotiator=self._negotiator,
            task=task.id,
            tenant=task.tenant,
            attempt=attempt.number,
            capability=task.capability,
            input=task.input,
            input_ref=task.input_ref,
            price=price,
            deposit=deposit,
            from_number=self._streamed.number,
            resume=self._streamed.resume,
            remaining_ms=max((self._deadline - now) * 1e3, 1.0),
        )
        timer = StartTimer("award", str(attempt.number), self._policy.award_timeout_s)
        # The award first: its reader waits, the transcript's does not.
        return [*self._writer.write(entry), SendAward(attempt.worker, award), timer, *recorded]

    def on_award_reply(self, attempt: int, reply: Confirm | Decline | None, now: float) -> list[Command]:
        """The winner's answer; None if there was none."""
        current = self._attempt
        if self.state is not State.AWARDING or current is None or attempt != current.number:
            return []
        if isinstance(reply, Confirm):
            self._confirm(current, now)
            self.state = State.RUNNING
            return []
        if reply is None:
            commands = self._stop_work()
            self._silent.append(current.worker)
            self._last_error = ErrorInfo(code="worker_lost", message=f"{current.worker} did not take its award")
            if len(self._silent) >= self._policy.max_silent:
                return [*commands, *self._finish("failed", now, self._last_error)]
        else:
            commands = []
            if reply.reason in ("too_long", "unsupported"):
                self._failed.add(current.worker)
                message = f"{current.worker} declined: {reply.reason}"
                self._last_error = ErrorInfo(code=reply.reason, message=message)
        self._attempt, self._last_attempt = None, current
        if self._auction.winner() is not None:
            return [*commands, *self._award_next(now)]
        if reply is not None and reply.reason not in ("too_long", "unsupported"):
            return [*commands, *self._wait("busy")]
        return [*commands, *self._open_auction(now)]

    def _confirm(self, attempt: _Attempt, now: float) -> None:
        if attempt.confirmed_at is None:
            attempt.confirmed_at = attempt.began_at = now
            self._negotiating_s += now - self._auction.opened_at

    def on_done(self, done: Done, violation: str | None, now: float) -> list[Command]:
        """An attempt has ended. `violation`: how its output breaks the contract, if it does."""
        current = self._attempt
        if current is None or self.state not in (State.AWARDING, State.RUNNING, State.RECALLING):
            return []
        if (done.worker, done.attempt, done.auction) != (current.worker, current.number, current.auction):
            return []  # of an older attempt, or of nobody's: void
        if self.state is State.AWARDING:
            self._confirm(current, now)
        if current.began_at is None:  # what another negotiator gave away has ended: it ran
            current.began_at = now if current.awarded_at is None else current.awarded_at
        if done.error is None and violation is None:
            current.answered, current.settlement = True, self._settlement(current, True, now)
            return [*self._finish("completed", now, None, done), *self._learn(current, "contract", True, now)]
        if done.error is not None and done.error.code == HANDED_ON:
            return self._read_stream(now)
        error = done.error or ErrorInfo(code="bad_output", message=f"{current.worker}: {violation}"[:4096])
        self._failed.add(current.worker)
        self._errors += 1
        self._last_error, self._last_attempt = error, current
        retryable = violation is not None or done.retryable
        if not retryable:  # the input's fault as likely as the worker's
            self._attempt = None
            return self._finish("failed", now, error, done)
        self._settle_failed(current, now)
        learned = self._learn(current, "error" if violation is None else "contract", False, now)
        if self._errors >= self._policy.max_attempts:
            self._attempt = None
            return [*learned, *self._bury(), *self._finish("failed", now, error, done)]
        current.continues &= violation is None  # nobody should go on behind what is no answer
        return [*learned, *self._read_stream(now)]

    def on_worker_lost(self, worker: str, now: float) -> list[Command]:
        """A worker's beats are missing."""
        current = self._attempt
        at_work = self.state in (State.AWARDING, State.RUNNING, State.RECALLING)
        if at_work and current is not None and current.worker == worker:
            return [*self._stop_work(), *self._lose(f"{worker} stopped answering", now)]
        if self.state is State.AUCTIONING and self._auction.drop(worker):
            if self._auction.deserted:
                return self._open_auction(now)
            return self._close("all_answered", now) if self._auction.answered else []
        return []

    def _lose(self, message: str, now: float) -> list[Command]:
        attempt = self._attempt
        assert attempt is not None
        self._last_error, self._last_attempt = ErrorInfo(code="worker_lost", message=message), attempt
        learned = self._learn(attempt, "lost", False, now)
        if attempt.confirmed_at is None:
            self._silent.append(attempt.worker)
        else:
            self._lost.append(attempt.worker)
            self._settle_failed(attempt, now)
        if len(self._lost) >= self._policy.max_lost:
            return [*learned, *self._give_up(now)]
        return [*learned, *self._read_stream(now)]

    def _learn(self, attempt: _Attempt, source: Source, passed: bool, now: float) -> list[Command]:
        """What is now verified of an attempt's worker. Only a whole answer tells how long one takes, or a time-out that
        it takes longer."""
        timed = attempt.claimed_ms is not None and (passed or source == "timeout")
        outcome = Outcome(
            worker=attempt.worker,
            capability=self.task.capability,
            task=self.task.id,
            attempt=attempt.number,
            source=source,
            passed=passed,
            price=attempt.price,
            usual_price=attempt.usual_price,
            claimed_ms=attempt.claimed_ms if timed else None,
            actual_ms=(now - (attempt.awarded_at or now)) * 1e3,
            load=attempt.load,
            tenant=self.task.tenant,
            expected_ms=attempt.expected_ms,
        )
        return [Learn(outcome)]

    def _settlement(self, attempt: _Attempt, passed: bool, now: float) -> Settlement | None:
        """What an attempt with a deposit is paid; None for one without."""
        if not attempt.deposit or attempt.auction is None or attempt.awarded_at is None:
            return None
        return settle(
            Terms.of(self.task, self._deadline - attempt.awarded_at),
            attempt=attempt.number,
            auction=attempt.auction,
            worker=attempt.worker,
            owner=attempt.owner,
            deposit=attempt.deposit,
            most=attempt.price,
            second_score=attempt.second_score,
            passed=passed,
            time_ms=max(min(now, self._deadline) - attempt.awarded_at, 0.0) * 1e3,
        )

    def _settle_failed(self, attempt: _Attempt, now: float) -> None:
        if (settled := self._settlement(attempt, False, now)) is not None:
            self._settlements.append(settled)

    def _give_up(self, now: float) -> list[Command]:
        """Too many workers have vanished."""
        if len(set(self._lost)) < self._policy.max_lost:
            return self._finish("failed", now, self._last_error)
        reason = f"{len(self._lost)} workers vanished while they held this task: {', '.join(self._lost)}"
        return [Bury(reason), *self._finish("failed", now, ErrorInfo(code="poison", message=reason))]

    def _bury(self) -> list[Command]:
        """A task that broke every handler that tried it."""
        if not self._errors:
            return []
        error = self._last_error
        return [Bury(f"{self._errors} attempts failed, the last with {error.code}: {error.message}"[:4096])]

    def _read_stream(self, now: float) -> list[Command]:
        """The attempt in hand is over. Go on behind what it streamed, if that can be."""
        assert self._attempt is not None
        self._last_attempt, self._attempt = self._attempt, None
        self._streamed = Streamed()
        if not self._last_attempt.continues:
            return self._open_auction(now)
        self.state = State.READING
        # Only once the attempt stands in the journal: it says which events count.
        return [ReadStream()] if self._writer.idle else []

    def on_streamed(self, streamed: Streamed, now: float) -> list[Command]:
        """What readers have of the attempts so far."""
        if self.state is not State.READING:
            return []
        self._streamed = streamed
        return self._open_auction(now)

    # ------------------------------------------------------------------ the end

    def on_cancel(self, sequence: int, now: float) -> list[Command]:
        """The owner's cancel stands in the journal, at `sequence`."""
        if self.state in (State.FINISHING, State.DONE):
            return []  # decided by the fence: this write or the read-back after it
        if self._writer.outstanding is None:
            self._writer.sequence = max(self._writer.sequence, sequence)
        return self._cancel(_CANCELLED, now)

    def on_client_gone(self, now: float) -> list[Command]:
        """The client is gone that wanted its task cancelled then."""
        if self.state in (State.FINISHING, State.DONE):
            return []
        return self._cancel(ErrorInfo(code="client_gone", message="cancelled: its client is gone"), now)

    def on_timer(self, timer: Timer, key: str, now: float) -> list[Command]:
        """A timer that was started has run out."""
        if timer == "window" and self.state is State.AUCTIONING and key == self._auction.id:
            return self._close("time_limit", now)
        if timer == "retry" and key == self._auction.id:
            return self.wake(now)
        if timer == "funds" and self.state is State.WAITING:
            return [*self._funds.ask(self._deadline - now)]
        if timer == "award" and self._attempt is not None and key == str(self._attempt.number):
            return self.on_award_reply(self._attempt.number, None, now)
        if timer == "deadline" and self.state not in (State.FINISHING, State.DONE):
            late = self._attempt if self.state is State.RUNNING else None
            commands = [*self._stop_work(), *self._expire(now)]
            # It had the time that it had asked for: else the deadline was too near, which is nobody's fault.
            if late is not None and late.overdue(now):
                commands += self._learn(late, "timeout", False, now)
            return commands
        if timer == "notice" and self.state is State.WAITING:
            reason = self._waiting_reason
            if reason is not None and reason != self._told_waiting:
                self._told_waiting = reason
                entry = Waiting(task=self.task.id, reason=reason, negotiator=self._negotiator)
                return [*self._writer.write(entry)]
        return []

    def _stop_work(self) -> list[Command]:
        attempt = self._attempt
        return [CancelWork(attempt.worker, attempt.number, attempt.auction)] if attempt is not None else []

    def _cancel(self, error: ErrorInfo, now: float) -> list[Command]:
        return [*self._stop_work(), *self._finish("cancelled", now, error)]

    def _part(self, run_ms: float) -> int | None:
        """What the attempt in hand has earned by now; None unless it was confirmed and stands in the journal."""
        attempt = self._attempt
        if attempt is None or attempt.began_at is None or attempt.median_ms is None or not self._stands(attempt.number):
            return None
        if attempt.answered:
            return attempt.settlement.price if attempt.settlement else attempt.price
        # What a deposit can add is for answers.
        ordinary = max(attempt.price - attempt.deposit, 0)
        return part_payment(ordinary, run_ms=run_ms, median_ms=attempt.median_ms)

    def _stands(self, attempt: int) -> bool:
        """Whether an attempt's award is in the journal, or on its way there before whatever is written now."""
        coming = self._writer.outstanding
        return attempt in self._entered or (isinstance(coming, Awarded) and coming.attempt == attempt)

    def _expire(self, now: float) -> list[Command]:
        why = f" ({self._waiting_reason.replace('_', ' ')})" if self._waiting_reason and not self._attempt else ""
        message = f"the deadline of {self.task.deadline_s:g} s passed{why}"
        return self._finish("expired", now, ErrorInfo(code="expired", message=message))

    def _finish(
        self,
        status: Literal["completed", "failed", "expired", "cancelled"],
        now: float,
        error: ErrorInfo | None,
        done: Done | None = None,
    ) -> list[Command]:
        self.state = State.FINISHING
        attempt = self._attempt or self._last_attempt
        completed = status == "completed" and done is not None
        running_ms = max(now - attempt.began_at, 0.0) * 1e3 if attempt and attempt.began_at is not None else 0.0
        # Of what is not yet written only the award stays whose worker has spoken: else no reader takes its events.
        spoken = done.attempt if done else None
        standing = [one for one in self._settlements if self._stands(one.attempt) or one.attempt == spoken]
        price, settled = None, None
        if completed and attempt is not None:
            settled = attempt.settlement
            price = settled.price if settled is not None else attempt.price
        elif status == "cancelled":
            price = self._part(running_ms)
            settled = self._attempt.settlement if self._attempt is not None and price is not None else None
        elif status == "expired" and self._attempt is not None and self._attempt.began_at is not None:
            settled = self._settlement(self._attempt, False, now)
        self._final = final = Final.model_construct(
            task=self.task.id,
            tenant=self.task.tenant,
            capability=self.task.capability,
            status=status,
            output=done.output if completed and done else None,
            output_ref=done.output_ref if completed and done else None,
            digest=done.digest if completed and done else None,
            worker=attempt.worker if attempt else None,
            owner=attempt.owner if attempt else None,
            price=price,
            settlements=tuple(standing if settled is None else [*standing, settled]),
            held=self._funds.held,
            attempt=attempt.number if attempt else None,
            auction=attempt.auction if attempt else None,
            attempts=self._attempts,
            number=done.number + 1 if done else None,
            bids=self._bids_taken,
            usage=done.usage if done else None,
            error=error,
            negotiator=self._negotiator,
            timings=Timings.model_construct(
                queued_ms=max((self._opened_at or now) - self._submitted_at, 0.0) * 1e3,
                negotiation_ms=self._negotiating_s * 1e3,
                running_ms=running_ms,
                total_ms=max(now - self._submitted_at, 0.0) * 1e3,
            ),
        )
        self._writer.keep(lambda entry: isinstance(entry, Awarded) and entry.attempt == spoken)
        return [*self._writer.write(final)]

    # ------------------------------------------------------------------ the journal

    def on_stored(self, sequence: int) -> list[Command]:
        """The outstanding entry was stored."""
        entry = self._writer.stored(sequence)
        if isinstance(entry, Awarded):
            self._entered.add(entry.attempt)
        if isinstance(entry, Final):
            self.state = State.DONE
            return [Finished(entry)]
        if self.state is State.READING and self._writer.idle:
            return [ReadStream()]
        return [*self._writer.next()]

    def on_refused(self, journal: Sequence[tuple[int, JournalEntry | None]], now: float) -> list[Command]:
        """The outstanding entry was refused, or its acknowledgement lost; `journal` is what stands there now."""
        entry = self._writer.outstanding
        if entry is None:
            return []
        cancelled = False
        for sequence, found in journal:
            if sequence <= self._writer.sequence:
                continue
            if found is not None and found.encode() == entry.encode():
                return self.on_stored(sequence)
            self._writer.sequence = sequence
            if isinstance(found, Final):
                self._writer.outstanding, self.state, self._final = None, State.DONE, found
                return [*self._stop_work(), Finished(found)]
            if isinstance(found, Awarded):
                self._writer.outstanding, self.state = None, State.DONE
                return [*self._stop_work(), Abandon()]
            cancelled |= isinstance(found, CancelAsked)
        self._writer.outstanding = None
        if cancelled:
            self._writer.keep(lambda _: False)
            return self._cancel(_CANCELLED, now)
        return [*self._writer.write(entry)]

    def _catch_up(self, journal: Sequence[tuple[int, JournalEntry | None]]) -> None:
        """Take over what another negotiator, or this one before, has decided."""
        for sequence, entry in journal:
            self._writer.sequence = sequence
            if isinstance(entry, Awarded):
                self._attempts = entry.attempt
                self._attempt = _Attempt(
                    entry.attempt,
                    entry.worker,
                    entry.owner,
                    entry.price,
                    entry.auction,
                    entry.contract,
                    entry.continues,
                    awarded_at=None if entry.after_ms is None else self._submitted_at + entry.after_ms / 1e3,
                    median_ms=entry.median_ms,
                    deposit=entry.deposit,
                    second_score=entry.second_score or 0.0,
                )
                self._settlements = list(entry.settlements)
                self._entered.add(entry.attempt)
                self._entered.update(one.attempt for one in entry.settlements)
                self._funds.found(entry.held)
                self._failed, self._lost = set(entry.failed), list(entry.lost)
                self._errors = len(self._failed)
            elif isinstance(entry, CancelAsked):
                self._cancel_asked = True
            elif isinstance(entry, Final):
                self._final = entry
