"""The negotiator itself: carries events to undertakings and commands from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import structlog
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import journal, subjects
from modelnet.bus.bodies import Bodies
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.clock import ServerClock
from modelnet.bus.connection import Connection
from modelnet.bus.services import Endpoint, Service, Statistics
from modelnet.bus.streams import setup_bus
from modelnet.errors import ModelnetError
from modelnet.market import (
    COMPOSITE,
    Candidate,
    Composite,
    Directory,
    Invited,
    Journal,
    Negotiation,
    Offered,
    Plan,
    Policy,
    ReferencePrices,
    TrackRecords,
    Undertaking,
    View,
    choose,
)
from modelnet.market import commands as cmd
from modelnet.messages import (
    AdoptAttempt,
    Awarded,
    Beat,
    Bid,
    CancelAttempt,
    Done,
    ErrorInfo,
    Features,
    Final,
    Offer,
    Planned,
    Reference,
    Refusal,
    RollCall,
    Task,
    decode_award_reply,
    decode_bid_reply,
    new_id,
)
from modelnet.settings import Settings

from .archive import Archive
from .clients import Clients
from .company import Company
from .examiner import Examiner, usable
from .hand import Hand, Held
from .inquiry import Inquiry
from .parts import Parts
from .prefixes import PrefixKeys
from .receipts import Receipts
from .reception import Reception
from .till import Till
from .vacancies import Vacancies
from .watch import Watch

__all__ = ["Negotiator"]

log = structlog.get_logger("negotiator")

TICK_S = 1.0
RELIST_S = 30.0
STOP_ROUNDS = 10


class Negotiator:
    """One participant of the network."""

    def __init__(self, config: Settings) -> None:
        self.id = f"neg-{new_id()[-12:]}"
        self._settings = config
        self._policy = Policy(
            window_s=config.bid_window_ms / 1e3,
            award_timeout_s=config.award_timeout_ms / 1e3,
            max_attempts=config.max_attempts,
        )
        self._track = TrackRecords()
        self._lost_after_s = config.beat_s * config.missed_beats + 0.5
        self._directory = Directory(lost_after_s=self._lost_after_s, now=time.monotonic(), records=self._track)
        self._clock = ServerClock()
        self._archive = Archive(
            self._track, self._clock, config.redis, live=lambda: (card.worker for card in self._directory.live())
        )
        self._prices = ReferencePrices()
        self._hand = Hand(config.max_in_flight, config.max_at_work)
        self._tasks: set[asyncio.Task[None]] = set()
        self._statistics = Statistics()
        self._started = False

    # ------------------------------------------------------------------ life

    async def start(self, nc: Connection) -> None:
        """Join the network: make the streams, learn who is there, and take tasks."""
        self._nc, config = nc, self._settings
        await setup_bus(nc, ack_wait_s=config.ack_wait_s, replicas=config.replicas)
        self._catalogue = Catalogue(nc)
        self._prefix_keys = PrefixKeys(self._catalogue, config.prefix_secret)
        self._examiner = Examiner(self._directory, Bodies(nc, config), self._prefix_keys)
        self._till = Till(nc, config)
        await self._till.open()
        self._clients = Clients(nc)
        self._parts = Parts(nc, config, self._hand, on_event=self._on_part, spawn=self._spawn)
        self._inquiry = Inquiry(nc, self._hand, negotiator=self.id, timeout_s=config.award_timeout_ms / 1e3)
        await self._clock.sync(nc)
        await self._relist()
        self._receipts = Receipts(nc)
        self._vacancies = Vacancies(
            nc, self._hand, self._directory, negotiator=self.id, run=self._run, spawn=self._spawn
        )
        await self._vacancies.open()
        self._company = Company(nc, negotiator=self.id, beat_s=config.beat_s, lost_after_s=self._lost_after_s)
        await self._company.open()
        self._watch = Watch(
            nc,
            self._hand,
            self._directory,
            self._catalogue,
            self._archive,
            self._vacancies,
            beat_s=config.beat_s,
            missed_done=self._missed_done,
            relist=self._relist,
            run=self._run,
            spawn=self._spawn,
        )
        await nc.hear(f"bid.{self.id}.*.*", self._on_bid)
        await nc.hear(f"done.{self.id}.>", self._on_done)
        await nc.subscribe(subjects.accepted("*", "*", "cancel"), cb=self._on_cancel)
        await nc.hear(self._receipts.award_subject, self._on_award_reply)
        await nc.hear(self._receipts.subject, self._on_receipt)
        self._reception = Reception(
            nc,
            self._hand,
            negotiator=self.id,
            directory=self._directory,
            examiner=self._examiner,
            clock=self._clock,
            limit=config.max_in_flight,
            max_body_bytes=config.max_body_bytes,
            undertake=self._undertake,
            relist=self._relist,
            run=self._run,
            spawn=self._spawn,
        )
        await self._reception.open()
        endpoint = Endpoint("tasks", "task.*.*.*.>", self._statistics, {"stream": "TASKS", "message": "Task"})
        self._service = Service(
            nc,
            "modelnet-negotiator",
            self.id,
            description="Auctions tasks among workers",
            endpoints=[endpoint],
            state=lambda: {"in_hand": len(self._hand.all()), "workers": len(self._directory.live())},
        )
        await self._service.open()
        self._spawn(self._tick())
        self._spawn(self._watch.keep())
        self._spawn(self._company.keep())
        self._spawn(self._archive.keep())
        self._started = True
        await nc.publish(subjects.ROLL_CALL, RollCall().encode())
        log.info("negotiator_started", negotiator=self.id)

    async def stop(self) -> None:
        """Take no more tasks and give back what is held; the stream delivers it to another at once."""
        if not self._started:
            return
        await self._service.close()
        await self._reception.close()
        await self._company.close()
        for _ in range(STOP_ROUNDS):  # what ends may begin more
            if not (tasks := list(self._tasks)):
                break
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.2)
        for held in self._hand.all():
            await self._nc.publish(held.msg.reply, b"-NAK")  # done or not: parts may still be there to be cancelled
            self._forget(held)
        await self._till.close()
        await self._archive.close()
        if self._nc.is_connected:
            await self._nc.flush()
        log.info("negotiator_stopped", negotiator=self.id)

    async def hear(self, beat: Beat) -> None:
        """A worker's beat."""
        if self._started:  # who was heard earlier answers the roll call
            await self._watch.hear(beat)

    async def offered(self, offer: Offer) -> None:
        """A worker's capacity has changed."""
        if self._started:
            await self._vacancies.offered(offer)

    async def reconnected(self) -> None:
        """After a lost connection: what was asked for is forgotten, and beats were missed."""
        if not self._started:
            return
        self._parts.reconnected()
        await self._nc.publish(subjects.ROLL_CALL, RollCall().encode())
        await self._reception.reconnected()
        await self._till.refresh()

    async def _tick(self) -> None:
        """Each second: keep what is held, repeat what was not acknowledged."""
        last_hold = last_list = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            if not self._nc.is_connected:
                continue
            now = time.monotonic()
            try:
                if now - last_hold >= self._settings.ack_wait_s / 3:
                    last_hold = now
                    await self._reception.keep()
                if now - last_list >= RELIST_S:
                    last_list = now
                    await self._relist()
                    await self._till.refresh()
                    await self._clock.sync(self._nc)
                for held in self._receipts.overdue(now):
                    self._spawn(self._read_back(held))
                await self._receipts.repeat(now)
                await self._reception.tick(TICK_S)
                self._look_after_clients()
            except Exception as error:
                log.warning("tick_failed", error=repr(error))

    def _look_after_clients(self) -> None:
        """Ask every client whether it is still there whose tasks end with it."""
        wanted = {held.task.client for held in self._hand.all() if held.task.client is not None}
        self._clients.keep(wanted)
        for client in wanted:
            self._spawn(self._look_for(client))

    async def _look_for(self, client: str) -> None:
        if await self._clients.is_gone(client):
            for held in self._hand.all():
                if held.task.client == client:
                    await self._run(held, held.undertaking.on_client_gone(time.monotonic()))

    async def _relist(self) -> None:
        self._directory.learn_contracts(filter(usable, await self._catalogue.contracts()))
        await self._prefix_keys.refresh()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("negotiator_failed", error=repr(error), exc_info=error)

    def _undertake(
        self, task: Task, features: Features, accepts: Callable[[str], bool], age_s: float, journal: Journal
    ) -> Undertaking:
        plan = self._plan(task, accepts, journal)
        if plan.kind in COMPOSITE:
            now = time.monotonic()

            def present(worker: str) -> bool:
                if not self._directory.settled(time.monotonic()):
                    return True
                return self._directory.candidate(worker, task, accepts) is not None

            return Composite(task, plan, negotiator=self.id, now=now, age_s=age_s, journal=journal, present=present)

        def find(auction: str, excluded: frozenset[str], caller: str | None) -> Invited:
            now = time.monotonic()
            return self._directory.invite(task, auction, excluded, now, accepts=accepts, caller=caller)

        def standing(candidates: Sequence[Candidate]) -> list[tuple[Candidate, Offered]]:
            return self._directory.standing(task, candidates, time.monotonic())

        return Negotiation(
            task,
            features,
            negotiator=self.id,
            policy=self._policy,
            new_id=new_id,
            find=find,
            prices=self._prices,
            claims=self._directory.claims,
            now=time.monotonic(),
            age_s=age_s,
            journal=journal,
            charged=self._till.charges(task),
            plan=plan,
            standing=standing,
        )

    def _plan(self, task: Task, accepts: Callable[[str], bool], journal: Journal) -> Plan:
        """The strategy of a task: what another negotiator has decided, or what suits it now."""
        if task.strategy.kind == "auction":
            return Plan("auction")
        for _, entry in journal:
            if isinstance(entry, Planned):
                return Plan(entry.strategy, entry.why, entry.width, entry.workers)
            if isinstance(entry, Awarded):
                return Plan("auction", "auction: another negotiator has begun so")
        if task.strategy.kind == "spot":  # nothing to choose: the offers are looked at when it begins
            return Plan("spot", "spot: asked for")
        candidates = self._directory.candidates(task, frozenset(), accepts)
        offers = self._directory.standing(task, candidates, time.monotonic())
        return choose(task, View(candidates, offers, *self._directory.free(task.capability)))

    def _forget(self, held: Held) -> None:
        self._receipts.drop_award(held)
        self._hand.forget(held)

    # ------------------------------------------------------------------ of tasks

    async def _on_bid(self, msg: Msg) -> None:
        auction, bidder = msg.subject.rsplit(".", 2)[1:]
        held = self._hand.in_auction(auction)
        if held is None:
            return
        if bidder == self.id:  # our own word: who has not bid by now is too late
            if held.late == auction:  # else it is forged, by a bidder who wants no other bids
                await self._run(held, held.negotiation.on_timer("window", auction, time.monotonic()))
            return
        try:
            reply = decode_bid_reply(msg.data)
        except ValidationError:
            log.warning("bid_malformed", worker=bidder)
            return
        if (reply.worker, reply.auction) != (bidder, auction):
            return
        if isinstance(reply, Refusal) and reply.reason in ("busy", "draining"):
            self._directory.hear_refusal(bidder)
        if self._directory.serves(bidder, held.task.capability):
            await self._run(held, held.negotiation.on_bid(reply, time.monotonic()))
        else:
            self._spawn(self._bid_of_newcomer(held, reply))

    async def _bid_of_newcomer(self, held: Held, reply: Bid | Refusal) -> None:
        await self._watch.meet(reply.worker)
        if self._hand.holds(held):
            newcomer = self._directory.candidate(reply.worker, held.task, held.accepts)
            await self._run(held, held.negotiation.on_bid(reply, time.monotonic(), newcomer))

    async def _on_done(self, msg: Msg) -> None:
        try:
            done = Done.decode(msg.data)
        except ValidationError as error:
            log.warning("done_malformed", subject=msg.subject, error=journal.first_error(error))
            return
        held = self._hand.get(done.tenant, done.task)
        if held is None or msg.subject != subjects.done(self.id, done.task, done.worker, done.attempt):
            return
        await self._done(held, done)

    async def _done(self, held: Held, done: Done) -> None:
        if done.error is None and done.output_ref is not None:
            if held.fetching != done.attempt:
                held.fetching = done.attempt
                self._spawn(self._done_elsewhere(held, done, done.output_ref))
            return
        violation = None
        if done.error is None:
            violation = self._examiner.judge(done, done.output, held.undertaking.contract)
        await self._conclude(held, done, violation)

    async def _done_elsewhere(self, held: Held, done: Done, reference: Reference) -> None:
        """An output that is too large for a message."""
        judge = partial(self._examiner.judge_stored, done, reference, held.undertaking.contract)
        violation = await self._inquiry.until_done(held, "output", judge)
        if self._hand.holds(held):
            await self._conclude(held, done, violation)

    async def _conclude(self, held: Held, done: Done, violation: str | None) -> None:
        await self._run(held, held.undertaking.on_done(done, violation, time.monotonic()))
        await self._vacancies.freed(done.worker)

    async def _missed_done(self, held: Held, worker: str, attempt: int, auction: str | None) -> None:
        """The worker no longer runs the attempt and no Done came: its last event tells, or it is lost."""
        done = await self._inquiry.end_of(held, worker, attempt, auction)
        if not self._hand.holds(held) or held.undertaking.at_work != (worker, attempt, auction):
            return
        if done is not None:
            await self._done(held, done)
        else:
            await self._run(held, held.undertaking.on_worker_lost(worker, time.monotonic()))

    async def _on_cancel(self, msg: Msg) -> None:
        """A cancel that the journal has accepted, republished."""
        _, tenant, _, task, _ = msg.subject.split(".")
        held = self._hand.get(tenant, task)
        sequence = (msg.headers or {}).get("Nats-Sequence", "")  # without one it does not come from the journal
        if held is not None and sequence.isdecimal():
            await self._run(held, held.undertaking.on_cancel(int(sequence), time.monotonic()))

    async def _on_receipt(self, msg: Msg) -> None:
        """What the streams say to what was published."""
        _, kind, token = msg.subject.rsplit(".", 2)
        if kind == "j":
            await self._on_written(token, msg)
        elif kind == "t" and journal.stored_sequence(msg):
            self._receipts.recorded(token)

    async def _on_award_reply(self, msg: Msg) -> None:
        award = self._receipts.answered(msg.subject.rsplit(".", 1)[1])
        if award is None:
            return
        held, attempt = award
        if not msg.data and not msg.headers:  # our own word
            await self._run(held, held.negotiation.on_timer("award", str(attempt), time.monotonic()))
            return
        try:
            reply = None if msg.headers and "Status" in msg.headers else decode_award_reply(msg.data)
        except ValidationError:
            reply = None
        await self._run(held, held.negotiation.on_award_reply(attempt, reply, time.monotonic()))

    async def _on_written(self, token: str, msg: Msg) -> None:
        held = self._receipts.written(token)
        if held is None or not self._hand.holds(held):
            return
        sequence = journal.stored_sequence(msg)
        if sequence:
            await self._run(held, held.undertaking.on_stored(sequence, time.monotonic()))
        elif journal.refused(msg):
            self._spawn(self._read_back(held))
        else:
            log.warning("journal_write_failed", task=held.task.id, answer=msg.data[:200])
            self._receipts.await_again(held, time.monotonic())

    async def _read_back(self, held: Held) -> None:
        """A journal write was refused, or its acknowledgement lost: see what stands there and go on from it."""
        try:
            entries = await journal.read(self._nc, *held.key)
        except Exception as error:
            log.warning("journal_unreadable", task=held.task.id, error=repr(error))
            self._receipts.await_again(held, time.monotonic())
            return
        if self._hand.holds(held):
            await self._run(held, held.undertaking.on_refused(entries, time.monotonic()))

    async def _recall(self, held: Held, worker: str, attempt: int, auction: str | None) -> None:
        found = await self._inquiry.recall(held, worker, attempt, auction)
        if found is None or not self._hand.holds(held):
            return
        if isinstance(found, Done):
            await self._done(held, found)
        else:
            await self._run(held, held.negotiation.on_recalled(attempt, found, time.monotonic()))

    async def _read_stream(self, held: Held) -> None:
        streamed = await self._inquiry.streamed(held)
        if streamed is not None and self._hand.holds(held):
            await self._run(held, held.negotiation.on_streamed(streamed, time.monotonic()))

    async def _hold_funds(self, held: Held, amount: int, deadline_s: float) -> None:
        try:
            refusal = await self._till.hold(held.task, amount, deadline_s)
        except (ModelnetError, TimeoutError):
            commands = held.negotiation.on_ledger_away
        else:
            commands = partial(held.negotiation.on_held, refusal, time.monotonic())
        if self._hand.holds(held):
            await self._run(held, commands())

    async def _hold_deposit(self, held: Held, asked: cmd.HoldDeposit) -> None:
        there = await self._till.deposit(held.task, asked)
        if self._hand.holds(held):
            now = time.monotonic()
            await self._run(held, held.negotiation.on_deposit(asked.auction, asked.worker, there, now))

    # ------------------------------------------------------------------ of parts

    async def _on_part(self, held: Held, number: int, what: Awarded | Final | ErrorInfo) -> None:
        composite, now = held.composite, time.monotonic()
        match what:
            case Awarded():
                await self._run(held, composite.on_part_awarded(number, what.worker, what.owner, now))
            case Final():
                await self._run(held, composite.on_part_ended(number, what, now))
            case ErrorInfo():
                await self._run(held, composite.on_part_refused(number, what, now))

    async def _finish_later(self, held: Held) -> None:
        """A task leaves the stream once its parts are cancelled: until then another negotiator would do that."""
        await self._parts.cancelled(held)
        if self._hand.holds(held):
            await self._reception.finished(held)

    # ------------------------------------------------------------------ commands

    async def _run(self, held: Held, commands: list[cmd.Command]) -> None:
        task = held.task
        for done, command in enumerate(commands, 1):
            match command:
                case cmd.Write(entry, expected):
                    await self._receipts.write(held, entry, expected, time.monotonic())
                case cmd.SendAward(worker, award):
                    await self._receipts.award(held, worker, award)
                    log.debug("task_awarded", task=task.id, worker=worker, attempt=award.attempt, price=award.price)
                case cmd.Inquire(worker, attempt, auction):
                    question = AdoptAttempt(
                        tenant=task.tenant, task=task.id, attempt=attempt, auction=auction, negotiator=self.id
                    )
                    await self._receipts.inquire(held, worker, question)
                    log.debug("award_unanswered", task=task.id, worker=worker, attempt=attempt)
                case cmd.TellClaim(worker, claim):
                    if not self._company.alone:
                        await self._nc.publish(subjects.claim(self.id, worker), claim.encode())
                case cmd.AskForBids(request, to):
                    self._hand.opened(held, request.auction)
                    body, reply = request.encode(), subjects.bids(self.id, request.auction)
                    asked = map(subjects.bid_request, to) if to else [subjects.capability(task.capability)]
                    for subject in asked:
                        await self._nc.publish(subject, body, reply=reply)
                case cmd.HoldFunds(amount, deadline_s):
                    self._spawn(self._hold_funds(held, amount, deadline_s))
                case cmd.HoldDeposit():
                    self._spawn(self._hold_deposit(held, command))
                case cmd.StartTimer(timer, key, delay_s):
                    self._start_timer(held, timer, key, delay_s)
                case cmd.Record(transcript):
                    self._hand.closed(held)
                    await self._receipts.record(held, transcript, time.monotonic())
                case cmd.Learn(outcome):
                    # Behind what is published now: nobody waits for it.
                    asyncio.get_running_loop().call_soon(self._archive.learn, outcome)
                case cmd.CancelWork(worker, attempt, auction):
                    order = CancelAttempt(tenant=task.tenant, task=task.id, attempt=attempt, auction=auction)
                    await self._nc.publish(subjects.cancel_attempt(worker), order.encode())
                case cmd.Recall(worker, attempt, auction):
                    self._spawn(self._recall(held, worker, attempt, auction))
                case cmd.ReadStream():
                    self._spawn(self._read_stream(held))
                case cmd.Bury(reason):
                    # Whoever has the Final finds the letter, and one who dies between the two loses neither.
                    self._spawn(self._bury(held, reason, commands[done:]))
                    return
                case cmd.Hold(reason):
                    log.debug("task_waiting", task=task.id, reason=reason)
                    last = self._hand.wait(held, aside=command.aside)
                    if last is not None:
                        self._receipts.drop_award(last)
                        await self._reception.give_back(last)
                case cmd.StartPart():
                    self._parts.start(held, command)
                case cmd.CancelPart(part):
                    self._parts.cancel(held, part)
                case cmd.Finished(final):
                    self._receipts.drop_award(held)
                    self._count(final)
                    if held.cancels:
                        self._spawn(self._finish_later(held))
                    else:
                        await self._reception.finished(held)
                    log.debug("task_finished", task=task.id, status=final.status, worker=final.worker)
                case cmd.Abandon():
                    self._receipts.drop_award(held)
                    await self._reception.abandon(held)
                    log.info("task_abandoned", task=task.id)
        if held.called_for:
            await self._vacancies.decided(held)
        if not held.begun and held.undertaking.running is not None:
            await self._reception.begun(held)

    def _count(self, final: Final) -> None:
        """For the services API: an ending that a client asked for is no error."""
        self._statistics.requests += 1
        self._statistics.count(final.status)
        failed = final.status in ("failed", "expired")
        error = f"{final.error.code}: {final.error.message}" if failed and final.error is not None else None
        self._statistics.ended(final.timings.total_ms, error)

    async def _bury(self, held: Held, reason: str, then: list[cmd.Command]) -> None:
        await self._inquiry.until_done(held, "bury", partial(journal.bury, self._nc, held.msg, reason))
        if self._hand.holds(held):
            await self._run(held, then)

    def _start_timer(self, held: Held, timer: cmd.Timer, key: str, delay_s: float) -> None:
        running = held.timers.get(timer)
        if running is not None:
            if timer == "notice":
                return  # readers are told of a wait that lasts, also if it is made of many short ones
            running.cancel()
        loop = asyncio.get_running_loop()
        held.timers[timer] = loop.call_later(delay_s, self._on_timer, held, timer, key, delay_s)

    def _on_timer(self, held: Held, timer: cmd.Timer, key: str, delay_s: float) -> None:
        del held.timers[timer]
        awaited = self._awaited(held, timer, key)
        if awaited is None:
            self._spawn(self._run(held, held.undertaking.on_timer(timer, key, time.monotonic())))
            return
        # A word to oneself, which is read behind all that was said until now; should it be lost, another.
        self._start_timer(held, timer, key, 2 * delay_s)
        if self._nc.is_connected:
            self._spawn(self._nc.publish(awaited))

    def _awaited(self, held: Held, timer: cmd.Timer, key: str) -> str | None:
        """Where the answer arrives that a timer bounds the wait for; None if it bounds none, or that is over."""
        if held.undertaking.over or not self._hand.holds(held):
            return None
        if timer == "window" and self._hand.in_auction(key) is held:
            held.late = key
            return f"{subjects.bids(self.id, key)}.{self.id}"
        return self._receipts.awaited(held) if timer == "award" else None
