"""One attempt at work: the handler runs, what it says is published, and how it ended is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.attempt import BadOutput, Progress, say
from modelnet.bus import subjects
from modelnet.bus.bodies import Bodies
from modelnet.bus.journal import first_error
from modelnet.bus.outbox import Outbox
from modelnet.capability import Made, Served
from modelnet.client import Client
from modelnet.deltas import DeltaBuffer, Piece
from modelnet.errors import ModelnetError, Reject, TooLarge

__all__ = ["Context", "Execution"]

log = structlog.get_logger("worker")

_EXPIRED = m.ErrorInfo(code="expired", message="the worker ran out of time")
_LEAVING = "the worker leaves the network"


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
    resume: m.Resume | None
    """What earlier attempts streamed, if the handler is to go on from there; only for one declared to `continue`."""
    _deadline: float
    _client: Client
    bid: Made | None = None
    """What the worker's bid was made of; None where there was none, as for a standing offer."""
    usage: m.Usage = field(default_factory=m.Usage)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline."""
        return max(self._deadline - time.monotonic(), 0.0)

    def count(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, cached_tokens: int = 0) -> None:
        """Add to what the attempt has used. `cached_tokens`: those of the prompt that needed no computing."""
        used = self.usage
        self.usage = m.Usage(
            prompt_tokens=used.prompt_tokens + prompt_tokens,
            completion_tokens=used.completion_tokens + completion_tokens,
            cached_tokens=used.cached_tokens + cached_tokens,
        )

    async def call(self, capability: str, input: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Have another worker do something, until this task's own deadline at most: the output, or `TaskError`."""
        options.setdefault("deadline_s", max(self.remaining_s, 0.001))
        options.setdefault("cancel_on_disconnect", True)
        if self.tenant == self._client.settings.tenant:
            options.setdefault("parent", self.task)
        task = await self._client.submit(capability, input, **options)
        try:
            final = await task.result()
        except asyncio.CancelledError:  # nobody will read the answer: the child's work ends with this one's
            with contextlib.suppress(ModelnetError):
                await task.cancel()
            raise
        return final.output or {}

    async def put(self, data: bytes, *, media_type: str = "application/octet-stream") -> dict[str, Any]:
        """Store bytes: a JSON value that stands for them in an output."""
        return await self._client.bodies.put(data, self.tenant, media_type)

    async def fetch(self, value: dict[str, Any]) -> bytes:
        """The bytes that a JSON value in the input stands for."""
        return await self._client.fetch(value)


class Execution:
    """Runs an award. `run` returns once the end is known; `tell` publishes it."""

    def __init__(
        self,
        award: m.Award,
        served: Served,
        context: Context,
        outbox: Outbox,
        bodies: Bodies,
        *,
        pool: Executor,
        crowd: Callable[[], int] = lambda: 1,
    ) -> None:
        """`crowd`: how many attempts the worker has at work."""
        self._award, self._served, self._context, self._outbox = award, served, context, outbox
        self._bodies, self._pool = bodies, pool
        self._number = award.from_number
        subject = subjects.result(award.tenant, award.task, context.worker, award.attempt)
        self._trail = outbox.open(subject)
        self._deltas = DeltaBuffer(self._send_piece, crowd)
        self._started = time.monotonic()
        self._first_ms: float | None = None
        self._last: m.Output | m.Failure | None = None
        self._leaving: str | None = None

    def _stamp(self) -> dict[str, Any]:
        award = self._award
        return {
            "task": award.task,
            "attempt": award.attempt,
            "worker": self._context.worker,
            "auction": award.auction,
            "number": self._number + 1,
        }

    async def _send(self, event: m.Message) -> None:
        await self._outbox.send(self._trail, event.encode())
        self._number += 1

    async def _send_piece(self, piece: Piece) -> None:
        event = m.Delta.model_construct(
            **self._stamp(),
            text=str(piece),
            tokens=piece.tokens,
            index=piece.answer,
            logprobs=piece.logprobs,
            tool_calls=piece.tool_calls,
            restarts=piece.restarts,
        )
        await self._send(event)

    async def _send_progress(self, said: Progress) -> None:
        await self._deltas.flush()
        try:
            event = m.Progress(**self._stamp(), fraction=said.fraction, note=said.note)
        except ValidationError as invalid:
            raise BadOutput(f"{said} is no progress: {first_error(invalid)}") from None
        await self._send(event)

    async def _input(self) -> dict[str, Any]:
        """The input; if it is stored elsewhere, fetched and checked now."""
        reference = self._award.input_ref
        if reference is None:
            return self._award.input
        value = await self._bodies.fetch(reference)
        self._served.require_input(value)
        return value

    def hand_on(self, job: asyncio.Task[None], why: str = _LEAVING) -> None:
        """End here, so that another can go on; nothing if the end is known already."""
        if self._last is None:
            self._leaving = why
            job.cancel()

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Run the handler to its end. Raises `CancelledError` if the attempt was `stopped`."""
        output: dict[str, Any] | None = None
        stored: m.Reference | None = None
        error, retryable = None, False
        begun = self._award.resume.text if self._award.resume else ""
        limit = asyncio.timeout(self._award.remaining_ms / 1e3)
        self._served.statistics.requests += 1
        try:
            async with limit:
                value = await self._input()
                async for said in say(self._served.handler, self._context, value, self._pool, begun):
                    if isinstance(said, str):
                        if said and self._first_ms is None:
                            self._first_ms = (time.monotonic() - self._started) * 1e3
                        await self._deltas.add(said)
                    elif isinstance(said, Progress):
                        await self._send_progress(said)
                    else:
                        output = said
            await self._deltas.flush()
            assert output is not None
            self._served.require_output(output)
            stored = await self._bodies.store(output, self._award.tenant, self._award.task, self._context.remaining_s)
        except ModelnetError as refused:
            # A store that is full or away may be neither for another worker, or later.
            error = _error(refused.wire_code, refused.message)
            if error.code == m.HANDED_ON:
                await self._deltas.flush()  # what was said stands: another goes on behind it
            retryable = refused.retryable if isinstance(refused, Reject) else not isinstance(refused, TooLarge)
        except (Exception, SystemExit, asyncio.CancelledError) as failure:
            if self._leaving is not None:
                if (job := asyncio.current_task()) is not None:
                    job.uncancel()
                await self._deltas.flush()
                error, retryable = _error(m.HANDED_ON, self._leaving), True
            elif isinstance(failure, asyncio.CancelledError) and stopped():
                log.info("attempt_cancelled", task=self._award.task, attempt=self._award.attempt)
                self._outbox.drop(self._trail)
                self._served.statistics.count("cancelled")
                self._served.statistics.ended((time.monotonic() - self._started) * 1e3)
                raise
            elif limit.expired():
                error = _EXPIRED
            else:
                log.warning("handler_failed", task=self._award.task, capability=self._award.capability, exc_info=True)
                error, retryable = _error("worker_error", f"{type(failure).__name__}: {failure}"), True
        finally:
            self._deltas.close()
        run_ms = (time.monotonic() - self._started) * 1e3
        usage = self._context.usage.model_copy(update={"run_ms": run_ms, "first_ms": self._first_ms})
        self._served.statistics.ended(run_ms, None if error is None else f"{error.code}: {error.message}")
        if error is None and output is not None:
            self._served.learn(self._context.bid, run_ms, self._first_ms)
            self._last = m.Output.model_construct(
                **self._stamp(),
                output=output if stored is None else {},
                output_ref=stored,
                digest=m.digest_of(output),
                usage=usage,
            )
        else:
            assert error is not None
            self._last = m.Failure(**self._stamp(), error=error, retryable=retryable, usage=usage)

    def give_up(self, why: Literal["expired", "leaving"]) -> None:
        """Instead of `run`: the attempt ends before it began."""
        error, retryable = (_EXPIRED, False) if why == "expired" else (_error(m.HANDED_ON, _LEAVING), True)
        self._served.statistics.requests += 1
        self._served.statistics.ended(0.0, f"{error.code}: {error.message}")
        self._last = m.Failure(**self._stamp(), error=error, retryable=retryable)

    async def tell(self) -> None:
        """Publish the last event."""
        assert self._last is not None
        await self._outbox.close(self._trail, self._last.encode())

    def done(self) -> m.Done:
        """The notice for the negotiator."""
        assert self._last is not None
        return m.Done.of(self._last, self._award.tenant)


def _error(code: str, message: str) -> m.ErrorInfo:
    """What a handler raised, made fit to travel."""
    text = message.encode(errors="replace").decode()[:4096]
    try:
        return m.ErrorInfo(code=code, message=text)
    except ValidationError:
        return m.ErrorInfo(code="worker_error", message=f"{code}: {text}"[:4096])
