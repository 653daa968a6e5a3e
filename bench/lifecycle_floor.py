"""The floor under a durable task: the designed life cycle in raw nats-py, and nothing else.

Beside a nats-server of its own: a client (submit, wait for the Final), a negotiator (pull intake, request for bids,
close when all have bid, status by compare-and-set, award with confirm, output stored with an ack, Final by
compare-and-set, ack) and bidders, a process each, whose work is empty. JSON without schemas, no signatures, no
supervision: the real thing does more, and is measured as a multiple of this and of the bare request/reply, all in one
run: see bench/overhead.py. A task that says `spot` is awarded without asking for bids.

Run a part: python -m bench.lifecycle_floor worker|negotiator|echo NUMBER, with FLOOR_URL set.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from typing import Any

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import RetentionPolicy, StreamConfig

URL = os.environ.get("FLOOR_URL", "")
FIRST = {"Nats-Expected-Last-Subject-Sequence": "0"}


async def worker(number: int) -> None:
    """A bidder whose work is empty."""
    nc = await nats.connect(URL)
    js = nc.jetstream()

    async def bid(msg: Msg) -> None:
        await nc.publish(msg.reply, json.dumps({"worker": number, "price": number}).encode())

    async def award(msg: Msg) -> None:
        task = json.loads(msg.data)
        await msg.respond(b"confirm")
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
        await js.publish(f"result.t.{task}.status", b'{"awarded":1}', headers=dict(FIRST))
        await nc.request(f"worker.{winner}.award", json.dumps({"task": task, "done": done}).encode(), timeout=2)
        await end
        await js.publish(f"result.t.{task}.final", b'{"final":1}', headers=dict(FIRST))
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
            taken = asyncio.create_task(negotiate(msg))
            running.add(taken)
            taken.add_done_callback(running.discard)


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
        self._finals: dict[str, asyncio.Future[None]] = {}

    async def prepare(self) -> None:
        """Make the streams; to be called before the other parts start."""
        await self._js.add_stream(StreamConfig(name="TASKS", subjects=["task.>"], retention=RetentionPolicy.WORK_QUEUE))
        await self._js.add_stream(StreamConfig(name="RESULTS", subjects=["result.>"]))

        async def on_result(msg: Msg) -> None:
            if msg.subject.endswith(".final"):
                self._finals.pop(msg.subject.split(".")[2]).set_result(None)

        await self._nc.subscribe("result.t.>", cb=on_result)
        await self._nc.flush()

    async def task(self, *, spot: bool) -> None:
        """One task, to its Final."""
        task = uuid.uuid4().hex
        self._finals[task] = end = asyncio.get_running_loop().create_future()
        body = json.dumps({"id": task, "x": "y" * 200, "spot": spot}).encode()
        await self._js.publish("task.t.x", body, headers={"Nats-Msg-Id": task})
        await asyncio.wait_for(end, 30)


if __name__ == "__main__":
    part = {"worker": worker, "negotiator": negotiator, "echo": echo}[sys.argv[1]]
    uvloop.run(part(int(sys.argv[2])))
