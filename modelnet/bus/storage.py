"""Whether the bus stores what it is given: found out by storing something, and said in words."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import nats.errors
from nats.aio.client import Client

from modelnet.errors import BusFull, ConnectionFailed, ModelnetError

from .streams import FULL, PROBED, probe_subject

__all__ = ["check_storage", "store"]

TIMEOUT_S = 2.0
_QUIET_S = 1.0
_WAITS_S = (_QUIET_S, _QUIET_S, 5.0, 5.0)
"""Patience with each try to store a message: a stream that stores nothing during the second is found out then."""


async def store(nc: Client, stream: str, subject: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Publish to a stream until it has acknowledged; the acknowledgement. The message must bear coming twice.

    Raises `BusFull`: it was refused. `ConnectionFailed` with the code `no_jetstream` or `no_server`: nobody took it;
    with `not_stored`, or with `no_server` after a silence: it is not stored, or only late.
    """
    before: int | None = None
    for number, timeout_s in enumerate(_WAITS_S, 1):
        try:
            ack = await nc.request(subject, body, timeout=timeout_s, headers=dict(headers))
        except nats.errors.NoRespondersError:
            raise await _why_unserved(nc) from None
        except (nats.errors.TimeoutError, nats.errors.OutboundBufferLimitError):
            if number == len(_WAITS_S):
                break
            # A server that could not write says nothing at all. One that is slow stores what others publish.
            last, before = before, await _sequence_now(nc, stream)
            if before is not None and before == last:
                raise ConnectionFailed(
                    f"{_named(stream)} stores nothing (look at the server's log for a full disk): what was published "
                    "is not accepted, or only late; repeating it with the same id is harmless",
                    code="not_stored",
                ) from None
            continue
        answer: dict[str, Any] = json.loads(ack.data)
        if "error" in answer:
            raise _why_refused(stream, answer["error"])
        return answer
    raise ConnectionFailed(f"{_named(stream)} does not answer: what was published may not be accepted")


def _named(stream: str) -> str:
    return {"TASKS": "the task stream", "BODIES": "the object store"}.get(stream, f"stream {stream}")


async def check_storage(nc: Client, *, timeout_s: float = TIMEOUT_S) -> None:
    """Store a message in each stream that no task can do without, and remove it again.

    A look at the streams would not do: nats-server goes on answering those when a write has failed.

    Raises `BusFull`, or `ConnectionFailed` with the code `no_jetstream`, `not_stored` or `no_server`.
    """
    if not nc.is_connected:
        raise ConnectionFailed("the connection to the server is lost")
    async with contextlib.AsyncExitStack() as stack:
        for stream in PROBED:
            stack.push_async_callback(_clear, nc, stream, timeout_s)
        outcomes = await asyncio.gather(*(_store(nc, stream, timeout_s) for stream in PROBED), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


async def _store(nc: Client, stream: str, timeout_s: float) -> None:
    try:
        reply = await nc.request(probe_subject(stream), b"", timeout=timeout_s)
    except nats.errors.NoRespondersError:
        raise await _why_unserved(nc) from None
    except nats.errors.Error:
        raise ConnectionFailed(
            f"stream {stream} stored nothing within {timeout_s:g} s (look at the server's log for a full disk)",
            code="not_stored",
        ) from None
    error = json.loads(reply.data).get("error")
    if error is not None:
        raise _why_refused(stream, error)


async def _clear(nc: Client, stream: str, timeout_s: float) -> None:
    """Whatever earlier probes left there, too: one may have been cut off."""
    body = json.dumps({"filter": probe_subject(stream)}).encode()
    with contextlib.suppress(nats.errors.Error):
        await nc.request(f"$JS.API.STREAM.PURGE.{stream}", body, timeout=timeout_s)


async def _sequence_now(nc: Client, stream: str) -> int | None:
    """Sequence of the stream's last message; None if it cannot be told now."""
    try:
        reply = await nc.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=_QUIET_S)
        return int(json.loads(reply.data)["state"]["last_seq"])
    except (nats.errors.Error, KeyError, ValueError):
        return None


async def _why_unserved(nc: Client) -> ConnectionFailed:
    """The error of a publisher whom no stream has heard."""
    try:
        await nc.request("$JS.API.INFO", b"", timeout=TIMEOUT_S)
    except nats.errors.NoRespondersError:
        return ConnectionFailed(
            "the server answers, but JetStream is not enabled on it: nothing is accepted until it is started with -js",
            code="no_jetstream",
        )
    except nats.errors.Error:
        pass
    return ConnectionFailed("this server does not carry a modelnet network (start a negotiator, or `modelnet up`)")


def _why_refused(stream: str, error: dict[str, Any]) -> ModelnetError:
    """The error of a publisher whom a stream has refused; `error` is the server's own."""
    if error.get("err_code") in FULL or "maximum" in error.get("description", ""):
        return BusFull(f"{_named(stream)} is full: {error.get('description')}; try again later")
    return ConnectionFailed(f"{_named(stream)} refuses: {error.get('description')}")
