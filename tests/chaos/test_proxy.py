"""The proxy carries everything, and does what it is told to the link while it is up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import nats
import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client as Bus
from nats.aio.msg import Msg

from modelnet.bus.embedded import EmbeddedNats
from tests.chaos.frames import Frame, FrameParser
from tests.chaos.proxy import Direction, Proxy, Verdict

PATIENCE_S = 10.0

FRAMES = [
    b'CONNECT {"verbose":false}\r\n',
    b"PING\r\n",
    b"SUB task.> 7\r\n",
    b"PUB a.b 5\r\nab\r\nc\r\n",
    b"PUB a.b inbox.1 0\r\n\r\n",
    b"HPUB a.b inbox.1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
    b"MSG a.b 7 3\r\n\r\n!\r\n",
    b"MSG a.b 7 inbox.1 3\r\nabc\r\n",
    b"HMSG a.b 7 inbox.1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    b"-ERR 'no'\r\n",
]


@given(st.lists(st.sampled_from(FRAMES), max_size=12), st.lists(st.integers(0, 400), max_size=8))
def test_frames_are_found_however_the_bytes_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    stream, parser, found = b"".join(sent), FrameParser(), list[Frame]()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in itertools.pairwise(edges):
        found += parser.feed(stream[start:end])
    assert [frame.raw for frame in found] == sent


def test_a_frame_tells_subject_reply_and_body() -> None:
    told = [frame[:4] for raw in FRAMES for frame in FrameParser().feed(raw)]
    assert told[2:] == [
        ("SUB", "", "", b""),
        ("PUB", "a.b", "", b"ab\r\nc"),
        ("PUB", "a.b", "inbox.1", b""),
        ("HPUB", "a.b", "inbox.1", b"hello"),
        ("MSG", "a.b", "", b"\r\n!"),
        ("MSG", "a.b", "inbox.1", b"abc"),
        ("HMSG", "a.b", "inbox.1", b"hi"),
        ("-ERR", "", "", b""),
    ]


class Stage:
    """A client behind the proxy, another that goes straight to the server, and what the first hears."""

    def __init__(self, proxy: Proxy, behind: Bus, straight: Bus) -> None:
        self.proxy, self.behind, self.straight = proxy, behind, straight
        self.heard: list[bytes] = []
        self.reconnected = asyncio.Event()
        self._news = asyncio.Condition()

    async def hear(self, msg: Msg) -> None:
        async with self._news:
            self.heard.append(msg.data)
            self._news.notify_all()

    async def until(self, enough: Callable[[list[bytes]], bool]) -> None:
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: enough(self.heard)), PATIENCE_S)


async def flushed(bus: Bus) -> None:
    """Once the server has read all that was sent: flush() alone sends its PING ahead of what waits."""
    await bus._flush_pending(force_flush=True)
    await bus.flush()


@asynccontextmanager
async def staged(server: EmbeddedNats) -> AsyncIterator[Stage]:
    proxy = Proxy(server.port)
    await proxy.start()
    reconnected = asyncio.Event()

    async def on_reconnect() -> None:
        reconnected.set()

    async def quiet(error: Exception) -> None:
        """Lost connections are the point here."""

    behind = await nats.connect(
        f"nats://127.0.0.1:{proxy.port}",
        reconnect_time_wait=0.05,
        max_reconnect_attempts=-1,
        reconnected_cb=on_reconnect,
        error_cb=quiet,
    )
    straight = await nats.connect(server.url)
    stage = Stage(proxy, behind, straight)
    stage.reconnected = reconnected
    await behind.subscribe("heard", cb=stage.hear)
    await flushed(behind)
    try:
        yield stage
    finally:
        proxy.mend()
        await behind.close()
        await straight.close()
        await proxy.stop()


@pytest.mark.asyncio(loop_scope="module")
async def test_all_is_carried_in_order_both_ways(nats_server: EmbeddedNats) -> None:
    async with staged(nats_server) as stage:
        bodies = [bytes([n % 256]) * (n * n) for n in range(300)]
        for body in bodies:
            await stage.behind.publish("heard", body)  # up, and down again
        await stage.until(lambda heard: len(heard) == len(bodies))
        assert stage.heard == bodies


@pytest.mark.asyncio(loop_scope="module")
async def test_a_slow_link_delays_and_a_thin_one_takes_its_time(nats_server: EmbeddedNats) -> None:
    async with staged(nats_server) as stage:
        clock = asyncio.get_running_loop().time
        stage.proxy.delay_s = 0.15
        started = clock()
        await stage.behind.flush(timeout=5)
        assert clock() - started >= 0.3
        stage.proxy.mend()
        stage.proxy.bytes_per_s = 20_000
        started = clock()
        await stage.straight.publish("heard", b"x" * 10_000)
        await stage.until(lambda heard: len(heard) == 1)
        assert clock() - started >= 0.45


@pytest.mark.asyncio(loop_scope="module")
async def test_a_cut_link_is_lost_and_a_mended_one_found_again(nats_server: EmbeddedNats) -> None:
    async with staged(nats_server) as stage:
        stage.proxy.cut()
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await stage.behind.flush(timeout=1)
        assert not stage.behind.is_connected
        stage.proxy.mend()
        await asyncio.wait_for(stage.reconnected.wait(), PATIENCE_S)
        await stage.straight.publish("heard", b"back")
        await stage.until(lambda heard: heard == [b"back"])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_held_link_says_nothing_and_loses_nothing(nats_server: EmbeddedNats) -> None:
    async with staged(nats_server) as stage:
        stage.proxy.hold()
        for n in range(10):
            await stage.straight.publish("heard", b"%d" % n)
        await stage.straight.flush()
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await stage.behind.flush(timeout=0.3)
        assert stage.heard == []
        assert stage.behind.is_connected
        stage.proxy.mend()
        await stage.until(lambda heard: heard == [b"%d" % n for n in range(10)])


@pytest.mark.asyncio(loop_scope="module")
async def test_messages_travel_twice_and_the_connection_lives(nats_server: EmbeddedNats) -> None:
    async with staged(nats_server) as stage:
        stage.proxy.repeat_every = 1
        await stage.straight.publish("heard", b"down")
        await stage.until(lambda heard: heard == [b"down"] * 2)
        await stage.behind.publish("heard", b"up and down")
        await stage.until(lambda heard: heard == [b"down"] * 2 + [b"up and down"] * 4)
        await stage.behind.flush()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("verdict", "arrives"),
    [
        (Verdict.PASS, [b"1", b"2", b"3"]),
        (Verdict.DROP, [b"1", b"3"]),
        (Verdict.PASS_AND_END, [b"1", b"2"]),
        (Verdict.DROP_AND_END, [b"1"]),
    ],
)
async def test_a_watcher_decides_over_each_frame(
    nats_server: EmbeddedNats, verdict: Verdict, arrives: list[bytes]
) -> None:
    async with staged(nats_server) as stage:
        heard, all_heard = list[bytes](), asyncio.Event()

        async def hear(msg: Msg) -> None:
            heard.append(msg.data)
            if len(heard) >= len(arrives):
                all_heard.set()

        await stage.straight.subscribe("said", cb=hear)
        await flushed(stage.straight)

        def watch(direction: Direction, frame: Frame) -> Verdict:
            chosen = direction == "up" and frame.subject == "said" and frame.body == b"2"
            return verdict if chosen else Verdict.PASS

        stage.proxy.watch = watch
        for body in (b"1", b"2", b"3"):
            await stage.behind.publish("said", body)
        await stage.behind._flush_pending(force_flush=True)
        with_end = verdict in (Verdict.PASS_AND_END, Verdict.DROP_AND_END)
        if with_end:
            with pytest.raises((nats.errors.Error, TimeoutError)):
                await stage.behind.flush(timeout=0.3)
        else:
            await stage.behind.flush()
        await asyncio.wait_for(all_heard.wait(), PATIENCE_S)
        await stage.straight.flush()
        assert heard == arrives


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_no_nats_is_carried_as_it_is() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], frames=False)
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"no frame\n")
    assert await asyncio.wait_for(reader.readline(), PATIENCE_S) == b"NO FRAME\n"
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()
    await proxy.stop()
    server.close()
