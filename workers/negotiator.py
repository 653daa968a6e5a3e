"""The negotiator: takes tasks off the stream and auctions them. Decides nothing itself: see modelnet/market.

One process holds many tasks at once and any number of processes share the work. What it keeps in memory can be lost at
any moment: a task is acknowledged only after its Final stands in the journal.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import nats.errors
import structlog
from faststream import FastStream
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import journal, subjects
from modelnet.bus.bodies import Bodies
from modelnet.bus.broker import make_broker, specification
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.clock import ServerClock
from modelnet.bus.intake import TaskIntake
from modelnet.bus.metering import MeteredTenants
from modelnet.bus.streams import last_sequence, setup_bus
from modelnet.bus.takeover import ask_worker, read_streamed
from modelnet.contracts import check, compile_schema, features_of
from modelnet.errors import ModelnetError, ObjectLost, TooLarge, UsageError
from modelnet.log import setup_logging
from modelnet.market import (
    Candidate,
    Directory,
    Line,
    Negotiation,
    Pace,
    Place,
    Policy,
    ReferencePrices,
    State,
    TrackRecords,
)
from modelnet.market import commands as cmd
from modelnet.messages import (
    AdoptAttempt,
    Beat,
    CancelAttempt,
    Contract,
    Done,
    ErrorInfo,
    Features,
    Final,
    JournalEntry,
    Offer,
    Reference,
    RollCall,
    Task,
    decode_award_reply,
    decode_bid_reply,
    digest_of,
    new_id,
)
from modelnet.settings import Settings, settings

if TYPE_CHECKING:
    from modelnet.store.ledger import Ledger

T = TypeVar("T")

log = structlog.get_logger("negotiator")

WAITING_SHARE = 0.5
"""Of the tasks held, those of one capability that may wait for a free worker; more go back to the stream."""

UNFUNDED_SHARE = 0.25
"""Of the tasks held, those that may wait for the ledger; more go back to the stream, so that free tenants' go on."""

LEDGER_TIMEOUT_S = 3.0
"""Longest wait for the ledger before a task's readers are told that it is away."""

TENANT_SHARE = 0.75
"""Of the tasks held, those of one tenant and class; more go back to the stream, to let others' be seen."""

RETURN_S = 1.0
RETURNS_PER_S = 1000.0
TICK_S = 1.0
JOURNAL_TIMEOUT_S = 5.0
RELIST_S = 30.0

LARGE_AT_ONCE = 2
"""Large inputs and outputs in memory at once."""

MAX_STUMBLES = 3
"""Times that taking a task may fail unexpectedly before it is given up."""

CLIENT_CHANCES = 3
"""Times in a row, a second apart, that nobody may answer for a client before its tasks are cancelled."""


@dataclass(slots=True, eq=False)
class _Held:
    """A task in this negotiator's hands: its message, its negotiation, its timers."""

    msg: Msg
    negotiation: Negotiation
    accepts: Callable[[str], bool]
    """Whether its input satisfies the contract of this digest, one that was announced since too."""
    timers: dict[cmd.Timer, asyncio.TimerHandle] = field(default_factory=dict)
    """The last started of each kind: an older one means nothing any more."""
    award: str = ""
    """Token of the award last sent."""
    auction: str = ""
    """Id of the auction last opened."""
    suspect: int = 0
    """The attempt that its worker's last beat did not list."""
    fetching: int = 0
    """The attempt whose large output is being fetched."""
    place: Place | None = None
    called_for: str = ""
    """The worker for whose free slot it was called out of the line, until its auction is decided."""

    @property
    def task(self) -> Task:
        """The task itself."""
        return self.negotiation.task

    @property
    def age(self) -> int:
        """Its sequence in the stream: smaller is older."""
        return int(self.msg.metadata.sequence.stream)


def _key(task: Task) -> tuple[str, str]:
    return task.tenant, task.id


class Negotiator:
    """Carries events to negotiations and commands from them."""

    def __init__(self, config: Settings) -> None:
        self.id = f"neg-{new_id()[-12:]}"
        self._settings = config
        self._policy = Policy(
            window_s=config.bid_window_ms / 1e3,
            award_timeout_s=config.award_timeout_ms / 1e3,
            max_attempts=config.max_attempts,
        )
        self._track = TrackRecords()
        self._directory = Directory(
            lost_after_s=config.beat_s * config.missed_beats + 0.5, now=time.monotonic(), records=self._track
        )
        self._prices = ReferencePrices()
        self._clock = ServerClock()
        self._held: dict[tuple[str, str], _Held] = {}
        self._by_auction: dict[str, _Held] = {}
        self._waiting = Line[_Held](max(int(config.max_in_flight * WAITING_SHARE), 1))
        self._called = set[_Held]()
        self._unfunded = set[_Held]()
        """Those that wait for the ledger."""
        self._most_unfunded = max(int(config.max_in_flight * UNFUNDED_SHARE), 1)
        self._ledger: Ledger | None = None
        self._ledger_away = False
        self._share = max(int(config.max_in_flight * TENANT_SHARE), 1)
        self._by_tenant = Counter[tuple[str, int]]()
        self._pace = Pace(least_s=RETURN_S, rate=RETURNS_PER_S)
        self._finished = 0
        self._writes: dict[str, tuple[_Held, float]] = {}
        self._awards: dict[str, tuple[_Held, int]] = {}
        self._records: dict[str, tuple[str, bytes, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unknown: set[str] = set()
        self._fetching: dict[tuple[str, str], Msg] = {}
        """Tasks whose large inputs are on their way, before they are held."""
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._validators: dict[tuple[str, str], Any] = {}
        self._absent: dict[str, int] = {}
        self._stumbles: dict[int, int] = {}
        """How many times in a row a client was not there."""
        self._token = 0
        self._started = False
        self._queued_before: int | None = None
        """Last task that was queued before this connection; None while that is not known."""

    # ------------------------------------------------------------------ life

    async def start(self, nc: Client) -> None:
        """Join the network: make the streams, learn who is there, and take tasks."""
        self._nc = nc
        await setup_bus(nc, ack_wait_s=self._settings.ack_wait_s, replicas=self._settings.replicas)
        self._catalogue = Catalogue(nc)
        self._bodies = Bodies(nc, self._settings)
        self._metered = MeteredTenants(nc)
        await self._metered.listen()
        await self._metered.refresh()
        if self._metered:
            await self._open_ledger()
        await self._clock.sync(nc)
        await self._relist()
        self._inbox = nc.new_inbox()
        await nc.subscribe(f"bid.{self.id}.*.*", cb=self._on_bid)
        await nc.subscribe(f"done.{self.id}.>", cb=self._on_done)
        await nc.subscribe("result.*.*.cancel", cb=self._on_cancel)
        await nc.subscribe(f"{self._inbox}.*.*", cb=self._on_reply)
        await nc.publish(subjects.ROLL_CALL, RollCall().encode())
        self._queued_before = await last_sequence(nc, "TASKS")
        self._intake = TaskIntake(nc, self._on_task, limit=self._settings.max_in_flight)
        await self._intake.start()
        self._spawn(self._tick())
        self._started = True
        log.info("negotiator_started", negotiator=self.id)

    async def stop(self) -> None:
        """Take no more tasks and give back what is held; the stream delivers it to another at once."""
        if not self._started:
            return
        await self._intake.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for held in list(self._held.values()):
            if held.negotiation.state is not State.DONE:
                await self._nc.publish(held.msg.reply, b"-NAK")
            self._forget(held)
        if self._ledger is not None:
            await self._ledger.close()
        if self._nc.is_connected:
            await self._nc.flush()
        log.info("negotiator_stopped", negotiator=self.id)

    async def reconnected(self) -> None:
        """After a lost connection: what was asked for is forgotten, and beats were missed."""
        self._queued_before = None
        await self._nc.publish(subjects.ROLL_CALL, RollCall().encode())
        await self._intake.reset()
        await self._metered.refresh()
        self._queued_before = await last_sequence(self._nc, "TASKS")

    async def _tick(self) -> None:
        """Each second: keep what is held, find who is lost, repeat what was not acknowledged."""
        last = last_hold = last_list = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            # A process that was frozen, or cut off, has heard nobody: that says nothing about them.
            deaf_s, last = now - last - (TICK_S if self._nc.is_connected else 0.0), now
            if deaf_s > TICK_S / 4:
                self._directory.excuse(deaf_s)
            if not self._nc.is_connected:
                continue
            try:
                if self._queued_before is None:
                    self._queued_before = await last_sequence(self._nc, "TASKS")
                for worker in self._directory.lost(now):
                    log.warning("worker_lost", worker=worker)
                    await self._lost(worker)
                if now - last_hold >= self._settings.ack_wait_s / 3:
                    last_hold = now
                    for msg in [*(held.msg for held in self._held.values()), *self._fetching.values()]:
                        await self._nc.publish(msg.reply, b"+WPI")
                if now - last_list >= RELIST_S:
                    last_list = now
                    await self._relist()
                    await self._metered.refresh()
                    await self._clock.sync(self._nc)
                for token, (held, since) in list(self._writes.items()):
                    if now - since > JOURNAL_TIMEOUT_S:
                        del self._writes[token]
                        self._spawn(self._read_back(held))
                for token, (subject, body, since) in list(self._records.items()):
                    if now - since > JOURNAL_TIMEOUT_S:
                        self._records[token] = (subject, body, now)
                        await self._publish_record(token, subject, body)
                await self._intake.refill()
                self._look_after_clients()
                self._pace.worked_off(self._finished / TICK_S)
                self._finished = 0
            except Exception as error:
                log.warning("tick_failed", error=repr(error))

    def _look_after_clients(self) -> None:
        """Ask every client whether it is still there whose tasks end with it."""
        wanted = {held.task.client for held in self._held.values() if held.task.client is not None}
        self._absent = {client: count for client, count in self._absent.items() if client in wanted}
        for client in wanted:
            self._spawn(self._look_for(client))

    async def _look_for(self, client: str) -> None:
        try:
            await self._nc.request(subjects.alive(client), RollCall().encode(), timeout=TICK_S)
        except nats.errors.NoRespondersError:
            self._absent[client] = count = self._absent.get(client, 0) + 1
            if count < CLIENT_CHANCES:  # it may be reconnecting
                return
            log.info("client_gone", client=client)
            for held in [held for held in self._held.values() if held.task.client == client]:
                await self._run(held, held.negotiation.on_client_gone(time.monotonic()))
        except nats.errors.Error:
            return  # slow or cut off: that is not gone
        else:
            self._absent.pop(client, None)

    async def _relist(self) -> None:
        self._directory.learn_contracts(filter(_usable, await self._catalogue.contracts()))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("negotiator_failed", error=repr(error), exc_info=error)

    # ------------------------------------------------------------------ taking a task

    async def _on_task(self, msg: Msg) -> None:
        try:
            task = Task.decode(msg.data)
            _, _, _, tenant, task_id, capability = msg.subject.split(".", 5)
            if (task.tenant, task.id, task.capability) != (tenant, task_id, capability):
                raise ValueError("the subject names another task than the body")
        except ValueError as wrong:
            reason = journal.first_error(wrong) if isinstance(wrong, ValidationError) else str(wrong)
            error = ErrorInfo(code="malformed", message=reason[:4096])
            self._spawn(self._safely(msg, self._bury(msg, error)))
            return
        if self._by_tenant[task.tenant, task.priority_class] >= self._share and _key(task) not in self._held:
            await self._postpone(msg, task)
        elif self._is_simple(msg, task):
            await self._safely(msg, self._take(msg, task, ()))
        else:
            self._spawn(self._safely(msg, self._take_slowly(msg, task)))

    def _is_simple(self, msg: Msg, task: Task) -> bool:
        """Whether a task can be taken without asking the server for anything."""
        known = self._directory.knows(task.capability) and task.input_ref is None
        return known and self._is_new(msg) and _key(task) not in self._held

    def _is_new(self, msg: Msg) -> bool:
        """Whether nobody can have had the task in hand. A server that crashed has forgotten what it delivered."""
        about, before = msg.metadata, self._queued_before
        return about.num_delivered == 1 and before is not None and about.sequence.stream > before

    async def _safely(self, msg: Msg, work: Coroutine[Any, Any, None]) -> None:
        """Take a message in hand; if that fails or is cut off, it goes back to the stream for a while, a few times."""
        sequence = msg.metadata.sequence.stream
        try:
            await work
        except (Exception, asyncio.CancelledError) as error:
            for held in [held for held in self._held.values() if held.msg is msg]:
                self._forget(held)
            if isinstance(error, asyncio.CancelledError):
                await self._return(msg, RETURN_S)
                raise
            if isinstance(error, ModelnetError | nats.errors.Error):  # the streams are away: not the task's fault
                log.warning("task_not_taken", subject=msg.subject, error=str(error))
                await self._return(msg, RETURN_S)
                return
            log.error("task_not_taken", subject=msg.subject, error=repr(error), exc_info=error)
            self._stumbles[sequence] = self._stumbles.pop(sequence, 0) + 1
            if self._stumbles[sequence] < MAX_STUMBLES:
                await self._return(msg, RETURN_S)
                return
            reason = f"{type(error).__name__}: {error}"
            self._spawn(self._safely(msg, self._bury(msg, ErrorInfo(code="internal", message=reason[:4096]))))
        self._stumbles.pop(sequence, None)

    async def _return(self, msg: Msg, delay_s: float) -> None:
        await self._nc.publish(msg.reply, b'-NAK {"delay": %d}' % int(delay_s * 1e9))
        await self._intake.release()

    async def _postpone(self, msg: Msg, task: Task) -> None:
        """There is no room for this task now."""
        remaining_s = task.deadline_s - self._age_s(msg)
        await self._return(msg, self._pace.delay(time.monotonic(), remaining_s))

    def _age_s(self, msg: Msg) -> float:
        return max(self._clock.now() - float(msg.metadata.timestamp.timestamp()), 0.0)

    async def _take_slowly(self, msg: Msg, task: Task) -> None:
        """A task that was delivered before, is in hand already, or wants a capability not heard of yet."""
        entries: tuple[tuple[int, JournalEntry | None], ...] = ()
        if _key(task) not in self._held:
            if not self._directory.knows(task.capability):
                await self._relist()
            entries = await journal.read(self._nc, task.tenant, task.id)
        held = self._held.get(_key(task))
        had = held.msg if held is not None else self._fetching.get(_key(task))
        if had is not None:
            if had.metadata.sequence.stream != msg.metadata.sequence.stream:
                await msg.ack()  # published twice
            elif held is not None:
                held.msg = msg  # delivered again because an in-progress was late: this reply is the live one
            else:
                self._fetching[_key(task)] = msg
            await self._intake.release()
            return
        if task.input_ref is None:
            await self._take(msg, task, entries)
            return
        self._fetching[_key(task)] = msg
        try:
            async with self._large:
                value = await self._bodies.fetch(task.input_ref)
                examined = await asyncio.to_thread(self._examine, task, value, task.input_ref.size)
                del value
        except (ObjectLost, TooLarge) as error:
            refused = ErrorInfo(code=error.wire_code, message=error.message)
            await self._take(self._fetching[_key(task)], task, entries, refused=refused)
        else:
            await self._take(self._fetching[_key(task)], task, entries, examined)
        finally:
            del self._fetching[_key(task)]

    def _examine(self, task: Task, value: dict[str, Any], size: int) -> tuple[dict[str, str | None], Features]:
        """How an input breaks each contract it might be worked on under, and what bidders learn of it."""
        contracts = self._directory.contracts_for(task.capability)
        violations = {c.digest: check(self._validator(c, "input"), value) for c in contracts}
        return violations, features_of(value, size, contracts[0].input if contracts else {})

    async def _take(
        self,
        msg: Msg,
        task: Task,
        entries: tuple[tuple[int, JournalEntry | None], ...],
        examined: tuple[dict[str, str | None], Features] | None = None,
        refused: ErrorInfo | None = None,
    ) -> None:
        now = time.monotonic()
        violations, features = examined or self._examine(task, task.input, len(msg.data))
        verdicts = {digest: violation is None for digest, violation in violations.items()}

        def accepts(digest: str) -> bool:
            if task.input_ref is not None:
                return verdicts.get(digest, True)  # it is not at hand any more: the worker will see
            if digest not in verdicts and (contract := self._directory.contract(digest)) is not None:
                verdicts[digest] = check(self._validator(contract, "input"), task.input) is None
            return verdicts.get(digest, False)

        negotiation = self._negotiation(task, features, accepts, msg, entries, now)
        held = self._held[_key(task)] = _Held(msg, negotiation, accepts)
        self._by_tenant[task.tenant, task.priority_class] += 1
        if entries and any(isinstance(entry, Final) for _, entry in entries):
            await self._run(held, negotiation.begin(now))
        elif refused is not None:
            await self._run(held, negotiation.reject(refused, now))
        elif len(msg.data) > (limit := self._settings.max_body_bytes):
            message = f"the task is {len(msg.data)} bytes as JSON, the limit is {limit} (MODELNET_MAX_BODY_BYTES)"
            await self._run(held, negotiation.reject(ErrorInfo(code=TooLarge.code, message=message), now))
        elif not self._directory.knows(task.capability):
            known = ", ".join(self._directory.capabilities()) or "none"
            error = ErrorInfo(
                code="unknown_capability",
                message=f"no worker ever announced {task.capability!r}; known: {known}"[:4096],
            )
            await self._run(held, negotiation.reject(error, now))
        elif violations and not any(verdicts.values()):
            error = ErrorInfo(code="contract_violation", message=str(next(iter(violations.values()))))
            await self._run(held, negotiation.reject(error, now))
        else:
            await self._run(held, negotiation.begin(now, queue=self._waiting.is_before(task)))

    def _validator(self, contract: Contract, side: Literal["input", "output"]) -> Any:
        found = self._validators.get((contract.digest, side))
        if found is None:
            schema = contract.input if side == "input" else contract.output
            found = self._validators[contract.digest, side] = compile_schema(schema)
        return found

    def _negotiation(
        self,
        task: Task,
        features: Features,
        accepts: Callable[[str], bool],
        msg: Msg,
        entries: tuple[tuple[int, JournalEntry | None], ...],
        now: float,
    ) -> Negotiation:
        def find(excluded: frozenset[str]) -> tuple[list[Candidate], bool]:
            found = self._directory.candidates(task, excluded, accepts)
            return found, self._directory.settled(time.monotonic())

        return Negotiation(
            task,
            features,
            negotiator=self.id,
            policy=self._policy,
            new_id=new_id,
            find=find,
            prices=self._prices,
            records=self._track,
            now=now,
            age_s=self._age_s(msg),
            journal=entries,
            charged=task.tenant in self._metered or not self._settings.free_tenants,
        )

    async def _bury(self, msg: Msg, error: ErrorInfo) -> None:
        """A message that cannot be handled: keep it whole for a person, tell its publisher, take it off the stream."""
        log.warning("task_given_up", subject=msg.subject, code=error.code, reason=error.message)
        await journal.bury(self._nc, msg, error.message)
        await journal.write_given_up(self._nc, self.id, msg, error)
        await msg.term()
        await self._intake.release()

    # ------------------------------------------------------------------ events

    async def _on_bid(self, msg: Msg) -> None:
        auction, bidder = msg.subject.rsplit(".", 2)[1:]
        held = self._by_auction.get(auction)
        if held is None:
            return
        try:
            reply = decode_bid_reply(msg.data)
        except ValidationError:
            log.warning("bid_malformed", worker=bidder)
            return
        if (reply.worker, reply.auction) != (bidder, auction):
            return
        negotiation, newcomer = held.negotiation, None
        task = negotiation.task
        if not self._directory.serves(bidder, task.capability):
            await self._meet(bidder)
            newcomer = self._directory.candidate(bidder, task, held.accepts)
        await self._run(held, negotiation.on_bid(reply, time.monotonic(), newcomer))

    async def _on_done(self, msg: Msg) -> None:
        try:
            done = Done.decode(msg.data)
        except ValidationError as error:
            log.warning("done_malformed", subject=msg.subject, error=journal.first_error(error))
            return
        held = self._held.get((done.tenant, done.task))
        if held is None or msg.subject != subjects.done(self.id, done.task, done.worker, done.attempt):
            return
        await self._done(held, done)

    async def _done(self, held: _Held, done: Done) -> None:
        if done.error is None and done.output_ref is not None:
            if held.fetching != done.attempt:
                held.fetching = done.attempt
                self._spawn(self._done_elsewhere(held, done, done.output_ref))
            return
        violation = None
        if done.error is None:
            contract = self._directory.contract(held.negotiation.contract or "")
            violation = self._judge(done, done.output, contract)
        await self._conclude(held, done, violation)

    async def _done_elsewhere(self, held: _Held, done: Done, reference: Reference) -> None:
        """An output that is too large for a message: fetched, judged, and forgotten."""
        contract = self._directory.contract(held.negotiation.contract or "")

        async def judge() -> str | None:
            async with self._large:
                try:
                    value = await self._bodies.fetch(reference)
                except (ObjectLost, TooLarge) as error:
                    return error.message
                return await asyncio.to_thread(self._judge, done, value, contract)

        violation = await self._until_done(held, "output", judge)
        if self._holds(held):
            await self._conclude(held, done, violation)

    def _judge(self, done: Done, output: dict[str, Any] | None, contract: Contract | None) -> str | None:
        """How an output breaks its contract, if it does."""
        if output is None:
            return "no output"
        if done.digest is not None and done.digest != digest_of(output):
            return "the digest is not that of the output"
        return check(self._validator(contract, "output"), output) if contract is not None else None

    async def _conclude(self, held: _Held, done: Done, violation: str | None) -> None:
        await self._run(held, held.negotiation.on_done(done, violation, time.monotonic()))
        await self._wake(done.worker, 1)

    async def _on_cancel(self, msg: Msg) -> None:
        """A cancel that the journal has accepted, republished."""
        _, tenant, task, _ = msg.subject.split(".")
        held = self._held.get((tenant, task))
        sequence = (msg.headers or {}).get("Nats-Sequence", "")  # without one it does not come from the journal
        if held is not None and sequence.isdecimal():
            await self._run(held, held.negotiation.on_cancel(int(sequence), time.monotonic()))

    async def _on_reply(self, msg: Msg) -> None:
        """Acknowledgements of what was published with a token, and answers to awards."""
        _, kind, token = msg.subject.rsplit(".", 2)
        if kind == "a":
            award = self._awards.pop(token, None)
            if award is None:
                return
            held, attempt = award
            try:
                reply = None if msg.headers and "Status" in msg.headers else decode_award_reply(msg.data)
            except ValidationError:
                reply = None
            await self._run(held, held.negotiation.on_award_reply(attempt, reply, time.monotonic()))
        elif kind == "j":
            write = self._writes.pop(token, None)
            if write is None or not self._holds(write[0]):
                return
            sequence = journal.stored_sequence(msg)
            if sequence:
                await self._run(write[0], write[0].negotiation.on_stored(sequence))
            elif journal.refused(msg):
                self._spawn(self._read_back(write[0]))
            else:
                log.warning("journal_write_failed", task=write[0].task.id, answer=msg.data[:200])
                self._writes[token] = write  # the tick tries again
        elif kind == "t" and journal.stored_sequence(msg):
            self._records.pop(token, None)

    async def _read_back(self, held: _Held) -> None:
        """A journal write was refused, or its acknowledgement lost: see what stands there and go on from it."""
        task = held.negotiation.task
        try:
            entries = await journal.read(self._nc, task.tenant, task.id)
        except Exception as error:
            log.warning("journal_unreadable", task=task.id, error=repr(error))
            self._writes[self._new_token()] = (held, time.monotonic())  # the tick tries again
            return
        if self._holds(held):
            await self._run(held, held.negotiation.on_refused(entries, time.monotonic()))

    def _holds(self, held: _Held) -> bool:
        """Whether a task is still in hand: what comes for one that was given back is void."""
        return self._held.get(_key(held.task)) is held

    async def hear(self, beat: Beat) -> None:
        """A worker's beat."""
        now = time.monotonic()
        if beat.leaving:
            self._directory.forget(beat.worker)
            await self._lost(beat.worker)
            return
        if self._directory.unknown(beat):
            await self._meet(beat.worker)
        self._directory.hear(beat, now)
        if len(beat.running) < beat.slots and not beat.draining:
            await self._fill(beat.worker, beat.slots - len(beat.running))
        at_work = {(r.tenant, r.task, r.attempt) for r in beat.running}
        for tenant, task, attempt in at_work:
            stale = self._held.get((tenant, task))
            if stale is not None and attempt < stale.negotiation.attempt:  # a zombie: it missed its cancel
                cancel = CancelAttempt(tenant=tenant, task=task, attempt=attempt)
                await self._nc.publish(subjects.cancel_attempt(beat.worker), cancel.encode())
        for (tenant, task), held in list(self._held.items()):
            if held.negotiation.running is None:
                continue
            worker, attempt, since = held.negotiation.running
            if worker != beat.worker or (tenant, task, attempt) in at_work or now - since < self._settings.beat_s:
                continue
            at_work_on = held.negotiation.at_work
            if held.suspect == attempt and at_work_on:  # twice: its Done may have been on its way the first time
                self._spawn(self._missed_done(held, *at_work_on))
            held.suspect = attempt

    async def _lost(self, worker: str) -> None:
        """A worker is gone. What it finished before counts."""
        for held in list(self._held.values()):
            at_work = held.negotiation.at_work
            if at_work is not None and at_work[0] == worker:
                self._spawn(self._missed_done(held, *at_work))
            else:
                await self._run(held, held.negotiation.on_worker_lost(worker, time.monotonic()))

    async def _missed_done(self, held: _Held, worker: str, attempt: int, auction: str | None) -> None:
        """The worker no longer runs the attempt and no Done came: its last event tells, or it is lost."""
        done = await self._until_done(held, "last_event", partial(self._ended, held, worker, attempt, auction))
        if not self._holds(held) or held.negotiation.at_work != (worker, attempt, auction):
            return
        if done is not None:
            await self._done(held, done)
        else:
            await self._run(held, held.negotiation.on_worker_lost(worker, time.monotonic()))

    async def _ended(self, held: _Held, worker: str, attempt: int, auction: str | None) -> Done | None:
        """How an attempt ended, if the result stream holds its last event."""
        task = held.task
        event = await journal.ending(self._nc, task.tenant, task.id, worker, attempt, auction)
        return Done.of(event, task.tenant) if event is not None else None

    async def _until_done(self, held: _Held, what: str, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do something that needs the streams, as often as it takes; None if the task is out of hand meanwhile."""
        while True:
            try:
                return await work()
            except ModelnetError as error:
                log.warning("streams_away", task=held.task.id, wanted=what, error=str(error))
            await asyncio.sleep(TICK_S)
            if not self._holds(held):
                return None

    async def _recall(self, held: _Held, worker: str, attempt: int, auction: str | None) -> None:
        """An attempt that another negotiator gave away: how it ended, or whether its worker still runs it."""
        task = held.task
        question = AdoptAttempt(tenant=task.tenant, task=task.id, attempt=attempt, auction=auction, negotiator=self.id)

        last = partial(self._ended, held, worker, attempt, auction)
        done, answer = await self._until_done(held, "last_event", last), None
        if done is None and self._holds(held):
            timeout_s = self._settings.award_timeout_ms / 1e3
            answer = await ask_worker(self._nc, worker, question, timeout_s=timeout_s)
            if answer != "running":  # it may have ended between the two questions
                done = await self._until_done(held, "last_event", last)
        if not self._holds(held):
            return
        if done is not None:
            await self._done(held, done)
        elif answer is not None:
            log.info("attempt_recalled", task=task.id, worker=worker, attempt=attempt, answer=answer)
            await self._run(held, held.negotiation.on_recalled(attempt, answer, time.monotonic()))

    async def _read_stream(self, held: _Held) -> None:
        task = held.task
        streamed = await self._until_done(held, "stream", partial(read_streamed, self._nc, task.tenant, task.id))
        if streamed is not None and self._holds(held):
            await self._run(held, held.negotiation.on_streamed(streamed, time.monotonic()))

    async def offered(self, offer: Offer) -> None:
        """A worker's capacity has changed."""
        await self._fill(offer.worker, offer.free)

    async def _meet(self, worker: str) -> None:
        """Look up a worker that was heard for the first time."""
        if worker in self._unknown:
            return
        self._unknown.add(worker)
        try:
            card = await self._catalogue.card(worker)
            if card is not None:
                if any(self._directory.contract(c.contract) is None for c in card.capabilities):
                    await self._relist()
                self._directory.learn_card(card, time.monotonic())
                log.info("worker_met", worker=worker, capabilities=[c.pattern for c in card.capabilities])
        finally:
            self._unknown.discard(worker)

    async def _fill(self, worker: str, free: int) -> None:
        """A worker says how many slots are free: as many may try, with those that were called for them already."""
        called = sum(held.called_for == worker for held in self._called)
        if free > called:
            await self._wake(worker, free - called)

    async def _wake(self, worker: str, count: int) -> None:
        """Let up to `count` waiting tasks that this worker could take try again."""

        def could_take(held: _Held) -> bool:
            candidate = self._directory.candidate(worker, held.task, held.accepts)
            return candidate is not None and worker not in held.negotiation.failed

        def serves(capability: str) -> bool:
            return self._directory.serves(worker, capability)

        for held in self._waiting.call(serves, could_take, count):
            held.called_for = worker
            self._called.add(held)
            await self._run(held, held.negotiation.wake(time.monotonic()))

    async def _decided(self, held: _Held) -> None:
        """The auction of a task that was called out of the line is over. If another worker won, there is still room."""
        worker, held.called_for = held.called_for, ""
        self._called.discard(held)
        at_work = held.negotiation.at_work
        if held.negotiation.state is not State.WAITING and (at_work is None or at_work[0] != worker):
            await self._wake(worker, 1)

    # ------------------------------------------------------------------ commands

    async def _run(self, held: _Held, commands: list[cmd.Command]) -> None:
        task = held.negotiation.task
        for command in commands:
            match command:
                case cmd.Write(entry, expected):
                    token = self._new_token()
                    self._writes[token] = (held, time.monotonic())
                    await journal.write(self._nc, task, entry, expected, reply=f"{self._inbox}.j.{token}")
                case cmd.SendAward(worker, award):
                    self._awards.pop(held.award, None)
                    held.award = token = self._new_token()
                    self._awards[token] = (held, award.attempt)
                    reply = f"{self._inbox}.a.{token}"
                    await self._nc.publish(subjects.award(worker), award.encode(), reply=reply)
                    log.debug("task_awarded", task=task.id, worker=worker, attempt=award.attempt, price=award.price)
                case cmd.AskForBids(request):
                    self._waiting.leave(held)
                    self._unfunded.discard(held)
                    self._by_auction.pop(held.auction, None)
                    held.auction = request.auction
                    self._by_auction[request.auction] = held
                    reply = subjects.bids(self.id, request.auction)
                    await self._nc.publish(subjects.capability(task.capability), request.encode(), reply=reply)
                case cmd.HoldFunds(amount, deadline_s):
                    self._spawn(self._hold_funds(held, amount, deadline_s))
                case cmd.StartTimer(timer, key, delay_s):
                    self._start_timer(held, timer, key, delay_s)
                case cmd.Record(transcript):
                    self._by_auction.pop(transcript.auction, None)
                    await self._record(transcript.auction, subjects.audit(task.tenant, task.id), transcript.encode())
                case cmd.Learn(outcome):
                    self._track.learn(outcome, time.monotonic())
                case cmd.CancelWork(worker, attempt, auction):
                    order = CancelAttempt(tenant=task.tenant, task=task.id, attempt=attempt, auction=auction)
                    body = order.encode()
                    await self._nc.publish(subjects.cancel_attempt(worker), body)
                case cmd.Recall(worker, attempt, auction):
                    self._spawn(self._recall(held, worker, attempt, auction))
                case cmd.ReadStream():
                    self._spawn(self._read_stream(held))
                case cmd.Bury(reason):
                    self._spawn(self._until_done(held, "bury", partial(journal.bury, self._nc, held.msg, reason)))
                case cmd.Hold(reason):
                    await self._hold(held, reason)
                case cmd.Finished(final):
                    self._finished += 1
                    await self._nc.publish(held.msg.reply, b"+ACK")
                    self._forget(held)
                    log.debug("task_finished", task=task.id, status=final.status, worker=final.worker)
                    await self._intake.release()
                case cmd.Abandon():
                    self._forget(held)
                    log.info("task_abandoned", task=task.id)
                    await self._intake.release()
        if held.called_for and held.negotiation.state not in (State.AUCTIONING, State.AWARDING):
            await self._decided(held)

    def _new_token(self) -> str:
        self._token += 1
        return str(self._token)

    def _start_timer(self, held: _Held, timer: cmd.Timer, key: str, delay_s: float) -> None:
        running = held.timers.get(timer)
        if running is not None:
            if timer == "notice":
                return  # readers are told of a wait that lasts, also if it is made of many short ones
            running.cancel()
        held.timers[timer] = asyncio.get_running_loop().call_later(delay_s, self._on_timer, held, timer, key)

    def _on_timer(self, held: _Held, timer: cmd.Timer, key: str) -> None:
        held.timers.pop(timer, None)
        self._spawn(self._run(held, held.negotiation.on_timer(timer, key, time.monotonic())))

    async def _open_ledger(self) -> Ledger:
        """The connection to the ledger: a third of a second of imports that a network without accounts never needs."""
        module = await asyncio.to_thread(importlib.import_module, "modelnet.store.ledger")
        if self._ledger is None:
            self._ledger = module.Ledger(self._settings.redis)
        return self._ledger

    async def _hold_funds(self, held: _Held, amount: int, deadline_s: float) -> None:
        task = held.task
        try:
            ledger = self._ledger or await self._open_ledger()
            async with asyncio.timeout(LEDGER_TIMEOUT_S):
                refusal = await ledger.hold(task.tenant, task.id, amount, deadline_s=deadline_s)
        except (ModelnetError, TimeoutError) as error:
            if not self._ledger_away:
                log.warning("ledger_away", error=str(error) or f"no answer in {LEDGER_TIMEOUT_S:g} s")
            self._ledger_away = True
            if self._holds(held):
                await self._run(held, held.negotiation.on_ledger_away())
            return
        if self._ledger_away:
            log.info("ledger_back")
        self._ledger_away = False
        if self._holds(held):
            await self._run(held, held.negotiation.on_held(refusal, time.monotonic()))

    async def _hold(self, held: _Held, reason: cmd.WaitingReason) -> None:
        self._by_auction.pop(held.auction, None)
        log.debug("task_waiting", task=held.task.id, reason=reason)
        if reason == "ledger_away":  # out of the line: a free slot is for those that could take it
            self._waiting.leave(held)
            self._unfunded.add(held)
            last = held if len(self._unfunded) > self._most_unfunded else None
        else:
            last = self._waiting.add(held)
        if last is not None:
            self._forget(last)
            await self._postpone(last.msg, last.task)

    async def _record(self, token: str, subject: str, body: bytes) -> None:
        self._records[token] = (subject, body, time.monotonic())
        await self._publish_record(token, subject, body)

    async def _publish_record(self, token: str, subject: str, body: bytes) -> None:
        await self._nc.publish(subject, body, reply=f"{self._inbox}.t.{token}", headers={"Nats-Msg-Id": token})

    def _forget(self, held: _Held) -> None:
        task = held.negotiation.task
        if self._held.get(_key(task)) is held:
            del self._held[_key(task)]
            owner = (task.tenant, task.priority_class)
            self._by_tenant[owner] -= 1
            if not self._by_tenant[owner]:
                del self._by_tenant[owner]
        self._awards.pop(held.award, None)
        self._by_auction.pop(held.auction, None)
        self._waiting.leave(held)
        self._unfunded.discard(held)
        self._called.discard(held)
        for timer in held.timers.values():
            timer.cancel()
        held.timers.clear()


def _usable(contract: Contract) -> bool:
    """Whether a contract's schemas are schemas: anybody may announce anything."""
    try:
        compile_schema(contract.input)
        compile_schema(contract.output)
    except UsageError as error:
        log.warning("contract_unusable", capability=contract.capability, digest=contract.digest, reason=str(error))
        return False
    return True


def make_app(config: Settings, negotiator: Negotiator | None = None) -> FastStream:
    """The negotiator, a new one unless it is given, as a FastStream app."""
    negotiator = negotiator or Negotiator(config)
    broker = make_broker(config, "modelnet-negotiator", on_reconnect=negotiator.reconnected)

    # Not in the document: `specification` describes them, with the names of what the wildcards stand for.
    @broker.subscriber("beat.*", include_in_schema=False)
    async def on_beat(beat: Beat) -> None:
        await negotiator.hear(beat)

    @broker.subscriber("offer.>", include_in_schema=False)
    async def on_offer(offer: Offer) -> None:
        await negotiator.offered(offer)

    app = FastStream(broker, specification=specification("negotiator"))

    @app.on_startup
    async def prepare() -> None:
        setup_logging(config)

    @app.after_startup
    async def join() -> None:
        await negotiator.start(broker.connection)

    @app.on_shutdown
    async def leave() -> None:
        await negotiator.stop()

    return app


app = make_app(settings())
