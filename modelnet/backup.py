"""A copy of all that a network keeps, streams and Redis, in a folder; and a network made of such a copy.

The folder holds a file for each stream (JetStream's own snapshot), `redis.jsonl`, and `manifest.json`, which names
them with their digests. Everything may go on meanwhile. The order is what makes the copy whole: tasks first, then the
journal that decides them, then what hangs on it, Redis last; what a later part knows more than an earlier one is
harmless, as every reader is idempotent. It is restored the other way round, so that a task comes back last.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import RedisError

from modelnet import __version__
from modelnet.bus.snapshot import CHUNK_BYTES, restore_stream, snapshot_stream
from modelnet.bus.streams import STREAMS, delete_stream, stream_messages
from modelnet.errors import ConnectionFailed, ModelnetError, UsageError

__all__ = ["BackupDamaged", "NotEmpty", "backup", "read_manifest", "restore"]

MANIFEST = "manifest.json"
REDIS = "redis.jsonl"
_FORMAT = 1

Report = Callable[[str, int, int], None]
"""Called with the name of each part that is done, its entries (messages or keys) and bytes."""

# One script, so one moment: keys that belong together are copied together.
_DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = {key, redis.call('PTTL', key), redis.call('DUMP', key)}
end
return {redis.call('TIME'), found}
"""


class BackupDamaged(ModelnetError):
    """Raised by `restore`, before it changes anything, for a folder that is no whole backup."""

    code = "backup_damaged"


class NotEmpty(ModelnetError):
    """Raised by `restore`, before it changes anything, where a stream or Redis already holds something."""

    code = "not_empty"


async def backup(nc: Client, redis: Redis | None, folder: Path, report: Report) -> None:
    """Copy everything into a new folder, which appears whole or not at all. `redis` None: without it.

    Raises `UsageError` if the folder exists, `ConnectionFailed`.
    """
    fresh = _begin(folder)
    try:
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "modelnet": __version__,
            "begun": datetime.now(UTC).isoformat(),
            "server": str(nc.connected_server_version).strip("<>"),
            "streams": {},
            "redis": None,
        }
        for name in STREAMS:
            found = await _copy_stream(nc, name, fresh / f"{name}.snapshot", report)
            if found is not None:
                manifest["streams"][name] = found
        if not manifest["streams"]:
            raise ConnectionFailed("this server does not carry a modelnet network: there is nothing to copy")
        if redis is not None:
            manifest["redis"] = await _copy_redis(redis, fresh / REDIS, report)
        _write(fresh / MANIFEST, [json.dumps(manifest, indent=1).encode()])
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _begin(folder: Path) -> Path:
    if folder.exists():
        raise UsageError(f"{folder} exists already")
    fresh = folder.with_name(folder.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    return fresh


async def _copy_stream(nc: Client, name: str, path: Path, report: Report) -> dict[str, Any] | None:
    snapshot = await snapshot_stream(nc, name)
    if snapshot is None:
        return None
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        async for chunk in snapshot.chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        _sync(file.fileno())
    report(name, snapshot.state["messages"], size)
    return {"config": snapshot.config, "state": snapshot.state, "sha256": digest.hexdigest()}


async def _copy_redis(redis: Redis, path: Path, report: Report) -> dict[str, Any]:
    try:
        (seconds, micros), found = await redis.eval(_DUMP, 0)
        version = (await redis.info("server"))["redis_version"]
    except (RedisError, OSError) as error:
        raise ConnectionFailed(f"Redis cannot be copied: {error}") from None
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    lines = [
        json.dumps(
            {
                "key": base64.b64encode(key).decode(),
                "expires_ms": now_ms + left if left > 0 else None,
                "dump": base64.b64encode(dump).decode(),
            }
        ).encode()
        + b"\n"
        for key, left, dump in found
    ]
    _write(path, lines)
    report("Redis", len(lines), sum(map(len, lines)))
    return {"keys": len(lines), "version": version, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the backup holds, every file of it checked against its digest. Raises `BackupDamaged`."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            raise BackupDamaged(f"{folder} is of format {manifest['format']}: another version of modelnet wrote it")
        parts = {f"{name}.snapshot": part["sha256"] for name, part in manifest["streams"].items()}
        if manifest["redis"] is not None:
            parts[REDIS] = manifest["redis"]["sha256"]
        if strange := set(manifest["streams"]) - set(STREAMS):
            raise BackupDamaged(f"{folder} holds streams that this version does not know: {', '.join(strange)}")
        for name, digest in parts.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise BackupDamaged(f"{folder / name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupDamaged(f"{folder} is no backup, or not all of one: {type(error).__name__}: {error}") from None
    return manifest


async def restore(
    nc: Client, redis: Redis | None, folder: Path, report: Report, *, replace: bool = False, replicas: int = 1
) -> None:
    """Put everything back. Negotiators should not run. `replace`: what is there already is deleted first.

    Cut off in the middle, it is repeated with `replace`. Raises `BackupDamaged`, `NotEmpty`, `UsageError` for a
    backup with Redis where none is given, `ConnectionFailed`.
    """
    manifest = read_manifest(folder)
    names = [name for name in reversed(STREAMS) if name in manifest["streams"]]
    if manifest["redis"] is not None and redis is None:
        raise UsageError("the backup holds what was in Redis: a Redis is needed to put it back")
    if not replace:
        await _expect_empty(nc, redis if manifest["redis"] is not None else None)
    for name in reversed(STREAMS):
        await delete_stream(nc, name)
    if redis is not None and manifest["redis"] is not None:
        await _restore_redis(redis, folder / REDIS, report)
    for name in names:
        part, path = manifest["streams"][name], folder / f"{name}.snapshot"
        config = part["config"] | {"num_replicas": replicas}
        messages = await restore_stream(nc, config, part["state"], _chunks(path))
        report(name, messages, path.stat().st_size)


async def _expect_empty(nc: Client, redis: Redis | None) -> None:
    for name in STREAMS:
        if held := await stream_messages(nc, name, missing=0):
            raise NotEmpty(f"stream {name} holds {held} messages: --replace deletes what is there")
    if redis is None:
        return
    try:
        held = await redis.dbsize()
    except (RedisError, OSError) as error:
        raise ConnectionFailed(f"Redis does not answer: {error}") from None
    if held:
        raise NotEmpty(f"Redis holds {held} keys: --replace deletes what is there")


async def _restore_redis(redis: Redis, path: Path, report: Report) -> None:
    """All keys or none of them, in the place of what was there."""
    keys = size = 0
    try:
        async with redis.pipeline(transaction=True) as together:
            together.flushdb()
            with path.open("rb") as lines:
                for line in lines:
                    entry = json.loads(line)
                    key, dump = (base64.b64decode(entry[field]) for field in ("key", "dump"))
                    expires_ms = entry["expires_ms"]
                    together.restore(key, expires_ms or 0, dump, absttl=expires_ms is not None)
                    keys, size = keys + 1, size + len(line)
            await together.execute()
    except (RedisError, OSError) as error:
        raise ConnectionFailed(f"Redis does not take the backup (is it older than the one copied?): {error}") from None
    report("Redis", keys, size)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _write(path: Path, pieces: list[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        _sync(file.fileno())


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)
