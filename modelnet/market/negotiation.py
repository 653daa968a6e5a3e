"""The life of a task that one worker answers, from being taken off the queue to its Final: events in, commands out.

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
from typing import Literal

from modelnet.messages import (
    HANDED_ON,
    Award,
    Awarded,
    Bid,
    BidRequest,
    Claim,
    Confirm,
    Decline,
    Done,
    ErrorInfo,
    Features,
    Final,
    Refusal,
    Settlement,
    Task,
    Timings,
    Waiting,
)

from .attempt import Attempt
from .auction import Auction, ClosedBy
from .candidate import Candidate
from .claims import Claims
from .commands import (
    AskForBids,
    Bury,
    CancelWork,
    Command,
    Hold,
    HoldDeposit,
    Inquire,
    Learn,
    ReadStream,
    Recall,
    Record,
    SendAward,
    StartTimer,
    Streamed,
    TellClaim,
    Timer,
    WaitingReason,
)
from .directory import Invited
from .funds import Funds
from .journal_writer import Entry
from .records import Outcome
from .reference import ReferencePrices
from .reputation import Source
from .scoring import Offered, median_run_ms
from .strategy import Plan
from .undertaking import Journal, State, Status, Undertaking

__all__ = ["Negotiation", "Policy"]

_AUCTION = Plan("auction")
_FAILED = ErrorInfo(code="failed", message="")


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
    pause_s: float = 1.0
    """Pause before an auction without an acceptable bid is held again, if others were too busy to bid; doubled each
    time."""
    longest_pause_s: float = 16.0
    ledger_retry_s: float = 1.0
    """Pause before the ledger is asked again."""
    more_rounds: int = 2
    """In a large market, how often others are asked at once where all who were asked are full."""


class Negotiation(Undertaking):
    """A task that one worker answers, after an auction or from its standing offer."""

    def __init__(
        self,
        task: Task,
        features: Features,
        *,
        negotiator: str,
        policy: Policy,
        new_id: Callable[[], str],
        find: Callable[[str, frozenset[str], str | None], Invited],
        prices: ReferencePrices,
        claims: Claims,
        now: float,
        age_s: float,
        journal: Journal = (),
        charged: bool = False,
        plan: Plan = _AUCTION,
        standing: Callable[[Sequence[Candidate]], Sequence[tuple[Candidate, Offered]]] = lambda _: (),
    ) -> None:
        """`age_s`: how long ago the server stamped the task. `charged`: whether its tenant's money must be held before
        an award. `plan`: `spot`, or an auction.

        `find(auction, excluded, caller)` gives the workers to ask now, among them the one whose slot became free;
        `standing(candidates)` the standing offers of those that have room.
        """
        super().__init__(task, negotiator=negotiator, now=now, age_s=age_s)
        self._plan, self._standing = plan, standing
        self._spot = plan.kind == "spot"
        """Whether a standing offer may be taken next; once, then bids are asked for."""
        self._features = features
        self._policy = policy
        self._new_id = new_id
        self._find = find
        self._prices = prices
        self._claims = claims
        self._opened_at: float | None = None
        self._negotiating_s = 0.0
        self._auction = Auction("", (), settled=False, now=now)
        self._attempt: Attempt | None = None
        self._last_attempt: Attempt | None = None
        self._everybody = True
        """Whether the open auction asks all who could answer."""
        self._rounds = 0
        """Auctions in a row that a shortlist has refused."""
        self._attempts = 0
        self._bids_taken = 0
        self._failed: set[str] = set()
        self._errors = 0
        self._lost: list[str] = []
        self._silent: list[str] = []
        self._last_error = _FAILED
        self._streamed = Streamed()
        self._funds = Funds(task.budget if charged else None)
        self._closed_by: ClosedBy | None = None
        """Why the open auction would be closed, while it waits for the tenant's money."""
        self._unrecorded: tuple[ClosedBy, float] | None = None
        """Why and when the auction was closed, until its transcript is recorded."""
        self._settlements: list[Settlement] = []
        """Of attempts that have failed."""
        self._entered = set[int]()
        """Attempts that stand in the journal."""
        self._waiting_reason: WaitingReason | None = None
        self._told_waiting: str | None = None
        self._pause_s = 0.0
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

    def _start(self, now: float, *, queue: bool) -> list[Command]:
        if self._attempt is not None:
            self.state = State.RECALLING
            return [Recall(self._attempt.worker, self._attempt.number, self._attempt.auction)]
        if queue:
            self._opened_at = now
            return self._wait("busy")
        return self._open_auction(now)

    def on_recalled(self, attempt: int, answer: Literal["running", "unknown", "silent"], now: float) -> list[Command]:
        """What the worker says of the attempt that this negotiator found in the journal."""
        current = self._attempt
        if self.state is not State.RECALLING or current is None or attempt != current.number:
            return []
        if answer == "running":
            current.confirmed_at = now
            current.must_have_begun(now)
            self.state = State.RUNNING
            return []
        if current.asked:
            return self._not_taken(current, now)
        if answer == "silent":
            return [*self._stop_work(), *self._lose(f"{current.worker} stopped answering", now)]
        return self._read_stream(now)  # the award never reached it, or it has started anew since

    def wake(self, now: float, caller: str | None = None) -> list[Command]:
        """Capacity may be there, at the worker `caller`: try again, if the task waits for that."""
        self._rounds = 0
        waits = self.state is State.WAITING and self._waiting_reason not in ("poor_bids", "ledger_away")
        return self._open_auction(now, caller) if waits else []

    def _wait(self, reason: WaitingReason) -> list[Command]:
        self.state, self._waiting_reason = State.WAITING, reason
        commands: list[Command] = []
        if reason == "no_bids":  # they live but were too slow: nothing will announce that they are quicker now
            commands.append(StartTimer("retry", self._auction.id, self._policy.retry_s))
        if reason == "poor_bids":
            self._pause_s = min(max(2 * self._pause_s, self._policy.pause_s), self._policy.longest_pause_s)
            commands.append(StartTimer("retry", self._auction.id, self._pause_s))
        if reason == "ledger_away":
            commands.append(StartTimer("funds", "", self._policy.ledger_retry_s))
        if self._told_waiting != reason:
            commands.append(StartTimer("notice", reason, self._policy.notice_s))
        # Last: a shell that gives the task back ends its timers, and must not be told to start more.
        return [*commands, Hold(reason)]

    # ------------------------------------------------------------------ the auction

    def _open_auction(self, now: float, caller: str | None = None) -> list[Command]:
        absent, auction = {*self._lost, *self._silent}, self._new_id()
        found, settled, everybody = self._find(auction, frozenset(self._failed | absent), caller)
        if not found and absent:  # who vanished may have come back
            found, settled, everybody = self._find(auction, frozenset(self._failed), caller)
        if self._opened_at is None:
            self._opened_at = now
        if not found:
            if self._failed and self._failed.issuperset(absent):
                return [*self._bury(), *self._finish("failed", now, self._last_error)]
            return self._wait("no_worker")
        self.state, self._closed_by = State.AUCTIONING, None
        if self._spot:
            self._spot = False
            if offers := self._standing(found):
                return self._take_offer(auction, offers, now)
        self._auction = Auction(auction, found, settled=settled, now=now)
        self._everybody = everybody
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
        asked = () if everybody else tuple(candidate.worker for candidate in found)
        return [AskForBids(request, asked), *funds, StartTimer("window", self._auction.id, window_s)]

    def _take_offer(self, id: str, offers: Sequence[tuple[Candidate, Offered]], now: float) -> list[Command]:
        self._auction = Auction.of_offers(id, offers, now=now)
        return [*self._funds.ask(self._deadline - now), *self._close("offers", now)]

    def on_bid(self, reply: Bid | Refusal, now: float, newcomer: Candidate | None = None) -> list[Command]:
        """A bid or refusal. `newcomer`: what is known of a bidder that was unknown when the request went out."""
        if self.state is not State.AUCTIONING or reply.auction != self._auction.id or reply.worker in self._failed:
            return []
        if not self._auction.take(reply, newcomer):
            return []
        return self._close("all_answered", now) if self._auction.answered else []

    def on_held(self, refusal: ErrorInfo | None, now: float) -> list[Command]:
        """The ledger holds the tenant's money, or says why it does not."""
        if not self._funds.asked or self.over:
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
        if not self._funds.asked or self.over:
            return []
        self._funds.delay()
        return self._wait("ledger_away")

    def _close(self, closed_by: ClosedBy, now: float) -> list[Command]:
        if not self._funds.ready:
            self._closed_by = closed_by
            return []
        auction = self._auction
        self._bids_taken += len(auction.bids)
        auction.set_aside(self._claims, now)
        if not auction.bids:
            if auction.refused and not self._everybody and self._rounds < self._policy.more_rounds:
                self._rounds += 1
                return self._open_auction(now)
            return self._wait("busy" if auction.refused else "no_bids")
        auction.close(self.task, self._deadline - now, self._prices)
        if auction.spot and auction.winner() is None:
            return self._open_auction(now)
        self._unrecorded = closed_by, now
        if auction.winner() is not None:
            return self._award_next(now)
        error = auction.no_acceptable_bid(self.task)
        if error.code == "no_acceptable_bid" and auction.somebody_is_full:
            return [*self._record(), *self._wait("poor_bids")]
        return [*self._record(), *self._finish("failed", now, error)]

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
            why=self._plan.why,
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
        self._attempt = attempt = Attempt(
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
            median_ms=median_run_ms(bid),
            wait_s=min(bid.wait_ms, bid.p50_ms) / 1e3,
            deposit=deposit,
            second_score=second_score,
        )
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
        self._claims.add(attempt.worker, self._key(attempt), now)
        claim = Claim.model_construct(tenant=task.tenant, task=task.id, attempt=attempt.number, p90_ms=bid.p90_ms)
        timer = StartTimer("award", str(attempt.number), self._policy.award_timeout_s)
        # The award first: its reader waits, the journal's and the transcript's do not. The claim behind it: who has
        # heard of it is sure that the worker knows before it hears from him.
        told = SendAward(attempt.worker, award), TellClaim(attempt.worker, claim)
        return [*told, *self._writer.write(entry), timer, *recorded]

    def _release(self, attempt: Attempt) -> None:
        """It occupies no slot, or no longer."""
        self._claims.drop(attempt.worker, self._key(attempt))

    def _key(self, attempt: Attempt) -> tuple[str, str, int]:
        return self.task.tenant, self.task.id, attempt.number

    def on_award_reply(self, attempt: int, reply: Confirm | Decline | None, now: float) -> list[Command]:
        """The winner's answer; None if there was none."""
        current = self._attempt
        if self.state is not State.AWARDING or current is None or attempt != current.number:
            return []
        if isinstance(reply, Confirm):
            self._confirm(current, now)
            self._claims.confirm(current.worker, self._key(current), now)
            self.state = State.RUNNING
            return []
        if reply is None:
            return self._not_taken(current, now)
        if current.asked and reply.reason == "unknown":  # it may be through, and its Done lost
            self.state = State.RECALLING
            return [Recall(current.worker, current.number, current.auction)]
        self._release(current)
        if reply.reason in ("too_long", "unsupported"):
            self._failed.add(current.worker)
            message = f"{current.worker} declined: {reply.reason}"
            self._last_error = ErrorInfo(code=reply.reason, message=message)
            return self._award_another(current, now)
        return self._award_another(current, now, busy=not self._auction.spot)

    def _on_silence(self, attempt: Attempt, now: float) -> list[Command]:
        """The winner does not answer: it is asked once, behind its award, before the task is given to another. It may
        have begun, and be too busy to say so."""
        if self.state is not State.AWARDING or attempt.asked:
            return self.on_award_reply(attempt.number, None, now)
        attempt.asked = True
        timer = StartTimer("award", str(attempt.number), self._policy.award_timeout_s)
        return [Inquire(attempt.worker, attempt.number, attempt.auction), timer]

    def _not_taken(self, attempt: Attempt, now: float) -> list[Command]:
        """Its worker does not have it, or does not say."""
        commands = self._stop_work()
        self._silent.append(attempt.worker)
        self._last_error = ErrorInfo(code="worker_lost", message=f"{attempt.worker} did not take its award")
        if len(self._silent) >= self._policy.max_silent:
            return [*commands, *self._finish("failed", now, self._last_error)]
        return [*commands, *self._award_another(attempt, now)]

    def _award_another(self, attempt: Attempt, now: float, *, busy: bool = False) -> list[Command]:
        """To the next best of those that have bid, or after another auction; that waits if it was `busy`."""
        self._attempt, self._last_attempt = None, attempt
        self._auction.pass_over(self._claims, now)
        if self._auction.winner() is not None:
            return self._award_next(now)
        return self._wait("busy") if busy else self._open_auction(now)

    def _confirm(self, attempt: Attempt, now: float) -> None:
        if attempt.confirmed_at is None:
            # One that had to be asked has had its award for as long as it was waited for.
            since = attempt.awarded_at if attempt.asked and attempt.awarded_at is not None else now
            attempt.confirmed_at, attempt.began_at = now, since + attempt.wait_s
            self._negotiating_s += now - self._auction.opened_at

    def on_done(self, done: Done, violation: str | None, now: float) -> list[Command]:
        """An attempt has ended. `violation`: how its output breaks the contract, if it does."""
        current = self._attempt
        if current is None or self.state not in (State.AWARDING, State.RUNNING, State.RECALLING):
            return []
        if (done.worker, done.attempt, done.auction) != (current.worker, current.number, current.auction):
            return []  # of an older attempt, or of nobody's: void
        self._release(current)
        if self.state is State.AWARDING:
            self._confirm(current, now)
        current.must_have_begun(now)
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
            return self._close(self._closed_by or "all_answered", now) if self._auction.answered else []
        return []

    def _lose(self, message: str, now: float) -> list[Command]:
        attempt = self._attempt
        assert attempt is not None
        self._last_error, self._last_attempt = ErrorInfo(code="worker_lost", message=message), attempt
        learned = self._learn(attempt, "lost", False, now)
        if attempt.confirmed_at is None:
            self._silent.append(attempt.worker)
            if len(self._silent) >= self._policy.max_silent:
                return [*learned, *self._finish("failed", now, self._last_error)]
        else:
            self._lost.append(attempt.worker)
            self._settle_failed(attempt, now)
        if len(self._lost) >= self._policy.max_lost:
            return [*learned, *self._give_up(now)]
        return [*learned, *self._read_stream(now)]

    def _learn(self, attempt: Attempt, source: Source, passed: bool, now: float) -> list[Command]:
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

    def _settlement(self, attempt: Attempt, passed: bool, now: float) -> Settlement | None:
        return attempt.settled(self.task, self._deadline, passed=passed, now=now)

    def _settle_failed(self, attempt: Attempt, now: float) -> None:
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

    def on_timer(self, timer: Timer, key: str, now: float) -> list[Command]:
        """A timer that was started has run out."""
        if timer == "window" and self.state is State.AUCTIONING and key == self._auction.id:
            return self._close("time_limit", now)
        if timer == "retry" and key == self._auction.id:
            return self._open_auction(now) if self.state is State.WAITING else []
        if timer == "funds" and self.state is State.WAITING:
            return [*self._funds.ask(self._deadline - now)]
        if timer == "award" and self._attempt is not None and key == str(self._attempt.number):
            return self._on_silence(self._attempt, now)
        if timer == "deadline" and not self.over:
            late = self._attempt if self.state is State.RUNNING else None
            commands = super().on_timer(timer, key, now)
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
        if attempt is None:
            return []
        self._release(attempt)
        return [CancelWork(attempt.worker, attempt.number, attempt.auction)]

    def _waited_for(self) -> str:
        return self._waiting_reason.replace("_", " ") if self._waiting_reason and not self._attempt else ""

    def _part(self, run_ms: float) -> int | None:
        """What the attempt in hand has earned by now; None unless it was confirmed and stands in the journal."""
        attempt = self._attempt
        return attempt.part(run_ms) if attempt is not None and self._stands(attempt.number) else None

    def _stands(self, attempt: int) -> bool:
        """Whether an attempt's award is in the journal, or on its way there before whatever is written now."""
        coming = self._writer.outstanding
        return attempt in self._entered or (isinstance(coming, Awarded) and coming.attempt == attempt)

    def _finish(
        self,
        status: Status,
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

    def on_stored(self, sequence: int, now: float) -> list[Command]:
        """The outstanding entry was stored."""
        coming = self._writer.outstanding
        commands = super().on_stored(sequence, now)
        if isinstance(coming, Awarded):
            self._entered.add(coming.attempt)
        if self.state is State.READING and self._writer.idle:
            return [ReadStream()]
        return commands

    def _take_over(self, entry: Entry) -> None:
        if not isinstance(entry, Awarded):
            return
        self._attempts = entry.attempt
        self._attempt = Attempt.of(entry, self._submitted_at)
        self._settlements = list(entry.settlements)
        self._entered.add(entry.attempt)
        self._entered.update(one.attempt for one in entry.settlements)
        self._funds.found(entry.held)
        self._failed, self._lost = set(entry.failed), list(entry.lost)
        self._errors = len(self._failed)
