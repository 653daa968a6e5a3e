"""The object store: bodies too large for a message, in encrypted chunks that expire with their task.

An object's name holds a random part, so no two attempts and no two uploads ever share one. Its key travels in the
reference, so the store itself tells nobody anything. Chunks are acknowledged, a few at a time on their way.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from typing import Any

import nats.errors
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nacl.utils import random
from nats.aio.client import Client

from modelnet.errors import BusFull, ConnectionFailed, ObjectLost, TooLarge
from modelnet.messages import Reference, new_id

from .journal import RETENTION_S
from .replay import read_all
from .storage import store

__all__ = ["CHUNK_BYTES", "get", "get_json", "put", "remove"]

CHUNK_BYTES = 128 * 1024
_ON_THE_WAY = 8
_TRIES = 3
_TIMEOUT_S = 5.0


def _nonce(number: int) -> bytes:
    return number.to_bytes(SecretBox.NONCE_SIZE, "big")  # a key is used for one object only


async def put(
    nc: Client,
    body: bytes,
    *,
    tenant: str,
    task: str,
    live_s: float,
    limit: int,
    media_type: str = "application/json",
) -> Reference:
    """Store a body that is wanted for `live_s` seconds more, and for 48 h after that.

    Raises `TooLarge` above `limit` bytes, before anything is sent; `BusFull`, `ConnectionFailed`. Cut off in the
    middle, it leaves chunks that expire.
    """
    if len(body) > limit:
        raise TooLarge(f"{len(body)} bytes are above the limit of {limit} (MODELNET_MAX_OBJECT_BYTES)")
    name, key = f"{tenant}.{task}.{new_id()}", random(SecretBox.KEY_SIZE)
    box, gate = SecretBox(key), asyncio.Semaphore(_ON_THE_WAY)
    headers = {"Nats-TTL": f"{int(live_s) + RETENTION_S}s"}

    async def send(number: int, at: int) -> None:
        async with gate:
            sealed = box.encrypt(body[at : at + CHUNK_BYTES], _nonce(number)).ciphertext
            await _store(nc, f"body.{name}.{number}", sealed, headers)

    try:
        async with asyncio.TaskGroup() as group:
            for number, at in enumerate(range(0, len(body), CHUNK_BYTES), 1):
                group.create_task(send(number, at))
    except* (BusFull, ConnectionFailed) as errors:
        raise errors.exceptions[0] from None
    chunks = (len(body) + CHUNK_BYTES - 1) // CHUNK_BYTES
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    return Reference(
        name=name,
        size=len(body),
        chunks=chunks,
        digest=digest,
        key=base64.urlsafe_b64encode(key).decode(),
        media_type=media_type,
    )


async def _store(nc: Client, subject: str, sealed: bytes, headers: dict[str, str]) -> None:
    for left in reversed(range(_TRIES)):
        try:
            # A chunk stored twice is the same chunk: the reader takes the first of each number.
            await store(nc, "BODIES", subject, sealed, headers)
        except ConnectionFailed as error:
            # While a server starts, JetStream comes later than the connection.
            if error.wire_code == "not_stored" or not left:
                raise
        else:
            return
        await asyncio.sleep(_TIMEOUT_S / 5)


async def get(nc: Client, reference: Reference, *, limit: int) -> bytes:
    """The body. Raises `ObjectLost` if it has expired or is not what the reference says, `TooLarge` above `limit`
    bytes, `ConnectionFailed`."""
    if reference.size > limit:
        raise TooLarge(f"{reference.size} bytes are above the limit of {limit} (MODELNET_MAX_OBJECT_BYTES)")
    box, chunks, size = SecretBox(base64.urlsafe_b64decode(reference.key)), dict[int, bytes](), 0
    async for stored in read_all(nc, "BODIES", f"body.{reference.name}.*"):
        number = int(stored.subject.rsplit(".", 1)[1])
        if number in chunks:
            continue
        try:
            chunks[number] = chunk = box.decrypt(stored.body, _nonce(number))
        except CryptoError:
            raise ObjectLost(f"the object {reference.name} is not what was stored") from None
        size += len(chunk)
        if size > reference.size:
            raise ObjectLost(f"the object {reference.name} is larger than its reference says")
    if set(chunks) != set(range(1, reference.chunks + 1)) or size != reference.size:
        raise ObjectLost(f"the object {reference.name} has expired or was never stored whole")
    body = b"".join(chunks[number] for number in sorted(chunks))
    if "sha256:" + hashlib.sha256(body).hexdigest() != reference.digest:
        raise ObjectLost(f"the object {reference.name} is not what its reference says")
    return body


async def get_json(nc: Client, reference: Reference, *, limit: int) -> dict[str, Any]:
    """The JSON object that was stored. Raises as `get` does."""
    body = await get(nc, reference, limit=limit)
    try:
        value = await asyncio.to_thread(json.loads, body)  # 64 MiB take a second
    except (ValueError, RecursionError):
        raise ObjectLost(f"the object {reference.name} is no JSON") from None
    if not isinstance(value, dict):
        raise ObjectLost(f"the object {reference.name} is no JSON object")
    return value


async def remove(nc: Client, reference: Reference) -> None:
    """Delete an object that nobody knows of."""
    body = json.dumps({"filter": f"body.{reference.name}.*"}).encode()
    with contextlib.suppress(nats.errors.Error):
        await nc.request("$JS.API.STREAM.PURGE.BODIES", body, timeout=_TIMEOUT_S)
