"""Connections that end, whatever state they are in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.msg import Msg

from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import EmbeddedNats
from modelnet.errors import ConnectionFailed
from tests.network.stage import PATIENCE_S, fast, until


async def test_closing_ends_a_reconnect_that_swallows_its_cancellation(tmp_path: Path) -> None:
    """As `asyncio.wait_for` does before Python 3.12, when the attempt fails at that very moment."""
    server = EmbeddedNats(tmp_path)
    await server.start()
    nc = await connect(fast(server.url), "test")
    tried, swallowed = asyncio.Event(), asyncio.Event()

    async def fail(*_: Any) -> None:
        tried.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if swallowed.is_set():
                raise
            swallowed.set()
            raise ConnectionRefusedError from None

    nc._connect_to_server = fail
    await server.stop()
    await until(tried)
    async with asyncio.timeout(PATIENCE_S):
        await close(nc)
    assert swallowed.is_set()
    assert nc._reconnection_task.done()
    assert nc.is_closed


async def test_a_failure_while_it_reconnects_does_not_end_the_attempts(tmp_path: Path) -> None:
    """Nothing tells when attempts have ended: its owner would wait for ever."""
    server = EmbeddedNats(tmp_path)
    await server.start()
    try:
        reconnected = asyncio.Event()

        async def on_reconnect() -> None:
            reconnected.set()

        nc = await connect(fast(server.url), "test", on_reconnect=on_reconnect)
        heard = await nc.subscribe("heard")
        flush, failures = nc.flush, 0

        async def fail(*args: Any) -> None:
            nonlocal failures
            failures += 1
            if failures <= 2:
                raise nats.errors.TimeoutError
            await flush(*args)

        nc.flush = fail
        server.restart()
        await until(reconnected)
        await nc.publish("heard", b"again")
        assert (await heard.next_msg(PATIENCE_S)).data == b"again"
        assert failures > 2
        await close(nc)
    finally:
        await server.stop()


@pytest.mark.parametrize("error", [ConnectionFailed("no stream"), nats.errors.TimeoutError(), ValueError("a bug")])
async def test_a_callback_that_fails_leaves_the_connection_as_it_is(tmp_path: Path, error: Exception) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    try:
        calls, called = 0, asyncio.Event()

        async def on_reconnect() -> None:
            nonlocal calls
            calls += 1
            called.set()
            raise error

        nc = await connect(fast(server.url), "test", on_reconnect=on_reconnect)
        server.restart()
        await until(called)
        await nc.flush()
        assert nc.is_connected
        assert calls == 1
        await close(nc)
    finally:
        await server.stop()


async def test_a_request_that_is_cancelled_as_its_answer_comes_is_cancelled(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    try:
        nc = await connect(fast(server.url), "test")

        async def answer(msg: Msg) -> None:
            await msg.respond(b"answer")

        await nc.subscribe("asked", cb=answer)
        request = asyncio.create_task(nc.request("asked", timeout=PATIENCE_S))
        while not nc._resp_map:  # noqa: ASYNC110  # a few steps of the loop, no time
            await asyncio.sleep(0)
        (reply,) = nc._resp_map.values()
        while len(reply._callbacks) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        reply.add_done_callback(lambda _: request.cancel())  # whoever waits for the answer is not awake yet
        with pytest.raises(asyncio.CancelledError):
            await request
        await close(nc)
    finally:
        await server.stop()
