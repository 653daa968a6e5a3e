"""Reading stored messages back: the last of a subject, or all of them, by JetStream's direct get.

nats-py reads one message by direct get; batches (server 2.11) are asked for on the API itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from modelnet.errors import ConnectionFailed

from .clock import parse_timestamp
from .connection import listen

__all__ = ["Stored", "last_of", "message_at", "read_all"]

_BATCH = 256


class Stored(NamedTuple):
    """A message as a stream holds it."""

    subject: str
    sequence: int
    time: float
    """Seconds since the epoch, the server's clock."""
    body: bytes
    headers: dict[str, str]


async def last_of(nc: Client, stream: str, subject: str, *, timeout: float = 5.0) -> Stored | None:
    """The newest message whose subject matches, or None."""
    return await _one(nc, stream, {"last_by_subj": subject}, timeout)


async def message_at(nc: Client, stream: str, sequence: int, *, timeout: float = 5.0) -> Stored | None:
    """The message of this sequence, or None if the stream has it no more."""
    return await _one(nc, stream, {"seq": sequence}, timeout)


async def _one(nc: Client, stream: str, wanted: dict[str, Any], timeout: float) -> Stored | None:
    try:
        msg = await nc.request(f"$JS.API.DIRECT.GET.{stream}", json.dumps(wanted).encode(), timeout=timeout)
    except nats.errors.NoRespondersError:
        raise ConnectionFailed(f"stream {stream} does not answer: the network is not set up on this server") from None
    except nats.errors.TimeoutError:
        raise ConnectionFailed(f"stream {stream} did not answer within {timeout:g} s") from None
    return None if _status(msg) else _stored(msg)


async def read_all(
    nc: Client,
    stream: str,
    subject: str,
    *,
    after: int = 0,
    since: float | None = None,
    most: int | None = None,
    timeout: float = 5.0,
) -> AsyncIterator[Stored]:
    """Every message whose subject matches, in stream order, from sequence `after` + 1 or from the time `since`; `most`
    of them at most."""
    inbox = nc.new_inbox()
    batch = min(_BATCH, most or _BATCH)
    request: dict[str, Any] = {"next_by_subj": subject, "batch": batch, "max_bytes": 8 << 20}
    request |= {"seq": after + 1} if since is None else {"start_time": _rfc3339(since)}
    async with listen(nc, inbox) as heard:
        while request:
            await nc.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
            last, pending = after, 0
            while True:
                try:
                    async with asyncio.timeout(timeout):
                        msg = await heard.get()
                except TimeoutError:
                    raise ConnectionFailed(f"stream {stream} did not answer within {timeout:g} s") from None
                status = _status(msg)
                if status == "503":
                    raise ConnectionFailed(f"stream {stream} does not answer: the network is not set up") from None
                if status:
                    break
                stored = _stored(msg)
                last, pending = stored.sequence, int(stored.headers.get("Nats-Num-Pending", "0"))
                yield stored
            more = pending > 0 and most is None
            request = {"seq": last + 1, "next_by_subj": subject, "batch": batch, "max_bytes": 8 << 20} if more else {}


def _status(msg: Msg) -> str:
    headers = msg.headers or {}
    return headers.get("Status", "") if "Nats-Stream" not in headers else ""


def _stored(msg: Msg) -> Stored:
    headers = dict(msg.headers or {})
    return Stored(
        subject=headers["Nats-Subject"],
        sequence=int(headers["Nats-Sequence"]),
        time=parse_timestamp(headers["Nats-Time-Stamp"]),
        body=msg.data,
        headers=headers,
    )


def _rfc3339(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
