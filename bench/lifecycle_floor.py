"""The floor under a durable task: the designed life cycle in raw nats-py, and nothing else.

Beside a nats-server of its own: a client (submit, wait for the Final), a negotiator (pull intake, request for bids,
close when all have bid, status by compare-and-set, award with confirm, output stored with an ack, Final by
compare-and-set, ack) and bidders, a process each, whose work is empty. JSON without schemas, no signatures, no
supervision: the real thing does more, and is measured as a multiple of this and of the bare request/reply, all in one
run: see bench/overhead.py. A task that says `spot` is awarded without asking for bids; of one that says `at_once` the
award does not wait for the status, as modelnet's does not.

Run a part: python -m bench.lifecycle_floor worker|negotiator|echo NUMBER, with FLOOR_URL set.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import RetentionPolicy, StreamConfig

URL = os.environ.get("FLOOR_URL", "")
FIRST = {"Nats-Expected-Last-Subject-Sequence": "0"}

Work = Callable[[Any], AsyncIterator[dict[str, Any]]]
"""What is streamed for an input."""


async def worker(number: int, work: Work | None = None) -> None:
    """A bidder; without `work` it is empty."""
    nc = await nats.connect(URL)
    js = nc.jetstream()
    running: set[asyncio.Task[None]] = set()

    async def bid(msg: Msg) -> None:
        await nc.publish(msg.reply, json.dumps({"worker": number, "price": number}).encode())

    async def award(msg: Msg) -> None:
        task = json.loads(msg.data)
        await msg.respond(b"confirm")
        if work is None:
            await end(task)
        else:
            keep(asyncio.create_task(stream(task, work)), running)

    async def stream(task: dict[str, Any], work: Work) -> None:
        async for delta in work(task["input"]):
            await nc.publish(f"result.t.{task['task']}.delta", json.dumps(delta).encode())
        await end(task)

    async def end(task: dict[str, Any]) -> None:
        await js.publish(f"result.t.{task['task']}.{number}.1", b'{"out":1}')
        await nc.publish(task["done"], json.dumps({"task": task["task"]}).encode())

    await nc.subscribe("cap.x", cb=bid)
    await nc.subscribe(f"worker.{number}.award", cb=award)
    await nc.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def negotiator(bidders: int) -> None:
    """Intake, auction, award, Final."""
    nc = await nats.connect(URL)
    js, loop = nc.jetstream(), asyncio.get_running_loop()
    inbox, done = nc.new_inbox(), nc.new_inbox()
    closed: dict[str, asyncio.Future[None]] = {}
    bids: dict[str, list[dict[str, Any]]] = {}
    finished: dict[str, asyncio.Future[None]] = {}
    running: set[asyncio.Task[None]] = set()

    async def on_bid(msg: Msg) -> None:
        task = msg.subject.rsplit(".", 1)[1]
        if task in bids:
            bids[task].append(json.loads(msg.data))
            if len(bids[task]) == bidders:
                closed[task].set_result(None)

    async def on_done(msg: Msg) -> None:
        waiter = finished.pop(json.loads(msg.data)["task"], None)
        if waiter:
            waiter.set_result(None)

    await nc.subscribe(inbox + ".*", cb=on_bid)
    await nc.subscribe(done, cb=on_done)

    async def negotiate(msg: Msg) -> None:
        began = time.perf_counter()
        body = json.loads(msg.data)
        task = body["id"]
        finished[task] = end = loop.create_future()
        if body["spot"]:
            winner = hash(task) % bidders
        else:
            closed[task], bids[task] = loop.create_future(), []
            await nc.publish("cap.x", msg.data, reply=f"{inbox}.{task}")
            await closed[task]
            del closed[task]
            winner = min(bids.pop(task), key=lambda b: (b["price"], hash((task, b["worker"]))))["worker"]
        award = json.dumps({"task": task, "done": done, "input": body.get("input")}).encode()
        awarded = nc.request(f"worker.{winner}.award", award, timeout=30)
        status = js.publish(f"result.t.{task}.status", b'{"awarded":1}', headers=dict(FIRST))
        if body.get("at_once"):
            await asyncio.gather(awarded, status)
        else:
            await status
            await awarded
        final = json.dumps({"negotiation_ms": (time.perf_counter() - began) * 1e3}).encode()
        await end
        await js.publish(f"result.t.{task}.final", final, headers=dict(FIRST))
        await msg.ack()

    sub = await js.pull_subscribe("task.>", durable="negotiator", stream="TASKS")
    print("ready", flush=True)
    while True:
        try:
            # Longer than it is ever idle: a task that comes as a fetch ends is delivered to nobody for half a minute.
            batch = await sub.fetch(64, timeout=300)
        except NatsTimeout:
            continue
        for msg in batch:
            keep(asyncio.create_task(negotiate(msg)), running)


def keep(task: asyncio.Task[None], running: set[asyncio.Task[None]]) -> None:
    """Until it is done: the event loop does not."""
    running.add(task)
    task.add_done_callback(running.discard)


async def echo(_: int) -> None:
    """The other end of a bare round trip."""
    nc = await nats.connect(URL)

    async def answer(msg: Msg) -> None:
        await msg.respond(msg.data)

    await nc.subscribe("echo", cb=answer)
    await nc.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


class FloorClient:
    """Submits tasks and waits for their Finals."""

    def __init__(self, nc: Client) -> None:
        self._nc, self._js = nc, nc.jetstream()
        self._finals: dict[str, asyncio.Future[Any]] = {}
        self._readers: dict[str, Callable[[Any], None]] = {}

    async def prepare(self) -> None:
        """Make the streams; to be called before the other parts start."""
        await self._js.add_stream(StreamConfig(name="TASKS", subjects=["task.>"], retention=RetentionPolicy.WORK_QUEUE))
        await self._js.add_stream(StreamConfig(name="RESULTS", subjects=["result.>"]))

        await self.listen()

    async def listen(self) -> None:
        """Hear of the tasks to be submitted."""

        async def on_result(msg: Msg) -> None:
            _, _, task, event, *_ = msg.subject.split(".")
            if event == "final":
                self._finals.pop(task).set_result(json.loads(msg.data))
            elif event == "delta":
                self._readers[task](json.loads(msg.data))

        await self._nc.subscribe("result.t.>", cb=on_result)
        await self._nc.flush()

    async def task(self, *, spot: bool) -> None:
        """One task, to its Final."""
        await self._submit({"x": "y" * 200, "spot": spot})

    async def stream(self, value: dict[str, Any], read: Callable[[Any], None]) -> float:
        """One task, to its Final, which `read` is told the deltas of: the milliseconds from intake to Confirm."""
        final = await self._submit({"input": value, "spot": False, "at_once": True}, read)
        return float(final["negotiation_ms"])

    async def _submit(self, body: dict[str, Any], read: Callable[[Any], None] = lambda _: None) -> Any:
        task = uuid.uuid4().hex
        self._finals[task] = end = asyncio.get_running_loop().create_future()
        self._readers[task] = read
        data = json.dumps({"id": task, **body}).encode()
        await self._js.publish("task.t.x", data, headers={"Nats-Msg-Id": task})
        try:
            return await asyncio.wait_for(end, 60)
        finally:
            del self._readers[task]


if __name__ == "__main__":
    parts: dict[str, Callable[[int], Awaitable[None]]] = {"worker": worker, "negotiator": negotiator, "echo": echo}

    async def run() -> None:
        await parts[sys.argv[1]](int(sys.argv[2]))

    uvloop.run(run())
