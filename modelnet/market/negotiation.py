"""One task's life, from being taken off the queue to its Final, as a state machine: events in, commands out.

    AUCTIONING -> AWARDING -> RUNNING -> FINISHING -> DONE        WAITING -> AUCTIONING when capacity may be there

No I/O, no clock, no randomness: times are handed in as monotonic seconds, ids by `new_id`, the state of the network by
`find`. Journal entries are written one at a time, each on the sequence of the one before; an award goes out beside its
entry, without waiting for it, because only the pair in the journal makes an attempt's events count and only a Final
written after that entry can be stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from modelnet.messages import (
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
    ScoredBid,
    Task,
    Timings,
    Transcript,
    Waiting,
)

from .commands import (
    Abandon,
    AskForBids,
    CancelWork,
    Command,
    Finished,
    Hold,
    Record,
    SendAward,
    StartTimer,
    Timer,
    Write,
)
from .directory import Candidate
from .reference import ReferencePrices
from .scoring import Offered, Terms, payment, rank

__all__ = ["Negotiation", "Policy", "State"]

Entry = Awarded | Waiting | Final


class State(Enum):
    """Where the task stands with this negotiator."""

    AUCTIONING = auto()
    AWARDING = auto()
    RUNNING = auto()
    WAITING = auto()
    FINISHING = auto()
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Policy:
    """The negotiator's bounds. Times in seconds."""

    window_s: float = 0.2
    award_timeout_s: float = 2.0
    max_attempts: int = 3
    notice_s: float = 0.5
    """How long a task waits before its readers are told why."""
    retry_s: float = 0.1
    """Pause before an auction that nobody answered is held again."""


@dataclass(slots=True)
class _Attempt:
    """The attempt in hand."""

    number: int
    worker: str
    price: int
    contract: str
    confirmed_at: float | None = None


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
        now: float,
        age_s: float,
        journal: Sequence[tuple[int, JournalEntry | None]] = (),
    ) -> None:
        """`age_s`: how long ago the server stamped the task. `journal`: its entries with their sequences, if any; None
        stands for one that cannot be read.

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
        self._submitted_at = now - age_s
        self._deadline = self._submitted_at + task.deadline_s
        self._opened_at: float | None = None
        self._auction_at = now
        self._negotiating_s = 0.0
        self._auction = ""
        self._candidates: dict[str, Candidate] = {}
        self._settled = True
        self._bids: dict[str, Bid] = {}
        self._refusals: dict[str, str] = {}
        self._ranking: deque[ScoredBid] = deque()
        self._terms = Terms.of(task, task.deadline_s - age_s)
        self._references: dict[str, int] = {}
        self._attempt: _Attempt | None = None
        self._last_attempt: _Attempt | None = None
        self._attempts = 0
        self._failed_attempts = 0
        self._bids_taken = 0
        self._failed: set[str] = set()
        self._last_error = ErrorInfo(code="failed", message="")
        self._final: Final | None = None
        self._waiting_reason: Literal["no_worker", "busy", "no_bids"] | None = None
        self._told_waiting: str | None = None
        self._sequence = 0
        self._outstanding: Entry | None = None
        self._queue: deque[Entry] = deque()
        self._stale_workers: list[tuple[str, int]] = []
        self._cancel_asked = False
        self._catch_up(journal)

    @property
    def auction(self) -> str:
        """Id of the auction that is open or was last open."""
        return self._auction

    @property
    def running(self) -> tuple[str, int, float] | None:
        """Worker, attempt number and time of the Confirm, while a confirmed attempt runs."""
        attempt = self._attempt
        if self.state is not State.RUNNING or attempt is None or attempt.confirmed_at is None:
            return None
        return attempt.worker, attempt.number, attempt.confirmed_at

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
        stale: list[Command] = [CancelWork(worker, attempt) for worker, attempt in self._stale_workers]
        self._stale_workers.clear()
        if self._cancel_asked:
            return [*stale, *self._finish("cancelled", now, ErrorInfo(code="cancelled", message="cancelled"))]
        if now >= self._deadline:
            return [*stale, *self._expire(now)]
        timer = StartTimer("deadline", "", self._deadline - now)
        if queue:
            self._opened_at = now
            return [*stale, timer, *self._wait("busy")]
        return [*stale, timer, *self._open_auction(now)]

    def reject(self, error: ErrorInfo, now: float) -> list[Command]:
        """End a task that should never have been asked for: unknown capability, contract violation."""
        return self._finish("failed", now, error)

    def wake(self, now: float) -> list[Command]:
        """Capacity may be there: try again, if the task waits."""
        return self._open_auction(now) if self.state is State.WAITING else []

    def _wait(self, reason: Literal["no_worker", "busy", "no_bids"]) -> list[Command]:
        self.state, self._waiting_reason = State.WAITING, reason
        commands: list[Command] = []
        if reason == "no_bids":  # they live but were too slow: nothing will announce that they are quicker now
            commands.append(StartTimer("retry", self._auction, self._policy.retry_s))
        if self._told_waiting != reason:
            commands.append(StartTimer("notice", reason, self._policy.notice_s))
        # Last: a shell that gives the task back ends its timers, and must not be told to start more.
        return [*commands, Hold(reason)]

    # ------------------------------------------------------------------ the auction

    def _open_auction(self, now: float) -> list[Command]:
        found, self._settled = self._find(frozenset(self._failed))
        if self._opened_at is None:
            self._opened_at = now
        if not found:
            if self._failed:
                return self._finish("failed", now, self._last_error)
            return self._wait("no_worker")
        self.state = State.AUCTIONING
        self._auction, self._auction_at = self._new_id(), now
        self._candidates = {candidate.worker: candidate for candidate in found}
        self._bids, self._refusals = {}, {}
        task, window_s = self.task, min(self._policy.window_s, max(self._deadline - now, 1e-3))
        request = BidRequest.model_construct(
            auction=self._auction,
            negotiator=self._negotiator,
            capability=task.capability,
            features=self._features,
            remaining_ms=max((self._deadline - now) * 1e3, 1.0),
            window_ms=window_s * 1e3,
            require=task.require,
            exclude=task.exclude,
            contract=task.contract,
        )
        return [AskForBids(request), StartTimer("window", self._auction, window_s)]

    def on_bid(self, reply: Bid | Refusal, now: float, newcomer: Candidate | None = None) -> list[Command]:
        """A bid or refusal. `newcomer`: what is known of a bidder that was unknown when the request went out."""
        if self.state is not State.AUCTIONING or reply.auction != self._auction or reply.worker in self._failed:
            return []
        if reply.worker not in self._candidates:
            if newcomer is None:
                return []
            self._candidates[reply.worker] = newcomer
        if reply.worker in self._bids or reply.worker in self._refusals:
            return []  # binding: the first one counts
        if isinstance(reply, Bid):
            self._bids[reply.worker] = reply
        else:
            self._refusals[reply.worker] = reply.reason
        return self._close_if_answered(now)

    def _close_if_answered(self, now: float) -> list[Command]:
        answered = len(self._bids) + len(self._refusals) >= len(self._candidates)
        return self._close("all_answered", now) if self._settled and answered else []

    def _close(self, closed_by: Literal["all_answered", "time_limit"], now: float) -> list[Command]:
        self._bids_taken += len(self._bids)
        if not self._bids:
            answered = bool(self._refusals)
            return self._wait("busy" if answered else "no_bids")
        terms = Terms.of(self.task, self._deadline - now)
        known = self._candidates
        offered = [Offered(bid, known[who].owner, known[who].quality) for who, bid in self._bids.items()]
        ranking = rank(self.task.id, terms, offered)
        for bid in self._bids.values():
            self._prices.learn(self.task.capability, bid.worker, bid.price)
        references = {who: self._prices.reference(self.task.capability, who) for who in self._bids}
        self._references = {who: price for who, price in references.items() if price is not None}
        self._terms = terms
        self._ranking = deque(bid for bid in ranking if bid.eligible)
        winner, price = self._winner()
        transcript = Transcript.model_construct(
            auction=self._auction,
            task=self.task.id,
            tenant=self.task.tenant,
            capability=self.task.capability,
            negotiator=self._negotiator,
            attempt=self._attempts + 1,
            closed_by=closed_by,
            asked=len(self._candidates),
            window_ms=(now - self._auction_at) * 1e3,
            remaining_ms=terms.remaining_s * 1e3,
            budget=terms.budget,
            value=terms.value,
            value_of_time=terms.value_of_time,
            min_quality=terms.min_quality,
            reference_price=self._references,
            bids=tuple(ranking),
            refusals=self._refusals,
            winner=winner.worker if winner else None,
            price=price,
        )
        if winner is None:
            error = self._no_acceptable_bid(ranking)
            return [Record(transcript), *self._finish("failed", now, error)]
        # The award first: its reader waits, the transcript's does not.
        return [*self._award(now), Record(transcript)]

    def _winner(self) -> tuple[ScoredBid | None, int | None]:
        if not self._ranking:
            return None, None
        winner, rest = self._ranking[0], list(self._ranking)[1:]
        return winner, payment(self._terms, winner, rest, self._references.get(winner.worker))

    def _no_acceptable_bid(self, ranking: list[ScoredBid]) -> ErrorInfo:
        lowest = min(bid.price for bid in ranking)
        if lowest > self.task.budget:
            message = f"the lowest of {len(ranking)} bids asks {lowest}, the budget is {self.task.budget}"
            return ErrorInfo(code="over_budget", message=message)
        if all(bid.quality < self.task.min_quality for bid in ranking):
            best = max(bid.quality for bid in ranking)
            message = f"the best expected quality is {best:.2f}, {self.task.min_quality:.2f} was asked for"
            return ErrorInfo(code="quality_too_low", message=message)
        message = f"none of {len(ranking)} bids is worth its price: the best scores {ranking[0].score:.1f}"
        return ErrorInfo(code="no_acceptable_bid", message=message)

    # ------------------------------------------------------------------ award and attempt

    def _award(self, now: float) -> list[Command]:
        winner, price = self._winner()
        assert winner is not None
        assert price is not None
        self._ranking.popleft()
        self._attempts += 1
        contract = self._candidates[winner.worker].contract
        self._attempt = attempt = _Attempt(self._attempts, winner.worker, price, contract)
        self.state = State.AWARDING
        entry = Awarded.model_construct(
            task=self.task.id,
            attempt=attempt.number,
            worker=attempt.worker,
            price=price,
            from_number=0,
            negotiator=self._negotiator,
        )
        award = Award.model_construct(
            auction=self._auction,
            negotiator=self._negotiator,
            task=self.task.id,
            tenant=self.task.tenant,
            attempt=attempt.number,
            capability=self.task.capability,
            input=self.task.input,
            price=price,
            from_number=0,
            remaining_ms=max((self._deadline - now) * 1e3, 1.0),
        )
        timer = StartTimer("award", str(attempt.number), self._policy.award_timeout_s)
        return [*self._write(entry), SendAward(attempt.worker, award), timer]

    def on_award_reply(self, attempt: int, reply: Confirm | Decline | None, now: float) -> list[Command]:
        """The winner's answer; None if there was none."""
        current = self._attempt
        if self.state is not State.AWARDING or current is None or attempt != current.number:
            return []
        if isinstance(reply, Confirm):
            current.confirmed_at = now
            self._negotiating_s += now - self._auction_at
            self.state = State.RUNNING
            return []
        reason = reply.reason if reply else "no answer"
        commands: list[Command] = [] if reply else [CancelWork(current.worker, current.number)]
        self._attempt = None
        if reply is None:
            self._failed.add(current.worker)
            self._last_error = ErrorInfo(code="worker_lost", message=f"{current.worker} did not take its award")
        elif reason in ("too_long", "unsupported"):
            self._failed.add(current.worker)
            self._last_error = ErrorInfo(code=reason, message=f"{current.worker} declined: {reason}")
        if self._ranking:
            return [*commands, *self._award(now)]
        if reply is not None and reason not in ("too_long", "unsupported"):
            return [*commands, *self._wait("busy")]
        return [*commands, *self._open_auction(now)]

    def on_done(self, done: Done, violation: str | None, now: float) -> list[Command]:
        """An attempt has ended. `violation`: how its output breaks the contract, if it does."""
        current = self._attempt
        if current is None or self.state not in (State.AWARDING, State.RUNNING):
            return []
        if (done.worker, done.attempt) != (current.worker, current.number):
            return []  # of an older attempt, or of nobody's: void
        if current.confirmed_at is None:
            current.confirmed_at = now
            self._negotiating_s += now - self._auction_at
        if done.error is None and violation is None:
            return self._finish("completed", now, None, done)
        error = done.error or ErrorInfo(code="bad_output", message=f"{current.worker}: {violation}"[:4096])
        return self._next_attempt(error, now, retryable=done.error is None or done.retryable, done=done)

    def on_worker_lost(self, worker: str, now: float) -> list[Command]:
        """A worker's beats are missing."""
        current = self._attempt
        if self.state in (State.AWARDING, State.RUNNING) and current is not None and current.worker == worker:
            error = ErrorInfo(code="worker_lost", message=f"{worker} stopped answering")
            return [CancelWork(worker, current.number), *self._next_attempt(error, now, retryable=True, done=None)]
        if self.state is State.AUCTIONING and self._candidates.pop(worker, None) is not None:
            self._bids.pop(worker, None)
            self._refusals.pop(worker, None)
            if not self._candidates:
                return self._open_auction(now)
            return self._close_if_answered(now)
        return []

    def _next_attempt(self, error: ErrorInfo, now: float, *, retryable: bool, done: Done | None) -> list[Command]:
        assert self._attempt is not None
        self._failed.add(self._attempt.worker)
        self._last_attempt = self._attempt
        self._failed_attempts += 1
        self._last_error = error
        if not retryable or self._failed_attempts >= self._policy.max_attempts:
            return self._finish("failed", now, error, done)
        self._attempt = None
        return self._open_auction(now)

    # ------------------------------------------------------------------ the end

    def on_cancel(self, sequence: int, now: float) -> list[Command]:
        """The owner's cancel stands in the journal, at `sequence`."""
        if self.state in (State.FINISHING, State.DONE):
            return []  # decided by the fence: this write or the read-back after it
        if self._outstanding is None:
            self._sequence = max(self._sequence, sequence)
        commands: list[Command] = []
        if self._attempt is not None:
            commands.append(CancelWork(self._attempt.worker, self._attempt.number))
        return [*commands, *self._finish("cancelled", now, ErrorInfo(code="cancelled", message="cancelled"))]

    def on_timer(self, timer: Timer, key: str, now: float) -> list[Command]:
        """A timer that was started has run out."""
        if timer == "window" and self.state is State.AUCTIONING and key == self._auction:
            return self._close("time_limit", now)
        if timer == "retry" and key == self._auction:
            return self.wake(now)
        if timer == "award" and self._attempt is not None and key == str(self._attempt.number):
            return self.on_award_reply(self._attempt.number, None, now)
        if timer == "deadline" and self.state not in (State.FINISHING, State.DONE):
            commands: list[Command] = []
            if self._attempt is not None:
                commands.append(CancelWork(self._attempt.worker, self._attempt.number))
            return [*commands, *self._expire(now)]
        if timer == "notice" and self.state is State.WAITING:
            reason = self._waiting_reason
            if reason is not None and reason != self._told_waiting:
                self._told_waiting = reason
                return self._write(Waiting(task=self.task.id, reason=reason, negotiator=self._negotiator))
        return []

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
        running_s = now - attempt.confirmed_at if attempt and attempt.confirmed_at is not None else 0.0
        self._final = final = Final.model_construct(
            task=self.task.id,
            tenant=self.task.tenant,
            capability=self.task.capability,
            status=status,
            output=done.output if completed and done else None,
            digest=done.digest if completed and done else None,
            worker=attempt.worker if attempt else None,
            price=attempt.price if completed and attempt else None,
            attempt=attempt.number if attempt else None,
            attempts=self._attempts,
            number=done.number + 1 if done else None,
            bids=self._bids_taken,
            usage=done.usage if done else None,
            error=error,
            negotiator=self._negotiator,
            timings=Timings.model_construct(
                queued_ms=max((self._opened_at or now) - self._submitted_at, 0.0) * 1e3,
                negotiation_ms=self._negotiating_s * 1e3,
                running_ms=running_s * 1e3,
                total_ms=max(now - self._submitted_at, 0.0) * 1e3,
            ),
        )
        # Of what is not yet written only the award stays whose worker has spoken: else no reader takes its events.
        spoken = done.attempt if done else None
        self._queue = deque(e for e in self._queue if isinstance(e, Awarded) and e.attempt == spoken)
        return self._write(final)

    # ------------------------------------------------------------------ the journal

    def _write(self, entry: Entry) -> list[Command]:
        if self._outstanding is not None:
            self._queue.append(entry)
            return []
        self._outstanding = entry
        return [Write(entry, self._sequence)]

    def on_stored(self, sequence: int) -> list[Command]:
        """The outstanding entry was stored."""
        entry, self._outstanding = self._outstanding, None
        self._sequence = sequence
        if isinstance(entry, Final):
            self.state = State.DONE
            return [Finished(entry)]
        return self._write(self._queue.popleft()) if self._queue else []

    def on_refused(self, journal: Sequence[tuple[int, JournalEntry | None]], now: float) -> list[Command]:
        """The outstanding entry was refused, or its acknowledgement lost; `journal` is what stands there now."""
        entry = self._outstanding
        if entry is None:
            return []
        self._outstanding = None
        news = [(sequence, found) for sequence, found in journal if sequence > self._sequence]
        attempt, cancel = self._attempt, list[Command]()
        if attempt is not None:
            cancel.append(CancelWork(attempt.worker, attempt.number))
        for sequence, found in news:
            self._sequence = sequence
            if found is not None and found.encode() == entry.encode():
                self._outstanding = entry
                return self.on_stored(sequence)
            if isinstance(found, Final):
                self.state, self._final = State.DONE, found
                return [*cancel, Finished(found)]
            if isinstance(found, Awarded):
                self.state = State.DONE
                if attempt is not None and (found.worker, found.attempt) == (attempt.worker, attempt.number):
                    cancel.clear()  # both gave the same attempt to the same worker: it is the other's now
                return [*cancel, Abandon()]
            if isinstance(found, CancelAsked):
                self._queue.clear()
                return [*cancel, *self._finish("cancelled", now, ErrorInfo(code="cancelled", message="cancelled"))]
        return self._write(entry)

    def _catch_up(self, journal: Sequence[tuple[int, JournalEntry | None]]) -> None:
        """Take over what another negotiator, or this one before, has decided."""
        for sequence, entry in journal:
            self._sequence = sequence
            if isinstance(entry, Awarded):
                self._attempts = entry.attempt
                self._stale_workers.append((entry.worker, entry.attempt))
            elif isinstance(entry, CancelAsked):
                self._cancel_asked = True
            elif isinstance(entry, Final):
                self._final = entry
