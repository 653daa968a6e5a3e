"""Connections that are lost, and closed: nobody waits for ever, and nobody is taken for dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

import modelnet
from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.outbox import Outbox
from modelnet.errors import ConnectionFailed
from modelnet.messages import Contract, WorkerCard
from tests.chaos.frames import Frame
from tests.chaos.proxy import Direction, Proxy, Verdict
from tests.network.stage import PATIENCE_S, Network, fast, require_an_end, until


@asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[tuple[EmbeddedNats, Network]]:
    """A server of the test's own, and a network on it."""
    server = EmbeddedNats(folder)
    await server.start()
    try:
        async with Network(fast(server.url)) as network:
            await network.negotiator()
            yield server, network
    finally:
        await server.stop()


async def patient(network: Network) -> modelnet.Worker:
    """A worker that has joined."""
    worker = network.worker("patient")

    @worker.capability("echo")
    async def echo(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        return input

    await network.join(worker)
    return worker


@pytest.mark.parametrize("ends", ["close", "loop"])
async def test_a_reconnect_that_swallows_its_cancellation_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """As `asyncio.wait_for` does before Python 3.12, when the attempt fails at that very moment; at a close, and at the
    end of an event loop, which cancels what is left and waits."""
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

    monkeypatch.setattr(Client, "_connect_to_server", fail)
    await server.stop()
    await until(tried)
    async with asyncio.timeout(PATIENCE_S):
        if ends == "loop":
            nc._reconnection_task.cancel()
            await asyncio.wait([nc._reconnection_task])
        await close(nc)
    assert swallowed.is_set()
    assert nc._reconnection_task.done()
    assert nc.is_closed


async def test_a_failure_while_it_reconnects_does_not_end_the_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells when nats-py's attempts have ended: its owner would wait for ever."""
    attempt, failures = Client._attempt_reconnect, 0

    async def fail_twice(self: Client) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise RuntimeError("readuntil() called while another coroutine is already waiting for incoming data")
        await attempt(self)

    monkeypatch.setattr(Client, "_attempt_reconnect", fail_twice)
    server = EmbeddedNats(tmp_path)
    await server.start()
    try:
        reconnected = asyncio.Event()

        async def on_reconnect() -> None:
            reconnected.set()

        nc = await connect(fast(server.url), "test", on_reconnect=on_reconnect)
        heard = await nc.subscribe("heard")
        server.restart()
        await until(reconnected)
        await nc.publish("heard", b"again")
        assert (await heard.next_msg(PATIENCE_S)).data == b"again"
        assert failures == 3
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
        hear = nc._request_sub_callback

        async def hear_and_cancel(msg: Msg) -> None:
            await hear(msg)
            request.cancel()  # it has its answer, and is not awake yet

        nc._request_sub_callback = hear_and_cancel
        request = asyncio.create_task(nc.request("asked", timeout=PATIENCE_S))
        with pytest.raises(asyncio.CancelledError):
            await request
        await close(nc)
    finally:
        await server.stop()


@pytest.mark.parametrize("by", ["task", "handler"])
async def test_what_a_server_does_not_read_waits_its_turn(tmp_path: Path, by: str) -> None:
    """The publisher is held once too much waits, or what it reads next if it publishes where it reads; when the server
    reads again it gets all, once and in order."""
    server = EmbeddedNats(tmp_path)
    await server.start()
    proxy = Proxy(server.port)
    await proxy.start()
    try:
        straight = await connect(fast(server.url), "test")
        behind = await connect(fast(f"nats://127.0.0.1:{proxy.port}"), "test")
        count, piece, heard, all_heard = 600, bytes(100_000), list[int](), asyncio.Event()

        async def hear(msg: Msg) -> None:
            heard.append(int(msg.data[:4]))
            if heard[-1] == count - 1:
                all_heard.set()

        published = asyncio.Event()

        async def publish(_: Msg | None = None) -> None:
            proxy.hold()
            for number in range(count):
                await behind.publish("said", b"%04d" % number + piece)
            published.set()

        await straight.subscribe("said", cb=hear)
        if by == "handler":
            await behind.hear("go", publish)
            await behind.flush()
            await straight.publish("go")
        await straight.flush()
        publishing = asyncio.create_task(publish()) if by == "task" else None
        while behind.pending_data_size < behind._max_pending_size:
            assert publishing is None or not publishing.done()
            await asyncio.sleep(0)
        assert published.is_set() == (by == "handler")
        proxy.mend()
        await until(published)
        await until(all_heard)
        assert heard == list(range(count))
        await close(behind)
        await close(straight)
    finally:
        await proxy.stop()
        await server.stop()


async def test_a_worker_whose_streams_do_not_answer_goes_on_beating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mending = asyncio.Event()

    async def never(self: Outbox) -> None:
        mending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Outbox, "mend", never)
    async with embedded(tmp_path) as (_, network):
        worker = await patient(network)
        async with network.ear(subjects.beat(worker.id)) as beats:
            await until(mending)
            heard = len(beats.heard)
            await beats.until(lambda msgs: len(msgs) >= heard + 3)


async def test_a_worker_announces_itself_again_until_the_server_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce, claim, tries, claimed = Catalogue.announce, Catalogue.claim, 0, asyncio.Event()

    async def fail_once(self: Catalogue, contract: Contract) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionFailed("the stream has no leader yet")
        await announce(self, contract)

    async def claim_and_tell(self: Catalogue, card: WorkerCard) -> int | None:
        found = await claim(self, card)
        claimed.set()
        return found

    async with embedded(tmp_path) as (server, network):
        worker = await patient(network)
        catalogue = network.client.catalogue
        await catalogue.leave(worker.id)  # as if the server had come back without it
        monkeypatch.setattr(Catalogue, "announce", fail_once)
        monkeypatch.setattr(Catalogue, "claim", claim_and_tell)
        server.restart()
        await until(claimed)
        assert tries == 2
        card = await catalogue.card(worker.id)
        assert card is not None
        assert card.worker == worker.id


async def test_a_flush_proves_that_all_was_read(tmp_path: Path) -> None:
    async with embedded(tmp_path) as (server, _):
        proxy, sent = Proxy(server.port), list[str]()

        def watch(direction: Direction, frame: Frame) -> Verdict:
            if direction == "up":
                sent.append(frame.verb)
            return Verdict.PASS

        await proxy.start()
        nc = await connect(fast(f"nats://127.0.0.1:{proxy.port}"), "flusher")
        proxy.watch = watch
        await nc.subscribe("said")
        await nc.publish("said", b"x")
        await nc.flush()
        assert sent == ["SUB", "PUB", "PING"]
        await close(nc)
        await proxy.stop()


async def test_a_flush_that_took_too_long_does_not_make_it_deaf(tmp_path: Path) -> None:
    """Its PONG comes when nobody waits for it any more."""
    async with embedded(tmp_path) as (server, _):
        proxy, heard = Proxy(server.port), asyncio.Event()

        async def hear(_: Msg) -> None:
            heard.set()

        await proxy.start()
        nc = await connect(fast(f"nats://127.0.0.1:{proxy.port}"), "late")
        await nc.subscribe("said", cb=hear)
        await nc.flush()
        proxy.hold()
        with pytest.raises(nats.errors.FlushTimeoutError):
            await nc.flush(timeout=0.05)
        proxy.mend()
        await nc.publish("said", b"x")
        await until(heard)
        await nc.flush()
        await close(nc)
        await proxy.stop()


async def test_a_ping_of_a_lost_connection_is_not_sent_on_the_next(tmp_path: Path) -> None:
    """Its PONG would be taken for another's."""
    async with embedded(tmp_path) as (server, _):
        proxy, sent, reconnected = Proxy(server.port), list[str](), asyncio.Event()

        def watch(direction: Direction, frame: Frame) -> Verdict:
            if direction == "up":
                sent.append(frame.verb)
            return Verdict.PASS

        async def on_reconnect() -> None:
            reconnected.set()

        await proxy.start()
        nc = await connect(fast(f"nats://127.0.0.1:{proxy.port}"), "again", on_reconnect=on_reconnect)
        lost = asyncio.Event()

        async def on_disconnect() -> None:
            lost.set()

        nc._disconnected_cb = on_disconnect
        proxy.cut()
        await until(lost)
        await nc._send_ping()
        await nc.publish("said", b"x")
        proxy.watch = watch
        proxy.mend()
        await until(reconnected)
        assert sent == ["CONNECT", "PING", "PUB", "PING"]
        assert nc.pending_data_size == 0
        await close(nc)
        await proxy.stop()


@pytest.mark.parametrize("error", [ValueError("a bug"), nats.errors.Error(), asyncio.CancelledError()])
async def test_a_handler_that_fails_where_it_reads_fails_alone(tmp_path: Path, error: BaseException) -> None:
    """What it heard is lost, nothing else: not what comes behind it, on its subject or another's."""
    async with embedded(tmp_path) as (server, _):
        nc = await connect(fast(server.url), "test")
        heard, all_heard = list[str](), asyncio.Event()

        async def hear(msg: Msg) -> None:
            if msg.data == b"bad":
                raise error
            heard.append(msg.subject)
            if len(heard) == 3:
                all_heard.set()

        await nc.hear("one", hear)
        await nc.hear("two.*", hear)
        await nc.publish("one", b"bad")
        for subject in ("one", "two.a"):
            await nc.publish(subject, b"good")
        await nc.publish("two.b", b"good", headers={"told": "so"})
        await until(all_heard)
        assert heard == ["one", "two.a", "two.b"]
        await close(nc)


@pytest.mark.parametrize("what", ["flush", "request"])
async def test_a_cancellation_ends_a_wait_for_the_server_wherever_it_meets_it(tmp_path: Path, what: str) -> None:
    """nats-py's `asyncio.wait_for` swallows one that meets the answer, before Python 3.12."""
    async with embedded(tmp_path) as (server, _):
        nc = await connect(fast(server.url), "test")

        async def echo(msg: Msg) -> None:
            await nc.publish(msg.reply, msg.data)

        answering = await nc.subscribe("echo", cb=echo)

        ask = nc.flush if what == "flush" else partial(nc.request, "echo", timeout=PATIENCE_S)
        for turns in range(20):
            await nc.flush()
            await require_an_end(ask, turns)
        await answering.unsubscribe()
        await close(nc)
