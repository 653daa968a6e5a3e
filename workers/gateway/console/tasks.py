"""Tasks on the console: the record of one, its stream as text, submit, cancel, and the contracts that forms follow."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from modelnet.errors import ModelnetError
from modelnet.handle import TaskHandle
from modelnet.messages import Delta, Final, Output
from modelnet.reader import StreamEvent
from modelnet.telling import trace_object
from workers.gateway.lobby import lobby_of, tenant_of
from workers.gateway.refusal import Refusal

from .answers import answer, body_of
from .audience import audience_of

__all__ = ["cancel", "contracts", "me", "record", "stream", "submit"]

_GATHER_S = 0.1
"""Text of so long a time goes out together."""

_MOST_SHOWN = 64 * 1024
"""Bytes of an output that are sent to the page; the rest is said to be there."""

_OPTIONS = ("budget", "deadline_s", "priority", "value", "min_quality", "strategy", "require", "exclude", "contract")


async def me(request: Request) -> Response:
    """Who is signed in."""
    audience = audience_of(request)
    keys = lobby_of(request).config.gateway_keys_required
    return answer({"tenant": audience.tenant, "operator": audience.operator, "keys": keys})


async def contracts(request: Request) -> Response:
    """Every contract ever announced, and how many workers serve it now."""
    net = lobby_of(request).net
    found, live = await net.contracts(), await net.workers()
    serving = Counter((card.pattern, card.contract) for one in live for card in one.card.capabilities)
    return answer(
        [
            {
                "capability": one.capability,
                "description": one.description,
                "workers": serving[one.capability, one.digest],
                "contract": one.digest,
                "input": one.input,
                "output": one.output,
            }
            for one in found
        ]
    )


async def record(request: Request) -> Response:
    """All that is on record of a task, and of those it was made of."""
    task = _task(request)
    found = await lobby_of(request).net.trace(task.id, tenant=task.tenant)
    return answer({"tenant": task.tenant, **_shortened(trace_object(found))})


async def stream(request: Request) -> Response:
    """A task's stream from its start: server-sent events `text`, `reset`, `news` and `final`."""
    events = _told(_task(request), lobby_of(request).closing)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def submit(request: Request) -> Response:
    """Publish a task: `{"capability": …, "input": {…}}` and `budget`, `deadline_s`, `strategy`, …"""
    given = await body_of(request)
    capability, value = given.pop("capability", None), given.pop("input", {})
    if not isinstance(capability, str) or not isinstance(value, dict):
        raise Refusal(400, "malformed", "say capability, a string, and input, an object")
    if unknown := sorted(set(given) - set(_OPTIONS)):
        raise Refusal(400, "malformed", f"no option {unknown[0]!r}: there are {', '.join(_OPTIONS)}")
    options = {key: item for key, item in given.items() if item is not None}
    net, tenant = lobby_of(request).net, tenant_of(request)
    task = await net.submit(capability, value, tenant=tenant, follow=False, **options)
    return answer({"task": task.id, "tenant": tenant})


async def cancel(request: Request) -> Response:
    """Ask for a task to be cancelled."""
    await body_of(request)
    task = _task(request)
    return answer({"task": task.id, "cancelled": await task.cancel()})


def _task(request: Request) -> TaskHandle:
    """The task that the path names, if it is for whoever asks."""
    tenant, task = request.path_params["tenant"], request.path_params["task"]
    if not audience_of(request).may_see(tenant):
        raise Refusal(404, "unknown_task", f"no task {task[:64]!r} of yours")
    return lobby_of(request).net.task(task, tenant=tenant)


async def _told(task: TaskHandle, closing: asyncio.Event) -> AsyncIterator[bytes]:
    events = task.stream()
    text: list[str] = []
    coming: asyncio.Future[StreamEvent] | None = None
    try:
        while not closing.is_set():
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming}, timeout=_GATHER_S if text else 5.0)
            if not coming.done():
                yield _said("text", {"text": "".join(text)}) if text else b": still here\n\n"
                text.clear()
                continue
            event, coming = coming.result(), None
            if isinstance(event, Delta):
                text.append(event.text)
                if sum(map(len, text)) < _MOST_SHOWN:
                    continue
            if text:
                yield _said("text", {"text": "".join(text)})
                text.clear()
            if isinstance(event, Final):
                yield _said("final", _shortened(event.to_dict()))
                return
            if event.kind == "reset":
                yield _said("reset", {"text": task.text})
            elif not isinstance(event, Delta | Output):
                yield _said("news", event.to_dict())
    except ModelnetError as error:
        yield _said("failed", {"code": error.wire_code, "message": error.message})
    finally:
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, ModelnetError, StopAsyncIteration):
                await coming
        await events.aclose()


def _said(event: str, data: dict[str, Any]) -> bytes:
    return b"event: " + event.encode() + b"\ndata: " + to_json(data) + b"\n\n"


def _shortened(told: dict[str, Any]) -> dict[str, Any]:
    """A record or a Final without outputs that are more than a page should show."""
    if told.get("kind") == "final":
        size = len(to_json(told.get("output")))
        return told if size <= _MOST_SHOWN else {**told, "output": None, "output_bytes": size}
    parts = [_shortened(part) for part in told["parts"]]
    return {**told, "final": _shortened(told["final"]) if told["final"] else None, "parts": parts}
