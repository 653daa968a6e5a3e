"""Snapshots of streams: JetStream's own protocol, which takes a stream with its consumers while it is in use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client

from modelnet.errors import ConnectionFailed

from .connection import listen

__all__ = ["CHUNK_BYTES", "Snapshot", "restore_stream", "snapshot_stream"]

CHUNK_BYTES = 128 * 1024
_TIMEOUT_S = 10.0
_APPLY_S = 300.0
"""The server unpacks what it was sent, and builds its indexes, before it answers."""


class Snapshot(NamedTuple):
    """What a snapshot starts with."""

    config: dict[str, Any]
    state: dict[str, Any]
    chunks: AsyncIterator[bytes]
    """To be read to its end; raises `ConnectionFailed` where the snapshot is cut off."""


async def snapshot_stream(nc: Client, stream: str) -> Snapshot | None:
    """Begin a snapshot; None: there is no such stream. Raises `ConnectionFailed`."""
    inbox = nc.new_inbox()
    async with AsyncExitStack() as stack:
        heard = await stack.enter_async_context(listen(nc, inbox))
        request = {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES, "jsck": False, "no_consumers": False}
        answer = await _ask(nc, f"$JS.API.STREAM.SNAPSHOT.{stream}", request)
        if error := answer.get("error"):
            if error.get("err_code") == 10059:
                return None
            raise ConnectionFailed(f"stream {stream} cannot be copied: {error.get('description')}")
        listening = stack.pop_all()

    async def chunks() -> AsyncIterator[bytes]:
        try:
            async with listening:
                while True:
                    async with asyncio.timeout(_TIMEOUT_S):
                        msg = await heard.get()
                    if not msg.data:
                        status = (msg.headers or {}).get("Status", "204")
                        if status != "204":
                            why = (msg.headers or {}).get("Description", status)
                            raise ConnectionFailed(f"the server ended the copy of stream {stream}: {why}")
                        return
                    yield msg.data
                    if msg.reply:
                        await nc.publish(msg.reply, b"")  # the server sends a window of chunks ahead, no more
        except (TimeoutError, nats.errors.Error):
            raise ConnectionFailed(f"the copy of stream {stream} was cut off") from None

    return Snapshot(answer["config"], answer["state"], chunks())


async def restore_stream(nc: Client, config: dict[str, Any], state: dict[str, Any], chunks: Iterable[bytes]) -> int:
    """Make a stream, which must not exist, of a snapshot: how many messages it holds. Raises `ConnectionFailed`."""
    stream = config["name"]
    answer = await _ask(nc, f"$JS.API.STREAM.RESTORE.{stream}", {"config": config, "state": state})
    _check(stream, answer)
    to = answer["deliver_subject"]
    for chunk in chunks:
        reply = await _request(nc, to, chunk, _TIMEOUT_S)
        if reply:
            _check(stream, json.loads(reply))
    done: dict[str, Any] = json.loads(await _request(nc, to, b"", _APPLY_S))
    _check(stream, done)
    return int(done["state"]["messages"])


def _check(stream: str, answer: dict[str, Any]) -> None:
    if error := answer.get("error"):
        raise ConnectionFailed(f"stream {stream} cannot be restored: {error.get('description')}")


async def _ask(nc: Client, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await _request(nc, subject, json.dumps(body).encode(), _TIMEOUT_S))
    return answer


async def _request(nc: Client, subject: str, body: bytes, timeout_s: float) -> bytes:
    try:
        data: bytes = (await nc.request(subject, body, timeout=timeout_s)).data
    except nats.errors.NoRespondersError:
        raise ConnectionFailed("JetStream is not enabled on the server", code="no_jetstream") from None
    except nats.errors.Error as error:
        raise ConnectionFailed(f"JetStream did not answer: {type(error).__name__}") from None
    return data
