"""A backup taken in the middle of the work, restored into servers that have never seen any of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import modelnet
from modelnet.backup import BackupDamaged, NotEmpty, backup, restore
from modelnet.bus import subjects
from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis
from modelnet.bus.streams import STREAMS, setup_bus, stream_messages
from modelnet.errors import ConnectionFailed, UsageError
from modelnet.messages import Final
from tests.network.stage import Network, events, fast

Json = dict[str, Any]


def silent(part: str, entries: int, size: int) -> None:
    """Nobody wants to know."""


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[tuple[Network, Redis]]:
    """A NATS server and a Redis with nothing in them."""
    nats, store = EmbeddedNats(folder / "nats"), EmbeddedRedis(folder / "redis")
    await asyncio.gather(nats.start(), store.start())
    try:
        async with AsyncExitStack() as stack:
            redis = Redis.from_url(store.url)
            stack.push_async_callback(redis.aclose)
            yield await stack.enter_async_context(Network(fast(nats.url, ack_wait_s=1.0))), redis
    finally:
        await asyncio.gather(nats.stop(), store.stop())


async def echo(network: Network, gate: asyncio.Event) -> None:
    """A worker that returns what it gets; what is to be held waits for the gate."""
    worker = network.worker("echo")

    @worker.capability("echo")
    async def answer(ctx: modelnet.Context, input: Json) -> Json:
        if input["held"]:
            await gate.wait()
        return input

    await network.join(worker)


async def test_tasks_finals_and_keys_are_back_and_each_task_ends_once(tmp_path: Path) -> None:
    gate = asyncio.Event()
    big = "x" * 600_000
    async with servers(tmp_path / "old") as (network, redis):
        await network.negotiator()
        await echo(network, gate)
        done = [await network.client.submit("echo", {"n": n, "held": False}, id=f"done-{n}") for n in range(10)]
        done.append(await network.client.submit("echo", {"n": big, "held": False}, id="done-big"))
        finals = [await task.result() for task in done]
        async with network.ear(subjects.accepted("default", "*", "status")) as awards:
            for n in range(10):
                await network.client.submit("echo", {"n": n, "held": True}, id=f"held-{n}", deadline_s=100)
            await awards.until(lambda heard: len(heard) >= 5)
        await redis.hset("account:a", mapping={"free": "70", "held": "30"})
        await redis.set("settled:\x00\xff", b"\x00\x01", px=3_600_000)
        await redis.set("gone", "soon", px=1)
        parts: list[str] = []
        await backup(network.bus, redis, tmp_path / "copy", lambda part, entries, size: parts.append(part))
        assert parts == [*STREAMS, "Redis"]
        assert parts.index("TASKS") < parts.index("JOURNAL")
        gate.set()  # what happens after the backup is not in it

    async with servers(tmp_path / "new") as (network, redis):
        await restore(network.bus, redis, tmp_path / "copy", silent)
        assert await redis.hgetall("account:a") == {b"free": b"70", b"held": b"30"}
        assert await redis.get("settled:\x00\xff") == b"\x00\x01"
        assert 0 < await redis.pttl("settled:\x00\xff") <= 3_600_000
        assert await redis.get("gone") is None
        for before in finals:
            again = await network.client.task(before.task).result()
            assert again == before
        async with network.ear(subjects.journal("*", "*", "final")) as written:
            await network.negotiator()
            await echo(network, gate)
            for n in range(10):
                seen = await events(network.client.task(f"held-{n}"))
                assert [event.output for event in seen if isinstance(event, Final)] == [{"n": n, "held": True}]
            assert len(written.heard) == 10
        assert await stream_messages(network.bus, "TASKS") == 0
        fresh = await network.client.submit("echo", {"n": 0, "held": False})
        assert (await fresh.result()).output == {"n": 0, "held": False}


async def test_what_is_not_whole_or_would_be_overwritten_is_refused_before_anything_changes(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    async with servers(tmp_path / "servers") as (network, redis):
        with pytest.raises(ConnectionFailed, match="nothing to copy"):
            await backup(network.bus, redis, copy, silent)
        assert not [name for name in os.listdir(tmp_path) if name.startswith("copy")]
        await network.negotiator()
        task = await network.client.submit("nobody.knows", {"n": 1}, id="one")
        before = await task.final()
        await redis.set("key", "value")
        await backup(network.bus, redis, copy, silent)
        with pytest.raises(UsageError, match="exists"):
            await backup(network.bus, redis, copy, silent)
        with pytest.raises(NotEmpty, match="replace"):
            await restore(network.bus, redis, copy, silent)
        with pytest.raises(UsageError, match="Redis"):
            await restore(network.bus, None, copy, silent, replace=True)

        snapshot = copy / "JOURNAL.snapshot"
        whole = snapshot.read_bytes()
        snapshot.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BackupDamaged, match="JOURNAL"):
            await restore(network.bus, redis, copy, silent, replace=True)
        snapshot.unlink()
        with pytest.raises(BackupDamaged):
            await restore(network.bus, redis, copy, silent, replace=True)
        assert await task.final() == before
        snapshot.write_bytes(whole)

        await redis.set("later", "lost")
        await restore(network.bus, redis, copy, silent, replace=True)
        assert await redis.keys() == [b"key"]
        assert await network.client.task("one").final() == before
        await setup_bus(network.bus)

        (copy / "manifest.json").write_text(json.dumps({"format": 1, "streams": 7, "redis": None}))
        with pytest.raises(BackupDamaged):
            await restore(network.bus, redis, copy, silent, replace=True)
