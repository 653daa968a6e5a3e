"""Exchange: one HTTP request that is answered by a task. If its client goes away, the task is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from modelnet.errors import ModelnetError
from modelnet.handle import TaskHandle
from modelnet.messages import Final

from .directory import Meant
from .keys import Guest
from .lobby import Lobby
from .refusal import Refusal, refusal_of, unsuccessful

__all__ = ["Exchange", "Terms", "answered_by"]

log = structlog.get_logger("gateway")

M = TypeVar("M", bound=BaseModel)

_JSON = (b"content-type", b"application/json")
_SSE = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep events back
)
KEEPALIVE_S = 15.0
"""A stream that has nothing to say for so long says that it lives, so that nothing on the way takes it for dead."""


class Terms(BaseModel):
    """`modelnet` in a request's body: what OpenAI's API has no word for. Meanings as of `Client.submit`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    budget: int | None = None
    value: int | None = None
    value_of_time: float | None = None
    min_quality: float | None = None
    deadline_s: float | None = None
    priority: int | None = None
    strategy: str | dict[str, Any] | None = None
    require: dict[str, Any] | None = None
    exclude: dict[str, Any] | None = None
    contract: str | None = None
    on_disconnect: str | None = Field(default=None, pattern="^(cancel|keep)$")


_HEADERS: Mapping[str, Callable[[str], Any]] = {
    "budget": int,
    "value": int,
    "deadline_s": float,
    "priority": int,
    "strategy": str,
    "on_disconnect": str,
}
"""Terms that may also be said in headers: `modelnet-budget`, `modelnet-deadline-s`, …"""


class ClientGone(Exception):
    """Raised inside an exchange once its client has closed the connection."""


class Exchange:
    """What an endpoint is given."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.lobby: Lobby = scope["state"]["lobby"]
        self.guest: Guest = scope["state"]["guest"]
        self.path: str = scope["path"]
        self.headers = Headers(scope=scope)
        self.begun = False
        """Whether the answer's status is out."""
        self._receive, self._send = receive, send
        self._tasks: list[TaskHandle] = []
        self._keep = False
        self._gone = False
        self._said = 0.0
        self._alive: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ what is asked

    async def read(self, kind: type[M]) -> M:
        """The body. Raises `Refusal` 400 if it is no such thing."""
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        try:
            return kind.model_validate_json(parts[0] if len(parts) == 1 else b"".join(parts))
        except ValidationError as error:
            raise _invalid(error) from None

    def _terms(self, said: Terms | None) -> Terms:
        found: dict[str, Any] = {}
        for name, kind in _HEADERS.items():
            header = f"modelnet-{name.replace('_', '-')}"
            text = self.headers.get(header)
            if text is not None:
                try:
                    found[name] = kind(text)
                except ValueError:
                    raise Refusal(400, "malformed", f"{header}: {text!r} is no number", param=header) from None
        if not found:
            return said or Terms()
        try:
            return Terms.model_validate({**found, **(said.model_dump(exclude_none=True) if said else {})})
        except ValidationError as error:
            raise _invalid(error) from None

    # ------------------------------------------------------------------ its tasks

    async def submit(
        self, meant: Meant, input: Mapping[str, Any], said: Terms | None, *, part: int = 0, follow: bool = True
    ) -> TaskHandle:
        """Publish a task for whoever asks. `part`: which of the request's tasks it is. Raises `Refusal`.

        Of a request with an Idempotency-Key the task's id follows from that, so that a repetition finds the same task;
        and it is not cancelled when the client goes away, who may come back for it.
        """
        terms = self._terms(said)
        key = self.headers.get("idempotency-key")
        self._keep = (terms.on_disconnect or ("keep" if key else "cancel")) == "keep"
        require = {**(meant.require or {}), **(terms.require or {})}
        options = terms.model_dump(exclude_none=True, exclude={"on_disconnect", "require"})
        task = await self.lobby.net.submit(
            meant.capability,
            input,
            tenant=self.guest.tenant,
            require=require or None,
            id=_task_id(self.path, key, part) if key else None,
            cancel_on_disconnect=not self._keep,
            follow=follow,
            **options,
        )
        self._tasks.append(task)
        return task

    async def completed(self, task: TaskHandle) -> Final:
        """A task's Final. Raises `Refusal` if it did not complete."""
        final = await task.final()
        self.count(final)
        if final.status != "completed":
            raise unsuccessful(final)
        return final

    def count(self, final: Final) -> None:
        """What a task has used, against its tenant's limits."""
        if self.guest.counted and final.usage is not None:
            self.lobby.spawn(self.guest.used(final.usage.prompt_tokens + final.usage.completion_tokens))

    # ------------------------------------------------------------------ what is answered

    async def answer(self, body: bytes, final: Final | None = None, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer, as JSON."""
        said = [_JSON, (b"content-length", str(len(body)).encode())]
        if final is not None:
            said += _names(final)
        await self._begin(200, [*said, *_raw(headers or {})])
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self, task: TaskHandle) -> None:
        """Status and headers of a stream of events, which from now on says in each silence that it lives."""
        await self._begin(200, [*_SSE, *_raw({"modelnet-task": task.id, "x-request-id": task.id})])
        self._said = time.monotonic()
        self._alive = asyncio.create_task(self._keep_alive())

    async def say(self, chunk: bytes) -> None:
        """More of a stream; it waits for a client that reads slowly."""
        self._said = time.monotonic()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(max(self._said + KEEPALIVE_S - time.monotonic(), 0.1))
            if time.monotonic() >= self._said + KEEPALIVE_S:
                await self.say(b": still working\n\n")

    async def end_stream(self, last: bytes = b"") -> None:
        """The stream's end."""
        if self._alive is not None:
            self._alive.cancel()
        await self._send({"type": "http.response.body", "body": last})

    async def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def refuse(self, refusal: Refusal) -> None:
        """An error, as the answer or as the end of a stream that has begun."""
        if self.begun:
            await self.end_stream(b"data: " + refusal.body() + b"\n\ndata: [DONE]\n\n")
            return
        body = refusal.body()
        headers = [_JSON, (b"content-length", str(len(body)).encode()), *_raw(refusal.headers)]
        await self._begin(refusal.status, headers)
        await self._send({"type": "http.response.body", "body": body})

    # ------------------------------------------------------------------ a client that goes away

    @contextlib.asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Ends what is inside with `ClientGone` once the client has closed the connection."""
        here = asyncio.current_task()
        assert here is not None

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            here.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not self._gone or here.uncancel():
                raise
            raise ClientGone from None
        finally:
            watcher.cancel()

    def give_up(self) -> None:
        """Say nothing more, and cancel its tasks, unless they are to be kept."""
        if self._alive is not None:
            self._alive.cancel()
        if not self._keep:
            for task in self._tasks:
                self.lobby.spawn(task.cancel())


def answered_by(serve: Callable[[Exchange], Awaitable[None]]) -> type[Any]:
    """An ASGI endpoint for a route, of a function that serves one exchange."""

    class Endpoint:
        def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
            self._exchange = Exchange(scope, receive, send)

        def __await__(self) -> Any:
            return _serve(self._exchange, serve).__await__()

    return Endpoint


async def _serve(exchange: Exchange, serve: Callable[[Exchange], Awaitable[None]]) -> None:
    ended = False
    try:
        await serve(exchange)
        ended = True
    except ClientGone:
        log.debug("client_gone", path=exchange.path)
    except Refusal as refusal:
        await exchange.refuse(refusal)
    except ModelnetError as error:
        await exchange.refuse(refusal_of(error))
    except Exception as error:
        log.error("request_failed", path=exchange.path, error=repr(error), exc_info=error)
        await exchange.refuse(Refusal(500, "internal", "the gateway failed at this request; its log says why"))
    finally:
        if not ended:
            exchange.give_up()


def _task_id(path: str, key: str, part: int) -> str:
    digest = hashlib.sha256(f"{path}\n{key}".encode()).hexdigest()[:32]
    return f"once-{digest}" + (f"-{part}" if part else "")


def _names(final: Final) -> list[tuple[bytes, bytes]]:
    """Headers that say who answered, and for how much."""
    said = {"x-request-id": final.task, "modelnet-task": final.task, "modelnet-attempts": str(final.attempts)}
    if final.worker is not None:
        said["modelnet-worker"] = final.worker
    if final.price is not None:
        said["modelnet-price"] = str(final.price)
    return _raw(said)


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _invalid(error: ValidationError) -> Refusal:
    """What is wrong with a body, in one line."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return Refusal(400, "invalid_json", f"the body is no JSON: {first['msg']}")
    return Refusal(400, "invalid_value", f"{where}: {first['msg']}" if where else first["msg"], param=where or None)
