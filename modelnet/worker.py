"""The worker SDK: what it takes to put a model, a tool or a function on the network.

    worker = Worker("acme-upper")

    @worker.capability("text.upper", contract={"input": …, "output": …}, price=2)
    async def upper(ctx, input):
        return {"text": input["text"].upper()}

The worker bids while it has a free slot or a place in its backlog, runs what it is awarded, streams what the handler
says, and reports the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nats.errors
import structlog
from faststream import FastStream
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.attempt import Progress, Threads
from modelnet.bidding import Bidding
from modelnet.bus import subjects
from modelnet.bus.bodies import Bodies
from modelnet.bus.broker import make_broker, specification
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.connection import Connection
from modelnet.bus.journal import first_error
from modelnet.bus.outbox import Outbox
from modelnet.bus.services import Endpoint, Service, endpoint_name
from modelnet.capability import Able, Delay, Estimate, Handler, Price, Quote, Served
from modelnet.client import Client
from modelnet.contracts import load_contract
from modelnet.deltas import Piece
from modelnet.errors import ConnectionFailed, UsageError
from modelnet.execution import Context, Execution
from modelnet.log import setup_logging
from modelnet.market.scarcity import Scarcity
from modelnet.settings import Settings, settings
from modelnet.slots import Begin, GiveUp, Key, Order, Reason, Slots, Stop

__all__ = ["BACKLOG", "Context", "Piece", "Progress", "Worker", "worker_app"]

log = structlog.get_logger("worker")

BACKLOG = 2
"""Awards that wait for a slot, unless a worker says otherwise. bench/results/backlog.txt: with one slot and tasks of 20
ms a worker was at work 64 % of the time without any, and 93 % with one or more; what waits cannot be overtaken."""
HAND_ON_S = 5.0
"""Time to tell that attempts end unfinished."""
AWAY_S = 3.0
"""A worker that is to stop waits this long for a lost server."""


class Worker:
    """A participant that answers tasks. Declare capabilities, then run it as the FastStream app that `app` is."""

    def __init__(
        self,
        name: str,
        *,
        owner: str | None = None,
        slots: int = 16,
        backlog: int = BACKLOG,
        scarcity: bool = False,
        labels: Mapping[str, str] | None = None,
        software: str = "",
        config: Settings | None = None,
    ) -> None:
        """`name` becomes the worker's id, with a number behind it if it is taken. `slots`: tasks run at once.

        `backlog`: awards it takes beyond its slots; they begin in order as slots free up. `scarcity`: ask more
        than the declared price for what must wait, after more was asked of it than it could take; docs/workers.md says
        how much.
        """
        if slots < 1:
            raise UsageError(f"slots must be at least 1, not {slots}")
        if backlog < 0:
            raise UsageError(f"backlog must be at least 0, not {backlog}")
        self._settings = config or settings()
        self.name = self.id = name
        self.slots, self.backlog = slots, backlog
        self._owner = owner or self._settings.owner
        self._labels = dict(labels or {})
        self.software = software
        """What it runs on, for people; told when it joins."""
        self._instance = m.new_id()
        self._capabilities: dict[str, Served] = {}
        self._attempts = Slots(slots, backlog)
        self._bidding = Bidding(self._attempts, Scarcity() if scarcity else None)
        self._jobs: dict[Key, asyncio.Task[None]] = {}
        self._executions: dict[Key, Execution] = {}
        self._leaving: asyncio.Task[None] | None = None
        self._threads = Threads(f"{name}-handler")
        self._background: set[asyncio.Task[None]] = set()
        self._joined = False
        self._connection = self._claimed_on = 0
        """Number of this connection, and of the last on which the server was seen to have our contracts and card."""
        self._mending: asyncio.Task[None] | None = None
        self._offers = 0
        """How many were made."""
        self.on_left: Callable[[], None] = lambda: None
        """Called when the worker has left because it was asked to."""
        self.broker = make_broker(self._settings, f"modelnet-worker-{name}", on_reconnect=self._reconnected)
        m.WorkerCard(worker=name, owner=self._owner, capabilities=(), instance=self._instance)  # refuses a bad name

    # ------------------------------------------------------------------ declaring

    def capability(
        self,
        pattern: str,
        *,
        contract: m.Contract | Mapping[str, Any] | str | Path | None = None,
        price: Price = 0,
        deposit: int = 0,
        quality: float | None = None,
        model: str | None = None,
        description: str = "",
        expected_ms: float = 100.0,
        estimate: Estimate | None = None,
        continues: bool = False,
        able: Able | None = None,
        ready: Able | None = None,
        quote: Quote | None = None,
        delay: Delay | None = None,
    ) -> Callable[[Handler], Handler]:
        """Declare that the decorated handler serves `pattern`, a capability or a prefix like `normalize.>`.

        `contract`: input and output schemas, a file that holds them, or None for the standard contract of this name.
        `price`: micro-credits per task, or a function of the input; bidders see the input's shape only, so it gets
        filler of the right lengths. `deposit`: micro-credits that its owner puts up for each task while the worker has
        no history, to be paid by what the answer turns out to be worth (docs/market.md). `quality`: claimed share of
        good answers, 0 to 1. `expected_ms`: median run time to claim before anything is measured. `estimate`: a
        `Forecast`, or (p50, p90) in ms, from the features, for engines that know better than what was measured; or
        None. `continues`: the handler yields text only, and begins behind `ctx.resume.text` where that is given.
        `able`: whether it can do an input at all, as the price is told of it: for a model that lacks what the contract
        has, `False` where the input has it. `ready`: whether it can do one now; until then the worker counts as busy.
        `quote`: the price from the features, instead of `price`, for what is priced by size. `delay`: seconds until a
        task that came now could begin beside what it takes, as for a model that must be loaded first.
        """

        def declare(handler: Handler) -> Handler:
            loaded = load_contract(pattern, contract)
            if description:
                loaded = loaded.model_copy(update={"description": description})
            elif not loaded.description and handler.__doc__:
                first_line = inspect.cleandoc(handler.__doc__).splitlines()[0]
                loaded = loaded.model_copy(update={"description": first_line})
            card = m.CapabilityCard(
                pattern=pattern,
                contract=loaded.digest,
                model=model,
                price=price if isinstance(price, int) and quote is None else None,
                quality=quality,
                continues=continues,
            )
            self._capabilities[pattern] = Served(
                card,
                loaded,
                handler,
                price=price,
                expected_ms=expected_ms,
                estimate=estimate,
                deposit=deposit,
                able=able,
                ready=ready,
                quote=quote,
                delay=delay,
            )
            return handler

        return declare

    def rename(self, name: str) -> None:
        """Take another id, before it joins. Raises `pydantic.ValidationError` for one that no subject can carry."""
        m.WorkerCard(worker=name, owner=self._owner, capabilities=(), instance=self._instance)
        self.name = self.id = name

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What was declared."""
        return tuple(self._capabilities)

    @property
    def app(self) -> FastStream:
        """This worker as a FastStream app."""
        return worker_app(self)

    # ------------------------------------------------------------------ life

    async def prepare(self) -> None:
        """Connect, take an id, and subscribe to what must be heard before the first beat."""
        if not self._capabilities:
            raise UsageError(f"worker {self.name} declares no capability")
        self._bus: Connection = await self.broker.connect()
        self._catalogue = Catalogue(self._bus)
        self._client = Client(self._bus, self._settings)
        await self._claim()
        self.broker.subscriber(f"worker.{self.id}.drain", include_in_schema=False)(self._answer_drain)
        self.broker.subscriber(subjects.ROLL_CALL, include_in_schema=False)(self._answer_roll_call)

    async def join(self) -> None:
        """Begin to bid."""
        self._outbox = Outbox(self._bus)
        await self._outbox.start()
        # One subscription for both: of two, a cancel could overtake the award that it is for.
        await self._bus.hear(f"worker.{self.id}.*", self._on_order)
        for pattern in self._capabilities:
            await self._bus.hear(subjects.capability(pattern), self._request_handler(pattern))
        self._service = self._as_service()
        await self._service.open()
        await self._bus.flush()
        await self._beat()
        self._spawn(self._beats())
        self._joined = True
        log.info("worker_joined", worker=self.id, capabilities=list(self._capabilities))

    @property
    def has_left(self) -> bool:
        """Whether it is off the network for good."""
        return self._leaving is not None and self._leaving.done()

    async def leave(self) -> None:
        """Take nothing new, finish what runs, and go. Without a server there is nobody to finish it for."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())
        await self._leaving

    async def pause(self, why: str, *, hand_on: bool = False) -> None:
        """Take nothing new until `resume`, and hand on what waits: the model or server behind it is away. `hand_on`:
        what runs too, since it cannot come to an end here."""
        self._obey(self._attempts.drain())
        log.warning("worker_paused", worker=self.id, reason=why, running=len(self._executions))
        if hand_on:
            for key, execution in list(self._executions.items()):
                execution.hand_on(self._jobs[key], why)
        await self._tell_state()

    async def resume(self) -> None:
        """Bid again after a `pause`, unless it leaves."""
        if self._leaving is None and self._attempts.draining:
            self._attempts.draining = False
            log.info("worker_resumed", worker=self.id)
            await self._tell_state()

    async def _tell_state(self) -> None:
        if self._joined and self._bus.is_connected:
            await self._beat()
            await self._offer()

    async def _leave(self) -> None:
        self._obey(self._attempts.drain())
        if self._joined:
            with contextlib.suppress(nats.errors.Error, ConnectionFailed, OSError):
                await self._service.close()
                await self._beat()
                await self._drain(self._settings.drain_s)
                if self._jobs and self._bus.is_connected:
                    log.warning("attempts_handed_on", worker=self.id, running=len(self._jobs))
                    for key, job in list(self._jobs.items()):
                        self._executions[key].hand_on(job)
                    await self._drain(HAND_ON_S)
                if self._bus.is_connected:
                    await self._beat(leaving=True)
                    await self._catalogue.leave(self.id)
                    await self._answering.unsubscribe()
                    await self._bus.flush(timeout=2)
        for task in list(self._background):
            task.cancel()
        self._report_accuracy()
        log.info("worker_left", worker=self.id)

    def _report_accuracy(self) -> None:
        """How good its bids were."""
        for pattern, served in self._capabilities.items():
            for of, said in (("whole", served.accuracy), ("first", served.first_accuracy)):
                if said.coverage is not None and said.median_error is not None:
                    facts = {"in_p90": round(said.coverage, 3), "median_error": round(said.median_error, 3)}
                    log.info("forecasts", worker=self.id, capability=pattern, of=of, tasks=said.count, **facts)

    async def _drain(self, for_s: float) -> None:
        """Wait until nothing runs and the stream holds every end, unless that takes too long or the server is away."""
        until = time.monotonic() + for_s
        away_since: float | None = None
        while (now := time.monotonic()) < until:
            away_since = None if self._bus.is_connected else away_since or now
            if away_since is not None and now - away_since > AWAY_S:
                log.warning("drain_given_up", worker=self.id, running=len(self._attempts))
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(0.5, until - now)):
                    while self._jobs:
                        await asyncio.wait(list(self._jobs.values()))
                    await self._outbox.empty.wait()
                    return

    def _card(self) -> m.WorkerCard:
        return m.WorkerCard(
            worker=self.id,
            owner=self._owner,
            capabilities=tuple(c.card for c in self._capabilities.values()),
            slots=self.slots,
            labels=self._labels,
            software=self.software,
            instance=self._instance,
        )

    def _as_service(self) -> Service:
        """What the services API shows of it."""
        endpoints = dict[str, Endpoint]()
        for pattern, served in self._capabilities.items():
            card, name = served.card, endpoint_name(pattern, endpoints)
            facts = {
                "capability": pattern,
                "contract": card.contract,
                "description": served.contract.description,
                "price": "by input" if card.price is None else str(card.price),
                "quality": "" if card.quality is None else str(card.quality),
                "model": card.model or "",
                "message": "BidRequest",
            }
            known = {key: value for key, value in facts.items() if value}
            endpoints[name] = Endpoint(name, subjects.capability(pattern), served.statistics, known)
        labels = {f"label.{key}": value for key, value in self._labels.items()}
        facts = {
            "slots": str(self.slots),
            "backlog": str(self.backlog),
            "owner": self._owner,
            "instance": self._instance,
        }
        if self.software:
            facts["software"] = self.software
        return Service(
            self._bus,
            "modelnet-worker",
            self.id,
            description=f"Worker {self.id}: {', '.join(self._capabilities)}",
            endpoints=list(endpoints.values()),
            metadata={**labels, **facts},
            state=lambda: {"free": self._attempts.free, "in_hand": len(self._attempts)},
        )

    async def _claim(self) -> None:
        """Announce contracts and card; under the name, or the first free of name-2, name-3, …"""
        warned = False
        while True:
            try:
                for capability in self._capabilities.values():
                    await self._catalogue.announce(capability.contract)
                number = 1
                while not await self._take_id():
                    number += 1
                    self.id = f"{self.name}-{number}"
                return
            except ConnectionFailed as error:
                if not warned:
                    log.warning("waiting_for_network", worker=self.name, reason=str(error))
                warned = True
                await asyncio.sleep(0.2)

    async def _take_id(self) -> bool:
        """Whether `id` is ours: claimed, answered for, and only then confirmed, so that of two that start at the same
        moment one gets it."""
        revision = await self._catalogue.claim(self._card())
        if revision is None:
            return False
        sub = await self._bus.subscribe(subjects.query(self.id), cb=self._answer_query)
        await self._bus.flush()
        if await self._catalogue.confirm(self._card(), revision):
            self._answering = sub
            return True
        await sub.unsubscribe()
        return False

    async def _reconnected(self) -> None:
        await self._beat()
        self._connection += 1
        if self._joined:
            self._outbox.reconnected()
            self._mend_beside()

    def _mend_beside(self) -> None:
        """Mend what a lost connection has cost, if that is not being done. Nothing waits for it: streams that do not
        answer must not silence a living worker."""
        if self._mending is None or self._mending.done():
            self._mending = self._spawn(self._mend())

    async def _mend(self) -> None:
        try:
            await self._outbox.mend()
            await self._outbox.repeat()
            if self._claimed_on != (connection := self._connection):
                await self._claim_again()
                self._claimed_on = connection
        except (nats.errors.Error, ConnectionFailed) as error:  # the next beat tries again
            log.debug("not_mended", worker=self.id, error=repr(error))

    async def _claim_again(self) -> None:
        """The server may have come back without its data: announce what it should know."""
        for capability in self._capabilities.values():
            await self._catalogue.announce(capability.contract)
        if await self._catalogue.card(self.id) is None:
            await self._catalogue.claim(self._card())

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("worker_failed", worker=self.id, error=repr(error), exc_info=error)

    # ------------------------------------------------------------------ beats and control

    def _state(self, *, leaving: bool = False) -> m.Beat:
        return m.Beat(
            worker=self.id,
            instance=self._instance,
            slots=self.slots,
            backlog=self.backlog,
            running=tuple(m.RunningAttempt(tenant=t, task=k, attempt=n) for t, k, n in self._attempts),
            draining=self._attempts.draining,
            leaving=leaving,
        )

    async def _beat(self, *, leaving: bool = False) -> None:
        await self._bus.publish(subjects.beat(self.id), self._state(leaving=leaving).encode())

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(self._settings.beat_s)
            self._obey(self._attempts.overdue(time.monotonic()))
            if self._bus.is_connected:
                await self._beat()
                await self._offer()
                self._mend_beside()

    async def _offer(self) -> None:
        for pattern, capability in self._capabilities.items():
            offer = self._bidding.offer(self.id, capability, self._offers, time.monotonic())
            self._offers += 1
            await self._bus.publish(subjects.offer(pattern, self.id), offer.encode())

    async def _answer_query(self, msg: Msg) -> None:
        if msg.reply:
            await self._bus.publish(msg.reply, self._state().encode())

    async def _answer_roll_call(self, body: m.RollCall) -> None:
        await self._beat()

    async def _answer_drain(self, body: m.Drain) -> m.Beat:
        """Leave on request. The process stops once all its workers have."""
        self._attempts.draining = True
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())
            self._leaving.add_done_callback(lambda _: self.on_left())
        return self._state()

    async def _on_order(self, msg: Msg) -> None:
        order = msg.subject.rsplit(".", 1)[1]
        try:
            if order in ("award", "adopt", "cfp") and not msg.reply:
                log.warning("order_malformed", subject=msg.subject, reason="it names no subject for the answer")
            elif order == "award":
                await self._on_award(msg, m.Award.decode(msg.data))
            elif order == "adopt":
                await self._reply(msg, self._attempts.on_adopt(m.AdoptAttempt.decode(msg.data)))
            elif order == "cfp":
                request = m.BidRequest.decode(msg.data)
                if (served := self._serving(request.capability)) is not None:
                    await self._answer_request(msg, request, served)
            elif order == "cancel":
                cancel = m.CancelAttempt.decode(msg.data)
                self._obey(self._attempts.on_cancel(Key(cancel.tenant, cancel.task, cancel.attempt), cancel.auction))
        except ValidationError as error:
            log.warning("order_malformed", subject=msg.subject, reason=first_error(error))

    async def _reply(self, msg: Msg, reason: Reason | None) -> None:
        reply = m.Decline(worker=self.id, reason=reason) if reason else m.Confirm(worker=self.id)
        await self._bus.publish(msg.reply, reply.encode())

    # ------------------------------------------------------------------ bidding

    def _request_handler(self, pattern: str) -> Callable[[Msg], Any]:
        capability = self._capabilities[pattern]

        async def on_request(msg: Msg) -> None:
            try:
                request = m.BidRequest.decode(msg.data)
            except ValidationError:
                log.warning("bid_request_malformed", subject=msg.subject)
                return
            if self._serving(request.capability) is capability:
                await self._answer_request(msg, request, capability)

        return on_request

    async def _answer_request(self, msg: Msg, request: m.BidRequest, capability: Served) -> None:
        if self._suits(request, capability):
            reply = self._bidding.answer(self.id, request, capability, time.monotonic())
            await self._bus.publish(f"{msg.reply}.{self.id}", reply.encode())

    def _serving(self, name: str) -> Served | None:
        """The most exact of the declared capabilities that covers `name`."""
        exact = self._capabilities.get(name)
        if exact is not None:
            return exact
        found = [c for pattern, c in self._capabilities.items() if m.matches(pattern, name)]
        return max(found, key=lambda c: len(c.card.pattern), default=None)

    def _suits(self, request: m.BidRequest, capability: Served) -> bool:
        if request.contract is not None and request.contract != capability.card.contract:
            return False
        if not (request.require or request.exclude):
            return True
        facts = (self.id, self._owner, capability.card.model, self._labels)
        return all(request.require.holds(*facts)) and not any(request.exclude.holds(*facts))

    # ------------------------------------------------------------------ attempts

    async def _on_award(self, msg: Msg, award: m.Award) -> None:
        served = self._serving(award.capability)
        suits = served is not None and served.takes(award)
        run_s = self._bidding.run_s(award, served) if served is not None else 0.0
        ready = served is None or served.is_ready_for(award)
        now = time.monotonic()
        reason, orders = self._attempts.on_award(award, suits=suits, now=now, run_s=run_s, ready=ready)
        await self._reply(msg, reason)  # on its way before the handler can take the process along
        self._obey(orders)

    def _obey(self, orders: Sequence[Order]) -> None:
        for order in orders:
            match order:
                case Stop(key):
                    if (job := self._jobs.get(key)) is not None:
                        job.cancel()
                case Begin(award):
                    key = Key(award.tenant, award.task, award.attempt)
                    self._start(key, self._work(key, award))
                case GiveUp(award, negotiator, why):
                    key = Key(award.tenant, award.task, award.attempt)
                    self._start(key, self._give_up(key, award, negotiator, why))

    def _start(self, key: Key, coroutine: Coroutine[Any, Any, None]) -> None:
        self._jobs[key] = job = asyncio.get_running_loop().create_task(coroutine)
        job.add_done_callback(partial(self._ended, key))

    def _execution(self, award: m.Award) -> Execution:
        served = self._serving(award.capability)
        assert served is not None
        context = Context(
            task=award.task,
            tenant=award.tenant,
            attempt=award.attempt,
            capability=award.capability,
            price=award.price,
            worker=self.id,
            resume=award.resume,
            _deadline=time.monotonic() + award.remaining_ms / 1e3,
            _client=self._client,
            bid=self._bidding.made(award),
        )
        bodies = Bodies(self._bus, self._settings)
        return Execution(award, served, context, self._outbox, bodies, pool=self._threads, crowd=self._crowd)

    def _crowd(self) -> int:
        return len(self._executions)

    async def _work(self, key: Key, award: m.Award) -> None:
        execution = self._execution(award)
        job, self._executions[key] = self._jobs[key], execution
        await execution.run(stopped=lambda: job.cancelling() > 0)
        was_full = self._attempts.free == 0
        negotiator, next_ones = self._attempts.on_ended(key, time.monotonic())
        self._obey(next_ones)
        await self._tell(key, execution, negotiator)
        if was_full:
            await self._offer()  # whoever waits may come

    async def _give_up(self, key: Key, award: m.Award, negotiator: str, why: Literal["expired", "leaving"]) -> None:
        """An attempt ends that never began."""
        self._executions[key] = execution = self._execution(award)
        execution.give_up(why)
        log.info("attempt_given_up", task=award.task, attempt=award.attempt, why=why)
        await self._tell(key, execution, negotiator)

    async def _tell(self, key: Key, execution: Execution, negotiator: str | None) -> None:
        await execution.tell()
        if negotiator is not None:
            done = execution.done()
            await self._bus.publish(subjects.done(negotiator, key.task, self.id, key.attempt), done.encode())

    def _ended(self, key: Key, job: asyncio.Task[None]) -> None:
        """An attempt is over, and its end has been told."""
        del self._jobs[key]
        self._executions.pop(key, None)
        # It may have been cancelled before it could do this itself.
        self._obey(self._attempts.on_ended(key, time.monotonic())[1])
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("attempt_failed", error=repr(error), exc_info=error)


def worker_app(
    *workers: Worker,
    before: Callable[[], Awaitable[None]] | None = None,
    after: Callable[[], Awaitable[None]] | None = None,
) -> FastStream:
    """Workers of one process as one FastStream app: each has its own connection, id and bids.

    `before` runs before any joins (load a model), `after` once all have left.
    """
    app = FastStream(*(worker.broker for worker in workers), specification=specification("worker"))

    def left() -> None:
        if all(worker.has_left for worker in workers):
            signal.raise_signal(signal.SIGTERM)

    for worker in workers:
        worker.on_left = left

    @app.on_startup
    async def prepare() -> None:
        setup_logging(settings())
        if before is not None:
            await before()
        for worker in workers:
            await worker.prepare()

    @app.after_startup
    async def join() -> None:
        for worker in workers:
            await worker.join()
        log.info("workers_joined", workers=[worker.id for worker in workers])

    @app.on_shutdown
    async def leave() -> None:
        await asyncio.gather(*(worker.leave() for worker in workers))
        if after is not None:
            await after()

    return app
