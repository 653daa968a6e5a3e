"""The client: publish tasks, follow their streams, look at the network.

async with modelnet.connect() as net:
    task = await net.submit("normalize.date.de", {"text": "dritter März zweitausendeinundzwanzig"}, budget=10)
    async for event in task.stream():
        ...
    final = await task.result()
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import nats.errors
from nats.aio.client import Client as Bus
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import journal, objects, subjects
from modelnet.bus.bodies import Bodies
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.connection import close as close_bus
from modelnet.bus.connection import connect as connect_bus
from modelnet.bus.connection import listen
from modelnet.bus.replay import Stored, last_of, read_all
from modelnet.bus.storage import store
from modelnet.errors import (
    ConnectionFailed,
    MalformedInput,
    TaskCancelled,
    TaskError,
    TaskExpired,
    TaskFailed,
    TooLarge,
    UnknownTask,
    UnknownWorker,
)
from modelnet.following import Following, Live
from modelnet.messages import (
    Awarded,
    Beat,
    CancelAsked,
    Contract,
    Drain,
    Final,
    Output,
    Planned,
    Reset,
    RollCall,
    Selector,
    Task,
    Transcript,
    Waiting,
    WorkerCard,
    decode_entry,
    decode_event,
    new_id,
    part_id,
)
from modelnet.reader import Position, Reader, StreamEvent
from modelnet.settings import Settings, settings

__all__ = ["Client", "LiveWorker", "TaskHandle", "TaskSummary", "TaskTrace", "connect"]

_POLL_S = 5.0
_GAP_S = 0.05
"""First pause before what is missing is read from the stream; doubled each time that it is not there yet."""
_FILL_TRIES = 7
_DRAIN_POLL_S = 0.5

_BY_STATUS: dict[str, type[TaskError]] = {
    "failed": TaskFailed,
    "expired": TaskExpired,
    "cancelled": TaskCancelled,
}


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that answered the roll call."""

    card: WorkerCard
    beat: Beat


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One line of a list of tasks."""

    task: str
    capability: str
    status: Literal["queued", "waiting", "running", "completed", "failed", "expired", "cancelled"]
    submitted_at: float | None
    """Seconds since the epoch, if still known."""
    final: Final | None


@dataclass(slots=True)
class TaskTrace:
    """All that is on record of a task."""

    task: str
    journal: list[tuple[float, Awarded | Planned | Waiting | CancelAsked | Final]] = field(default_factory=list)
    """Entries with the server's timestamps, seconds since the epoch."""
    transcripts: list[tuple[float, Transcript]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """One per award: worker, price, how it ended, usage; abandoned ones too."""
    parts: list[TaskTrace] = field(default_factory=list)
    """Those of the tasks that it was made of."""


class TaskHandle:
    """A task on the network, whoever submitted it."""

    def __init__(self, client: Client, tenant: str, task: str, live: Live | None, *, replay: bool) -> None:
        self.id = task
        self.tenant = tenant
        self._client = client
        self._live = live
        self._replay = replay
        self._final: Final | None = None
        self._large: tuple[str, dict[str, Any]] | None = None
        """Name and value of an output that was too large for a message."""
        self._reader = Reader()

    @property
    def text(self) -> str:
        """The text so far of the stream last begun: always right, whatever was reset."""
        return self._reader.text

    async def stream(
        self, *, from_start: bool = True, resume_after: StreamEvent | Position | int | None = None
    ) -> AsyncGenerator[StreamEvent]:
        """Everything from the start, then live, without a gap or a repeat, ending with the Final.

        `resume_after`: the last event that was seen, here or elsewhere, or its place; the stream goes on behind it. A
        bare number is taken to be the first attempt's: if there were more, a `Reset` says what to forget.
        `from_start=False`: only what comes from now on. Raises `UnknownTask` for an id that nobody knows,
        `ConnectionFailed` if the server stays away.
        """
        client = self._client
        following = Following(client.bus, self.tenant, self.id, _position(resume_after))
        self._reader = reader = following.reader
        live, self._live = self._live, None
        replay = self._replay or live is None
        self._replay = True  # a second reader starts over from what is stored
        if live is None:
            live = await Live().open(client.bus, subjects.stream_of(self.tenant, self.id))
        try:
            if replay:
                for event in await following.fill():
                    if from_start or resume_after is not None or isinstance(event, Final):
                        yield self._seen(await self._whole(event))
            fills, generation, pause = 0, client.reconnects, _GAP_S
            while not reader.done:
                msg = await live.next(pause if following.incomplete else _POLL_S)
                due = following.feed(msg) if msg is not None else []
                if due:
                    pause = _GAP_S
                elif msg is None and following.incomplete:
                    fills += reader.final is not None
                    pause = min(2 * pause, _POLL_S)
                if msg is None or following.behind or live.dropped or generation != client.reconnects:
                    generation, live.dropped = client.reconnects, False
                    with contextlib.suppress(ConnectionFailed, UnknownTask):
                        due += await following.fill()
                if fills > _FILL_TRIES:
                    due += reader.give_up()
                for event in due:
                    yield self._seen(await self._whole(event))
        finally:
            await live.close()

    async def result(self) -> Final:
        """The Final, once it stands. Raises `TaskFailed`, `TaskExpired` or `TaskCancelled` if it is not completed."""
        final = await self.final()
        if final.status != "completed":
            error = final.error
            message = error.message if error and error.message else final.status
            raise _BY_STATUS[final.status](message, code=error.code if error else None)
        return final

    async def final(self) -> Final:
        """The Final, once it stands, whatever its status."""
        if self._final is None:
            async for _ in self.stream():
                pass
        assert self._final is not None
        return self._final

    async def cancel(self) -> bool:
        """Ask for the task to be cancelled. False if it had ended already; harmless any number of times."""
        return await self._client.cancel(self.id, tenant=self.tenant)

    async def _whole(self, event: StreamEvent) -> StreamEvent:
        """The event with its output, wherever that lies. Raises `ObjectLost` if it cannot be had any more."""
        if not isinstance(event, Output | Final) or event.output_ref is None:
            return event
        reference = event.output_ref
        if self._large is None or self._large[0] != reference.name:
            self._large = reference.name, await self._client.bodies.fetch(reference)
        return event.model_copy(update={"output": self._large[1]})

    def _seen(self, event: StreamEvent) -> StreamEvent:
        if isinstance(event, Final):
            self._final = event
        return event


class Client:
    """A connection to a modelnet network, for people who publish tasks. Made by `connect()`."""

    def __init__(self, bus: Bus, config: Settings) -> None:
        self.bus = bus
        self.settings = config
        self.catalogue = Catalogue(bus)
        self.bodies = Bodies(bus, config)
        self.reconnects = 0
        self._id: str | None = None

    async def submit(
        self,
        capability: str,
        input: Mapping[str, Any],
        *,
        budget: int | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        value: int | None = None,
        value_of_time: float | None = None,
        min_quality: float | None = None,
        require: Mapping[str, Any] | None = None,
        exclude: Mapping[str, Any] | None = None,
        contract: str | None = None,
        strategy: str | Mapping[str, Any] | None = None,
        parent: str | None = None,
        tenant: str | None = None,
        id: str | None = None,
        cancel_on_disconnect: bool = False,
        follow: bool = True,
    ) -> TaskHandle:
        """Publish a task and return once the stream has stored it. Money in micro-credits, times in seconds.

        `id`: one of your own makes repeating the call harmless. `require`/`exclude`: model, worker, owner (each a name
        or several), labels. `strategy`: `auto`, `auction`, `spot`, `race`, `panel` or `cascade`, or an object with its
        `kind` and `width`, `check`, `confidence`. `parent`: the task that this one is for.
        `cancel_on_disconnect`: once this client is gone for a few seconds, its task is cancelled.
        `follow=False` spares the subscription if nobody will read the stream.
        Raises `MalformedInput`, `TooLarge`, `BusFull`, `ConnectionFailed`.
        """
        fields = {
            "budget": budget,
            "deadline_s": deadline_s,
            "priority": priority,
            "value": value,
            "value_of_time": value_of_time,
            "min_quality": min_quality,
            "require": _selector(require),
            "exclude": _selector(exclude),
            "contract": contract,
            "strategy": {"kind": strategy} if isinstance(strategy, str) else strategy,
            "parent": parent,
        }
        if cancel_on_disconnect:
            fields["client"] = await self._answer_for_tasks()
        given = {key: item for key, item in fields.items() if item is not None}
        if not isinstance(input, Mapping):
            raise MalformedInput(f"the input must be a JSON object, not {type(input).__name__}")
        try:
            task = Task(
                id=id or new_id(),
                tenant=tenant or self.settings.tenant,
                capability=capability,
                input=dict(input),
                **given,
            )
            json.dumps(task.input, allow_nan=False)  # else infinity would silently become null
            body = task.encode()
        except ValidationError as error:
            raise MalformedInput(journal.first_error(error)) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise MalformedInput(f"the input is no JSON: {error}") from None
        return await self._publish(task, body, follow=follow, replay=id is not None)

    async def publish(self, task: Task, *, follow: bool = True) -> TaskHandle:
        """Publish a task that is made already; if it was published in the last two minutes, that changes nothing.

        `follow=False` spares the subscription if nobody will read the stream.
        Raises `TooLarge`, `BusFull`, `ConnectionFailed`.
        """
        return await self._publish(task, task.encode(), follow=follow, replay=True)

    async def _publish(self, task: Task, body: bytes, *, follow: bool, replay: bool) -> TaskHandle:
        stored = None
        if len(body) > self.settings.max_body_bytes:
            stored = await self.bodies.store(task.input, task.tenant, task.id, task.deadline_s)
            if stored is None:
                raise TooLarge("what the task says beside its input is too large")
            task = task.model_copy(update={"input": {}, "input_ref": stored})
            body = task.encode()
        live = await Live().open(self.bus, subjects.stream_of(task.tenant, task.id)) if follow else None
        try:
            # Tries carry the same Msg-Id: if the first one was stored, later ones are not.
            headers = {"Nats-Msg-Id": f"{task.tenant}/{task.id}"}
            ack = await store(self.bus, "TASKS", subjects.task(task), body, headers)
            if ack.get("duplicate") and stored is not None:
                await objects.remove(self.bus, stored)  # the first one's input is the task's
        except BaseException:
            if live is not None:
                await live.close()
            raise
        return TaskHandle(self, task.tenant, task.id, live, replay=replay)

    async def _answer_for_tasks(self) -> str:
        """Be there when a negotiator asks whether this client is; returns its id."""
        if self._id is None:
            self._id = new_id()

            async def here(msg: Msg) -> None:
                await self.bus.publish(msg.reply)

            await self.bus.subscribe(subjects.alive(self._id), cb=here)
        return self._id

    async def put(self, data: bytes, *, media_type: str = "application/octet-stream") -> dict[str, Any]:
        """Store bytes: the JSON value that stands for them in inputs.

        Raises `TooLarge`, `BusFull`, `ConnectionFailed`.
        """
        return await self.bodies.put(data, self.settings.tenant, media_type)

    async def fetch(self, value: Mapping[str, Any]) -> bytes:
        """The bytes that a JSON value in an output stands for. Raises `ObjectLost`, `ConnectionFailed`."""
        return await self.bodies.get(value)

    async def run(self, capability: str, input: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Submit, wait, and return the output. Options as for `submit`; raises `TaskError` if it does not complete."""
        final = await (await self.submit(capability, input, **options)).result()
        return final.output or {}

    def task(self, id: str, *, tenant: str | None = None) -> TaskHandle:
        """A task submitted before, here or elsewhere."""
        return TaskHandle(self, tenant or self.settings.tenant, id, None, replay=True)

    async def cancel(self, id: str, *, tenant: str | None = None) -> bool:
        """Put a cancel into the task's journal. False if it had ended already. Raises `UnknownTask`."""
        tenant = tenant or self.settings.tenant
        while True:
            entries = await journal.read(self.bus, tenant, id)
            if any(isinstance(entry, Final) for _, entry in entries):
                return False
            if any(isinstance(entry, CancelAsked) for _, entry in entries):
                return True
            if not entries and await last_of(self.bus, "TASKS", subjects.queued_task(tenant, id)) is None:
                if await journal.read(self.bus, tenant, id):
                    continue
                raise UnknownTask(f"no task {id!r} of tenant {tenant!r}")
            expected = entries[-1][0] if entries else 0
            if await journal.append(self.bus, tenant, id, "cancel", CancelAsked(task=id), expected):
                return True

    async def workers(self, *, patience_s: float = 0.25) -> list[LiveWorker]:
        """Everybody who answers a roll call, until nobody new has for `patience_s`."""
        cards = {card.worker: card for card in await self.catalogue.cards()}
        beats: dict[str, Beat] = {}
        async with listen(self.bus, subjects.beat("*")) as heard:
            await self.bus.publish(subjects.ROLL_CALL, RollCall().encode())
            until = time.monotonic() + patience_s
            while len(beats) < len(cards):
                try:
                    async with asyncio.timeout(until - time.monotonic()):
                        msg = await heard.get()
                except TimeoutError:
                    break
                with contextlib.suppress(ValidationError):
                    beat = Beat.decode(msg.data)
                    if beat.worker in cards and beat.worker not in beats:
                        beats[beat.worker] = beat
                        until = time.monotonic() + patience_s
        return [LiveWorker(cards[worker], beats[worker]) for worker in sorted(beats)]

    async def drain(self, worker: str) -> AsyncIterator[Beat]:
        """Ask a worker to leave, and yield its state, at once and then each second, until it is gone.

        Raises `UnknownWorker`.
        """
        subject, body = subjects.drain(worker), Drain().encode()
        first = True
        while True:
            try:
                reply = await self.bus.request(subject, body, timeout=5)
            except nats.errors.NoRespondersError:
                if first:
                    raise UnknownWorker(f"no worker {worker!r} is on the network") from None
                return
            except nats.errors.TimeoutError:
                raise ConnectionFailed(f"worker {worker!r} did not answer within 5 s") from None
            first, subject, body = False, subjects.query(worker), RollCall().encode()
            yield Beat.decode(reply.data)
            await asyncio.sleep(_DRAIN_POLL_S)

    async def contracts(self) -> list[Contract]:
        """Every contract ever announced, by capability."""
        return sorted(await self.catalogue.contracts(), key=lambda contract: contract.capability)

    async def tasks(self, *, since_s: float | None = None, tenant: str | None = None) -> list[TaskSummary]:
        """Tasks of a tenant, oldest first: those without a Final, and those whose Final came in the last `since_s`."""
        tenant = tenant or self.settings.tenant
        since = time.time() - since_s if since_s is not None else None
        found: dict[str, TaskSummary] = {}
        status: dict[str, Literal["waiting", "running"]] = {}
        async for stored in read_all(self.bus, "JOURNAL", f"journal.{tenant}.*.*", since=since):
            with contextlib.suppress(ValidationError):
                entry = decode_entry(stored.body)
                if isinstance(entry, Final):
                    at = stored.time - entry.timings.total_ms / 1e3
                    found[entry.task] = TaskSummary(entry.task, entry.capability, entry.status, at, entry)
                elif isinstance(entry, Awarded | Planned | Waiting):
                    status[entry.task] = "waiting" if isinstance(entry, Waiting) else "running"
        async for stored in read_all(self.bus, "TASKS", f"task.*.*.{tenant}.>"):
            _, _, _, _, task, capability = stored.subject.split(".", 5)
            if task not in found:
                found[task] = TaskSummary(task, capability, status.get(task, "queued"), stored.time, None)
        return sorted(found.values(), key=lambda summary: summary.submitted_at or 0.0)

    async def trace(self, id: str, *, tenant: str | None = None) -> TaskTrace:
        """Journal, auctions and attempts of a task. Raises `UnknownTask`."""
        tenant = tenant or self.settings.tenant
        trace = TaskTrace(id)
        async for stored in read_all(self.bus, "JOURNAL", subjects.journal_of(tenant, id)):
            with contextlib.suppress(ValidationError):
                trace.journal.append((stored.time, decode_entry(stored.body)))
        if not trace.journal and await last_of(self.bus, "TASKS", subjects.queued_task(tenant, id)) is None:
            raise UnknownTask(f"no task {id!r} of tenant {tenant!r}")
        async for stored in read_all(self.bus, "AUDIT", subjects.audit(tenant, id)):
            with contextlib.suppress(ValidationError):
                trace.transcripts.append((stored.time, Transcript.decode(stored.body)))
        events: dict[tuple[str, int], Stored] = {}
        async for stored in read_all(self.bus, "RESULTS", f"result.{tenant}.{id}.*.*"):
            address = subjects.ResultAddress.parse(stored.subject)
            events[address.worker, address.attempt] = stored
        trace.attempts = [_attempt(at, entry, events) for at, entry in trace.journal if isinstance(entry, Awarded)]
        if any(isinstance(entry, Planned) for _, entry in trace.journal):
            with contextlib.suppress(UnknownTask):
                while True:
                    trace.parts.append(await self.trace(part_id(id, len(trace.parts) + 1), tenant=tenant))
        return trace

    async def transcripts(
        self, id: str | None = None, *, since_s: float | None = None, tenant: str | None = None
    ) -> list[tuple[float, Transcript]]:
        """Auctions of one task, or of all tasks of a tenant, each with when it was stored; those of the last `since_s`.

        Those of a task's parts are among its own. Raises `UnknownTask` for a task that no auction was held for, or
        whose transcripts are gone.
        """
        tenant = tenant or self.settings.tenant
        since = time.time() - since_s if since_s is not None else None
        found = list[tuple[float, Transcript]]()
        async for stored in read_all(self.bus, "AUDIT", subjects.audit(tenant, id or "*"), since=since):
            with contextlib.suppress(ValidationError):
                found.append((stored.time, Transcript.decode(stored.body)))
        if id is not None and not found:
            with contextlib.suppress(UnknownTask):
                found = [one for part in (await self.trace(id, tenant=tenant)).parts for one in part.transcripts]
        if id is not None and not found:
            raise UnknownTask(f"no auction of task {id!r} of tenant {tenant!r} is on record")
        return found

    async def finals(
        self, id: str | None = None, *, since_s: float | None = None, tenant: str | None = None
    ) -> dict[str, Final]:
        """The Final of one task, or of all of a tenant that ended in the last `since_s`, by task."""
        tenant = tenant or self.settings.tenant
        since = time.time() - since_s if since_s is not None else None
        found = dict[str, Final]()
        async for stored in read_all(self.bus, "JOURNAL", subjects.journal(tenant, id or "*", "final"), since=since):
            with contextlib.suppress(ValidationError):
                final = Final.decode(stored.body)
                found[final.task] = final
        return found

    async def round_trip_ms(self) -> float:
        """Time of a ping to the server and back."""
        return await self.bus.rtt() * 1e3 if hasattr(self.bus, "rtt") else await self._flush_ms()

    async def _flush_ms(self) -> float:
        started = time.perf_counter()
        await self.bus.flush()
        return (time.perf_counter() - started) * 1e3

    async def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
            if self.bus.is_connected:
                await self.bus.flush(timeout=2)
        await close_bus(self.bus)


def _position(after: StreamEvent | Position | int | None) -> Position | None:
    """What a reader has seen whose last event was this one."""
    if after is None or isinstance(after, Position):
        return after
    if isinstance(after, int):
        return Position(1, after)
    if isinstance(after, Awarded):
        return Position(after.attempt, after.from_number)
    if isinstance(after, Planned | Waiting | Final):
        raise MalformedInput(f"a stream cannot be resumed behind its {after.kind!r} event: it has no number")
    return Position(after.attempt, after.to if isinstance(after, Reset) else after.number)


def _selector(given: Mapping[str, Any] | None) -> Selector | None:
    if given is None:
        return None
    unknown = set(given) - set(Selector.model_fields)
    if unknown:
        known = ", ".join(Selector.model_fields)
        raise MalformedInput(f"a worker cannot be chosen by {sorted(unknown)[0]!r}; known: {known}")
    try:
        return Selector(**given)
    except ValidationError as error:
        raise MalformedInput(journal.first_error(error)) from None


def _attempt(at: float, awarded: Awarded, events: Mapping[tuple[str, int], Stored]) -> dict[str, Any]:
    """How an awarded attempt went, as far as the result stream tells."""
    found: dict[str, Any] = {
        "attempt": awarded.attempt,
        "worker": awarded.worker,
        "price": awarded.price,
        "awarded_at": at,
        "outcome": "abandoned",
        "ended_at": None,
        "events": 0,
        "usage": None,
        "error": None,
    }
    stored = events.get((awarded.worker, awarded.attempt))
    if stored is not None:
        with contextlib.suppress(ValidationError):
            event = decode_event(stored.body)
            found["events"] = event.number - awarded.from_number
            if event.kind in ("output", "error"):
                found["outcome"] = event.kind
                found["ended_at"] = stored.time
                found["usage"] = event.usage.to_dict()
                found["error"] = event.error.to_dict() if event.kind == "error" else None
    return found


class connect:  # noqa: N801 - reads as a function, used as one
    """`async with modelnet.connect() as net:` or `net = await modelnet.connect()`.

    `url`: NATS servers, comma-separated; else `MODELNET_URL`, else the network that `modelnet up` runs here.
    Raises `ConnectionFailed` or `AuthenticationFailed`.
    """

    def __init__(self, url: str | None = None, *, config: Settings | None = None) -> None:
        config = config or settings()
        self._settings = config.model_copy(update={"url": url}) if url else config
        self._client: Client | None = None

    def __await__(self) -> Any:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Client:
        async def reconnected() -> None:
            if self._client is not None:
                self._client.reconnects += 1

        bus = await connect_bus(self._settings, "modelnet-client", on_reconnect=reconnected)
        self._client = Client(bus, self._settings)
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
