"""The worker SDK: what it takes to put a model, a tool or a function on the network.

    worker = Worker("acme-upper")

    @worker.capability("text.upper", contract={"input": …, "output": …}, price=2)
    async def upper(ctx, input):
        return {"text": input["text"].upper()}

The worker bids while it has a free slot, runs what it is awarded, streams what the handler says, and reports the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nats.errors
import structlog
from faststream import FastStream
from nats.aio.client import Client as Bus
from nats.aio.msg import Msg
from pydantic import ValidationError
from pydantic_core import to_json

from modelnet import messages as m
from modelnet.attempt import BadOutput, DeltaBuffer, Progress, Threads, say
from modelnet.bus import subjects
from modelnet.bus.broker import make_broker, specification
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.journal import first_error, stored_sequence
from modelnet.client import Client
from modelnet.contracts import check, compile_schema, load_contract, sketch
from modelnet.errors import ConnectionFailed, ModelnetError, Reject, TooLarge, UsageError
from modelnet.estimates import RunTimes
from modelnet.log import setup_logging
from modelnet.settings import Settings, settings

__all__ = ["Context", "Progress", "Worker", "worker_app"]

log = structlog.get_logger("worker")

RETRY_STORE_S = 2.0
DRAIN_S = 30.0
AWAY_S = 3.0
"""A worker that is to stop waits this long for a lost server."""


Handler = Callable[..., Any]
Price = int | Callable[[dict[str, Any]], int]
Estimate = Callable[[m.Features], tuple[float, float] | None]


@dataclass(slots=True)
class _Capability:
    """A capability as its decorator declared it."""

    card: m.CapabilityCard
    contract: m.Contract
    handler: Handler
    price: Price
    times: RunTimes
    estimate: Estimate | None
    check_input: Any
    check_output: Any

    def quote(self, features: m.Features) -> int | None:
        """The price for an input of these features; None if they do not tell."""
        if isinstance(self.price, int):
            return self.price
        if features.shape is None:
            return None
        try:
            return max(int(self.price(sketch(features.shape))), 0)
        except Exception as error:
            log.warning("price_failed", capability=self.card.pattern, error=repr(error))
            return None

    def expect(self, features: m.Features) -> tuple[float, float]:
        """(p50, p90) of the time to complete, in ms."""
        told = self.estimate(features) if self.estimate else None
        return told or self.times.quantiles()


@dataclass(slots=True)
class Context:
    """What a handler knows of its task, and what it can do beside answering."""

    task: str
    """Id of the task."""
    tenant: str
    attempt: int
    capability: str
    """As the task named it: under a prefix it tells which one is wanted."""
    price: int
    """What an accepted answer earns, in micro-credits."""
    worker: str
    _deadline: float
    _client: Client
    usage: m.Usage = field(default_factory=m.Usage)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline."""
        return max(self._deadline - time.monotonic(), 0.0)

    def count(self, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Add to what the attempt has used."""
        used = self.usage
        self.usage = m.Usage(
            prompt_tokens=used.prompt_tokens + prompt_tokens,
            completion_tokens=used.completion_tokens + completion_tokens,
        )

    async def call(self, capability: str, input: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Have another worker do something, until this task's own deadline at most: the output, or `TaskError`."""
        options.setdefault("deadline_s", max(self.remaining_s, 0.001))
        task = await self._client.submit(capability, input, **options)
        try:
            final = await task.result()
        except asyncio.CancelledError:  # nobody will read the answer: the child's work ends with this one's
            with contextlib.suppress(ModelnetError):
                await task.cancel()
            raise
        return final.output or {}


@dataclass(slots=True)
class _Run:
    """An attempt this worker works on."""

    award: m.Award
    job: asyncio.Task[None]
    started: float


class Worker:
    """A participant that answers tasks. Declare capabilities, then run it as the FastStream app that `app` is."""

    def __init__(
        self,
        name: str,
        *,
        owner: str | None = None,
        slots: int = 16,
        labels: Mapping[str, str] | None = None,
        software: str = "",
        config: Settings | None = None,
    ) -> None:
        """`name` becomes the worker's id, with a number behind it if it is taken. `slots`: tasks run at once."""
        if slots < 1:
            raise UsageError(f"slots must be at least 1, not {slots}")
        self._settings = config or settings()
        self.name = self.id = name
        self.slots = slots
        self._owner = owner or self._settings.owner
        self._labels = dict(labels or {})
        self._software = software
        self._instance = m.new_id()
        self._capabilities: dict[str, _Capability] = {}
        self._running: dict[tuple[str, str, int], _Run] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._unstored: dict[str, tuple[str, bytes, float]] = {}
        self._threads = Threads(f"{name}-handler")
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._background: set[asyncio.Task[None]] = set()
        self._token = 0
        self._joined = False
        self.broker = make_broker(self._settings, f"modelnet-worker-{name}", on_reconnect=self._reconnected)
        m.WorkerCard(worker=name, owner=self._owner, capabilities=(), instance=self._instance)  # refuses a bad name

    # ------------------------------------------------------------------ declaring

    def capability(
        self,
        pattern: str,
        *,
        contract: m.Contract | Mapping[str, Any] | str | Path | None = None,
        price: Price = 0,
        quality: float | None = None,
        model: str | None = None,
        description: str = "",
        expected_ms: float = 100.0,
        estimate: Estimate | None = None,
    ) -> Callable[[Handler], Handler]:
        """Declare that the decorated handler serves `pattern`, a capability or a prefix like `normalize.>`.

        `contract`: input and output schemas, a file that holds them, or None for the standard contract of this name.
        `price`: micro-credits per task, or a function of the input; bidders see the input's shape only, so it gets
        filler of the right lengths. `quality`: claimed share of good answers, 0 to 1. `expected_ms`: median run time to
        claim before anything is measured. `estimate`: (p50, p90) in ms from the features, for engines that know better
        than what was measured, or None.
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
                price=price if isinstance(price, int) else None,
                quality=quality,
            )
            self._capabilities[pattern] = _Capability(
                card=card,
                contract=loaded,
                handler=handler,
                price=price,
                times=RunTimes(expected_ms),
                estimate=estimate,
                check_input=compile_schema(loaded.input),
                check_output=compile_schema(loaded.output),
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
        self._bus: Bus = await self.broker.connect()
        self._catalogue = Catalogue(self._bus)
        self._client = Client(self._bus, self._settings)
        await self._claim()
        self.broker.subscriber(f"worker.{self.id}.drain", include_in_schema=False)(self._answer_drain)
        self.broker.subscriber(subjects.ROLL_CALL, include_in_schema=False)(self._answer_roll_call)

    async def join(self) -> None:
        """Begin to bid."""
        self._inbox = self._bus.new_inbox()
        await self._bus.subscribe(f"{self._inbox}.*", cb=self._on_stored)
        # One subscription for both: of two, a cancel could overtake the award that it is for.
        await self._bus.subscribe(f"worker.{self.id}.*", cb=self._on_order)
        for pattern in self._capabilities:
            await self._bus.subscribe(subjects.capability(pattern), cb=self._request_handler(pattern))
        await self._bus.flush()
        await self._beat()
        self._spawn(self._beats())
        self._joined = True
        log.info("worker_joined", worker=self.id, capabilities=list(self._capabilities))

    async def leave(self) -> None:
        """Take nothing new, finish what runs, and go. Without a server there is nobody to finish it for."""
        self._draining = True
        if self._joined:
            with contextlib.suppress(nats.errors.Error, ConnectionFailed, OSError):
                await self._beat()
                await self._drain()
                if self._bus.is_connected:
                    await self._beat(leaving=True)
                    await self._catalogue.leave(self.id)
                    await self._bus.flush(timeout=2)
        for task in list(self._background):
            task.cancel()
        log.info("worker_left", worker=self.id)

    async def _drain(self) -> None:
        """Wait until nothing runs, unless that takes too long or the server stays away."""
        until = time.monotonic() + DRAIN_S
        away_since: float | None = None
        while self._running:
            now = time.monotonic()
            away_since = None if self._bus.is_connected else away_since or now
            if now > until or (away_since is not None and now - away_since > AWAY_S):
                log.warning("drain_given_up", worker=self.id, running=len(self._running))
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), 0.5)

    def _card(self) -> m.WorkerCard:
        return m.WorkerCard(
            worker=self.id,
            owner=self._owner,
            capabilities=tuple(c.card for c in self._capabilities.values()),
            slots=self.slots,
            labels=self._labels,
            software=self._software,
            instance=self._instance,
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
            return True
        await sub.unsubscribe()
        return False

    async def _reconnected(self) -> None:
        await self._beat()
        await self._claim_again()

    async def _claim_again(self) -> None:
        """The server may have come back without its data: announce what it should know."""
        for capability in self._capabilities.values():
            await self._catalogue.announce(capability.contract)
        if await self._catalogue.card(self.id) is None:
            await self._catalogue.claim(self._card())

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # ------------------------------------------------------------------ beats and control

    def _state(self, *, leaving: bool = False) -> m.Beat:
        return m.Beat(
            worker=self.id,
            instance=self._instance,
            slots=self.slots,
            running=tuple(m.RunningAttempt(tenant=t, task=k, attempt=n) for t, k, n in self._running),
            draining=self._draining,
            leaving=leaving,
        )

    async def _beat(self, *, leaving: bool = False) -> None:
        await self._bus.publish(subjects.beat(self.id), self._state(leaving=leaving).encode())

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(self._settings.beat_s)
            if self._bus.is_connected:
                await self._beat()
                await self._offer()
                now = time.monotonic()
                for token, (subject, body, since) in list(self._unstored.items()):
                    if now - since > RETRY_STORE_S:
                        self._unstored[token] = (subject, body, now)
                        await self._publish_last(token, subject, body)

    async def _offer(self) -> None:
        free = 0 if self._draining else max(self.slots - len(self._running), 0)
        for pattern, capability in self._capabilities.items():
            p50_ms, p90_ms = capability.times.quantiles()
            offer = m.Offer(
                worker=self.id,
                capability=pattern,
                price=capability.card.price,
                p50_ms=p50_ms,
                p90_ms=p90_ms,
                free=free,
            )
            await self._bus.publish(subjects.offer(pattern, self.id), offer.encode())

    async def _answer_query(self, msg: Msg) -> None:
        if msg.reply:
            await self._bus.publish(msg.reply, self._state().encode())

    async def _answer_roll_call(self, body: m.RollCall) -> None:
        await self._beat()

    async def _answer_drain(self, body: m.Drain) -> m.Beat:
        """Drain on request: the process stops as it would on SIGTERM."""
        self._draining = True
        await self._beat()
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)
        return self._state()

    async def _on_order(self, msg: Msg) -> None:
        if msg.subject == subjects.award(self.id):
            await self._on_award(msg)
        elif msg.subject == subjects.cancel_attempt(self.id):
            self._on_cancel(msg)

    def _on_cancel(self, msg: Msg) -> None:
        try:
            cancel = m.CancelAttempt.decode(msg.data)
        except ValidationError:
            log.warning("cancel_malformed", subject=msg.subject)
            return
        run = self._running.get((cancel.tenant, cancel.task, cancel.attempt))
        if run is not None:
            run.job.cancel()

    # ------------------------------------------------------------------ bidding

    def _request_handler(self, pattern: str) -> Callable[[Msg], Any]:
        capability = self._capabilities[pattern]

        async def on_request(msg: Msg) -> None:
            try:
                request = m.BidRequest.decode(msg.data)
            except ValidationError:
                log.warning("bid_request_malformed", subject=msg.subject)
                return
            if self._serving(request.capability) is not capability or not self._suits(request, capability):
                return
            reply = self._bid(request, capability)
            await self._bus.publish(f"{msg.reply}.{self.id}", reply.encode())

        return on_request

    def _serving(self, name: str) -> _Capability | None:
        """The most exact of the declared capabilities that covers `name`."""
        exact = self._capabilities.get(name)
        if exact is not None:
            return exact
        found = [c for pattern, c in self._capabilities.items() if m.matches(pattern, name)]
        return max(found, key=lambda c: len(c.card.pattern), default=None)

    def _suits(self, request: m.BidRequest, capability: _Capability) -> bool:
        if request.contract is not None and request.contract != capability.card.contract:
            return False
        if not (request.require or request.exclude):
            return True
        facts = (self.id, self._owner, capability.card.model, self._labels)
        return all(request.require.holds(*facts)) and not any(request.exclude.holds(*facts))

    def _bid(self, request: m.BidRequest, capability: _Capability) -> m.Bid | m.Refusal:
        if self._draining:
            return m.Refusal(auction=request.auction, worker=self.id, reason="draining")
        if len(self._running) >= self.slots:
            return m.Refusal(auction=request.auction, worker=self.id, reason="busy")
        price = capability.quote(request.features)
        if price is None:
            return m.Refusal(auction=request.auction, worker=self.id, reason="cannot_price")
        p50_ms, p90_ms = capability.expect(request.features)
        return m.Bid.model_construct(
            auction=request.auction, worker=self.id, price=price, p50_ms=p50_ms, p90_ms=max(p90_ms, p50_ms)
        )

    # ------------------------------------------------------------------ attempts

    async def _on_award(self, msg: Msg) -> None:
        try:
            award = m.Award.decode(msg.data)
        except ValidationError:
            log.warning("award_malformed", subject=msg.subject)
            return
        key = (award.tenant, award.task, award.attempt)
        reply: m.Confirm | m.Decline = m.Confirm(worker=self.id)
        if key not in self._running:  # else the same award again: its Confirm was lost
            capability = self._serving(award.capability)
            if self._draining:
                reply = m.Decline(worker=self.id, reason="draining")
            elif capability is None or check(capability.check_input, award.input) is not None:
                reply = m.Decline(worker=self.id, reason="unsupported")
            elif len(self._running) >= self.slots:
                reply = m.Decline(worker=self.id, reason="busy")
            else:
                self._begin(key, award, capability)
        await self._bus.publish(msg.reply, reply.encode())

    def _begin(self, key: tuple[str, str, int], award: m.Award, capability: _Capability) -> None:
        for (tenant, task, attempt), run in self._running.items():
            if (tenant, task) == key[:2] and attempt < award.attempt:
                run.job.cancel()  # superseded: only the newest attempt counts
        self._idle.clear()
        job = asyncio.get_running_loop().create_task(self._attempt(key, award, capability))
        self._running[key] = _Run(award, job, time.monotonic())
        self._jobs.add(job)
        job.add_done_callback(partial(self._ended, key))

    def _ended(self, key: tuple[str, str, int], job: asyncio.Task[None]) -> None:
        """An attempt is over, and its end has been told."""
        if (run := self._running.get(key)) is not None and run.job is job:
            del self._running[key]  # it was cancelled before it began, so it has not done this itself
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("attempt_failed", error=repr(error), exc_info=error)

    async def _attempt(self, key: tuple[str, str, int], award: m.Award, capability: _Capability) -> None:
        started = time.monotonic()
        number, was_full = award.from_number, False
        subject = subjects.result(award.tenant, award.task, self.id, award.attempt)
        context = Context(
            task=award.task,
            tenant=award.tenant,
            attempt=award.attempt,
            capability=award.capability,
            price=award.price,
            worker=self.id,
            _deadline=started + award.remaining_ms / 1e3,
            _client=self._client,
        )

        def stamp() -> dict[str, Any]:
            return {"task": award.task, "attempt": award.attempt, "worker": self.id, "number": number + 1}

        async def send(event: m.Message) -> None:
            nonlocal number
            await self._bus.publish(subject, event.encode())
            number += 1  # only now: an event that could not be sent must leave no gap

        async def send_text(text: str) -> None:
            await send(m.Delta.model_construct(**stamp(), text=text))

        deltas = DeltaBuffer(send_text)
        output: dict[str, Any] | None = None
        error: m.ErrorInfo | None = None
        retryable = False
        limit = asyncio.timeout(award.remaining_ms / 1e3)
        try:
            async with limit:
                async for said in say(capability.handler, context, award.input, self._threads):
                    if isinstance(said, str):
                        await deltas.add(said)
                    elif isinstance(said, Progress):
                        await deltas.flush()
                        try:
                            event = m.Progress(**stamp(), fraction=said.fraction, note=said.note)
                        except ValidationError as invalid:
                            raise BadOutput(f"{said} is no progress: {first_error(invalid)}") from None
                        await send(event)
                    else:
                        output = said
            await deltas.flush()
            assert output is not None
            self._check(output, capability)
        except Reject as reject:
            error, retryable = _error(reject.wire_code, reject.message), reject.retryable
        except (Exception, SystemExit, asyncio.CancelledError) as failure:
            if isinstance(failure, asyncio.CancelledError) and self._running[key].job.cancelling():
                log.info("attempt_cancelled", task=award.task, attempt=award.attempt)
                return
            if limit.expired():
                error = m.ErrorInfo(code="expired", message="the worker ran out of time")
            else:
                log.warning("handler_failed", task=award.task, capability=award.capability, exc_info=True)
                error, retryable = _error("worker_error", f"{type(failure).__name__}: {failure}"), True
        finally:
            deltas.close()
            was_full = len(self._running) >= self.slots
            self._running.pop(key, None)
        run_ms = (time.monotonic() - started) * 1e3
        usage = context.usage.model_copy(update={"run_ms": run_ms})
        digest = None
        if error is None and output is not None:
            capability.times.learn(run_ms)
            digest = m.digest_of(output)
            last: m.Output | m.Failure = m.Output.model_construct(**stamp(), output=output, digest=digest, usage=usage)
        else:
            assert error is not None
            last = m.Failure(**stamp(), error=error, usage=usage)
        done = m.Done.model_construct(
            task=award.task,
            tenant=award.tenant,
            worker=self.id,
            attempt=award.attempt,
            number=last.number,
            output=output if error is None else None,
            digest=digest,
            error=error,
            retryable=retryable,
            usage=usage,
        )
        await self._store(subject, last)
        done_subject = subjects.done(award.negotiator, award.task, self.id, award.attempt)
        await self._bus.publish(done_subject, done.encode())
        if was_full:
            await self._offer()  # it was full: whoever waits may come

    def _check(self, output: dict[str, Any], capability: _Capability) -> None:
        violation = check(capability.check_output, output)
        if violation is not None:
            raise BadOutput(f"the output breaks the contract: {violation}")
        size = len(to_json(output))
        if size > self._settings.max_body_bytes:
            raise Reject(
                f"the output of {size} bytes is above the limit of {self._settings.max_body_bytes}",
                code=TooLarge.code,
            )

    async def _store(self, subject: str, event: m.Message) -> None:
        """Publish an attempt's last event; it is repeated until the stream has it, but nobody waits for that."""
        self._token += 1
        token, body = str(self._token), event.encode()
        self._unstored[token] = (subject, body, time.monotonic())
        await self._publish_last(token, subject, body)

    async def _publish_last(self, token: str, subject: str, body: bytes) -> None:
        await self._bus.publish(subject, body, reply=f"{self._inbox}.{token}", headers={"Nats-Msg-Id": subject})

    async def _on_stored(self, msg: Msg) -> None:
        if stored_sequence(msg):
            self._unstored.pop(msg.subject.rsplit(".", 1)[1], None)


def _error(code: str, message: str) -> m.ErrorInfo:
    """What a handler raised, made fit to travel."""
    text = message.encode(errors="replace").decode()[:4096]
    try:
        return m.ErrorInfo(code=code, message=text)
    except ValidationError:
        return m.ErrorInfo(code="worker_error", message=f"{code}: {text}"[:4096])


def worker_app(
    *workers: Worker,
    before: Callable[[], Awaitable[None]] | None = None,
    after: Callable[[], Awaitable[None]] | None = None,
) -> FastStream:
    """Workers of one process as one FastStream app: each has its own connection, id and bids.

    `before` runs before any joins (load a model), `after` once all have left.
    """
    app = FastStream(*(worker.broker for worker in workers), specification=specification("worker"))

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
