"""The JavaScript worker and client in a network of Python processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from examples.shout import CONTRACT, shout
from modelnet.bus.embedded import EmbeddedNats
from modelnet.messages import Beat, Delta, Reset, digest_of
from tests.network.stage import Network, fast

HERE = Path(__file__).parent
VALUES = [
    {"b": 1, "a": [True, None, "x"]},
    {"n": [0.1, 1.5, 0.0001, 0.00012, 0.00001, 1.5e-7, 1e-300, 1e15, 1e16, 1e21, 1.5e300, -2.5e-9, -0.0, 2**53]},
    {"\U0001f600": 1, "\uff5e": 2, "é": 3, "e": 4},
    {"s": '" \\ / \b\f\n\r\t \x01 \x7f \u2028 é \U0001f600'},
    {},
]
TEXT = "a worker in javascript says this word by word"


@pytest_asyncio.fixture
async def network(nats_server: EmbeddedNats) -> AsyncIterator[Network]:
    """One negotiator, and no worker yet."""
    async with Network(fast(nats_server.url)) as network:
        await network.negotiator()
        yield network


@contextlib.asynccontextmanager
async def javascript(network: Network, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The worker in JavaScript, once it has joined."""
    env = {**os.environ, "MODELNET_URL": network.config.url}
    async with network.ear("beat.shouter-mjs") as beats:
        process = await asyncio.create_subprocess_exec("node", str(folder / "worker.mjs"), env=env)
        await beats.next()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_it_wins_streams_and_leaves(network: Network, node_examples: Path) -> None:
    async with javascript(network, node_examples) as worker:
        task = await network.client.submit("text.shout", {"text": TEXT, "pause_ms": 1})
        words = [event.text async for event in task.stream() if isinstance(event, Delta)]
        final = await task.result()
        assert "".join(words) == TEXT.upper() == (final.output or {})["text"]
        assert (final.worker, final.price) == ("shouter-mjs", 2)
        async with network.ear("beat.shouter-mjs") as beats:
            worker.terminate()
            await beats.next(lambda msg: Beat.decode(msg.data).leaving)
        assert await worker.wait() == 0
    assert await network.client.catalogue.card("shouter-mjs") is None


async def test_python_goes_on_where_javascript_was_killed(network: Network, node_examples: Path) -> None:
    async with javascript(network, node_examples) as worker:
        task = await network.client.submit("text.shout", {"text": TEXT, "pause_ms": 100}, deadline_s=30)
        events = []
        async for event in task.stream():
            events.append(event)
            if isinstance(event, Delta) and event.number == 3 and worker.returncode is None:
                python = network.worker("shouter-py")
                python.capability("text.shout", contract=CONTRACT, price=2, continues=True)(shout)
                await network.join(python)
                worker.kill()
                await worker.wait()
        final = await task.result()
    assert (final.worker, final.attempts) == ("shouter-py", 2)
    assert (final.output or {})["text"] == TEXT.upper() == task.text
    assert not any(isinstance(event, Reset) for event in events)


async def test_its_client_submits_to_a_python_worker(network: Network, node_examples: Path) -> None:
    python = network.worker("shouter-py")
    python.capability("text.shout", contract=CONTRACT, price=2, continues=True)(shout)
    await network.join(python)
    env = {**os.environ, "MODELNET_URL": network.config.url}
    command = ["node", str(node_examples / "client.mjs"), "submit", "text.shout", "--json", "--input"]
    process = await asyncio.create_subprocess_exec(
        *command, json.dumps({"text": TEXT, "pause_ms": 1}), env=env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    shown = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0
    assert "".join(event["text"] for event in shown if event["kind"] == "delta") == TEXT.upper()
    assert shown[-1]["output"] == {"text": TEXT.upper()}


async def test_its_digests_are_those_that_python_makes_of_what_it_writes(node_examples: Path) -> None:
    script = node_examples / "digests.mjs"
    script.write_text((HERE / script.name).read_text())
    process = await asyncio.create_subprocess_exec(
        "node", str(script), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate("".join(json.dumps(value) + "\n" for value in VALUES).encode())
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == len(VALUES)
    for written, digest in found:
        assert digest == digest_of(json.loads(written)), written
