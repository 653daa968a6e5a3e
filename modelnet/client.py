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
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet import history
from modelnet.bus import journal, objects, subjects
from modelnet.bus.bodies import Bodies
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.connection import Connection, listen
from modelnet.bus.connection import close as close_bus
from modelnet.bus.connection import connect as connect_bus
from modelnet.bus.storage import store
from modelnet.errors import (
    ConnectionFailed,
    MalformedInput,
    TooLarge,
    UnknownWorker,
)
from modelnet.following import Listener, journal_of
from modelnet.handle import TaskHandle
from modelnet.history import TaskSummary, TaskTrace
from modelnet.messages import (
    Beat,
    CancelAsked,
    Contract,
    Drain,
    Final,
    RollCall,
    Selector,
    Task,
    Transcript,
    WorkerCard,
    new_id,
)
from modelnet.settings import Settings, settings

__all__ = ["Client", "LiveWorker", "connect"]

_DRAIN_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that answered the roll call."""

    card: WorkerCard
    beat: Beat


class Client:
    """A connection to a modelnet network, for people who publish tasks. Made by `connect()`."""

    def __init__(self, bus: Connection, config: Settings) -> None:
        self.bus = bus
        self.settings = config
        self.catalogue = Catalogue(bus)
        self.bodies = Bodies(bus, config)
        self.listener = Listener(bus)
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
                id=id or self.listener.new_id(),
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
        live = await self.listener.follow(task.tenant, task.id) if follow else None
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
            entries = await journal_of(self.bus, tenant, id, known=False)
            if any(isinstance(entry, Final) for _, entry in entries):
                return False
            if any(isinstance(entry, CancelAsked) for _, entry in entries):
                return True
            expected = entries[-1][0] if entries else 0
            if await journal.append(self.bus, tenant, id, "cancel", CancelAsked(task=id), expected):
                return True

    async def workers(self, *, patience_s: float = 1.0) -> list[LiveWorker]:
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
        return await history.tasks(self.bus, tenant or self.settings.tenant, since_s)

    async def trace(self, id: str, *, tenant: str | None = None) -> TaskTrace:
        """Journal, auctions and attempts of a task. Raises `UnknownTask`."""
        return await history.trace(self.bus, tenant or self.settings.tenant, id)

    async def transcripts(
        self, id: str | None = None, *, since_s: float | None = None, tenant: str | None = None
    ) -> list[tuple[float, Transcript]]:
        """Auctions of one task, or of all tasks of a tenant, each with when it was stored; those of the last `since_s`.

        Those of a task's parts are among its own. Raises `UnknownTask` for a task that no auction was held for, or
        whose transcripts are gone.
        """
        return await history.transcripts(self.bus, tenant or self.settings.tenant, id, since_s)

    async def finals(
        self, id: str | None = None, *, since_s: float | None = None, tenant: str | None = None
    ) -> dict[str, Final]:
        """The Final of one task, or of all of a tenant that ended in the last `since_s`, by task."""
        return await history.finals(self.bus, tenant or self.settings.tenant, id, since_s)

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
