"""What the gateway's clients see when a process dies, a server restarts, or they themselves are slow."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from modelnet.bus.embedded import EmbeddedNats, HeldPort
from modelnet.processes import ChildProcess
from tests.gateway.actor import Actor
from tests.gateway.doors import Gateway
from tests.network.stage import Network, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "wait"}], "stream": True}


@pytest_asyncio.fixture(loop_scope="module")
async def other(network: Network, tmp_path: Path) -> AsyncIterator[tuple[ChildProcess, Any]]:
    """A gateway in a process of its own, and a client of it."""
    held = HeldPort()
    address = f"127.0.0.1:{held.number}"
    env = {
        "MODELNET_URL": network.config.url,
        "MODELNET_REDIS_URL": network.config.redis_url,
        "MODELNET_GATEWAY_LISTEN": address,
        "MODELNET_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "modelnet.run", "workers.gateway:app"]
    process = ChildProcess("gateway", command, log_dir=tmp_path, env=env, ready=b"gateway_started", restart=False)
    await process.start()
    async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
        yield process, client
    await process.stop()
    held.release()


async def test_a_gateway_that_is_killed_ends_its_streams_and_its_tasks(
    other: tuple[ChildProcess, Any], actor: Actor
) -> None:
    process, client = other
    actor.begun.clear()
    actor.left.clear()
    stream = await client.chat.completions.create(**WAIT)
    assert (await anext(stream)).choices[0].delta.content == "begun "
    process.kill()
    with pytest.raises(openai.APIConnectionError):
        await anext(stream)
    await until(actor.left)  # negotiators ask for the client three times, a few seconds in all


async def test_what_a_killed_gateway_began_another_one_ends(
    other: tuple[ChildProcess, Any], client: Any, actor: Actor
) -> None:
    process, first = other
    actor.go_on.clear()
    ask = {**WAIT, "extra_headers": {"Idempotency-Key": "survives"}}
    stream = await first.chat.completions.create(**ask)
    assert (await anext(stream)).choices[0].delta.content == "begun "
    process.kill()
    again = await client.chat.completions.create(**ask)
    assert (await anext(again)).choices[0].delta.content == "begun "
    actor.go_on.set()
    assert (await anext(again)).choices[0].delta.content == "and done"
    assert again.response.headers["modelnet-task"] == stream.response.headers["modelnet-task"]


async def test_a_gateway_that_is_stopped_ends_what_it_has_begun(other: tuple[ChildProcess, Any], actor: Actor) -> None:
    process, client = other
    actor.go_on.clear()
    stream = await client.chat.completions.create(**WAIT)
    assert (await anext(stream)).choices[0].delta.content == "begun "
    stopping = asyncio.create_task(process.stop())
    actor.go_on.set()
    assert (await anext(stream)).choices[0].delta.content == "and done"
    await stopping


async def test_a_stream_goes_on_over_a_restart_of_the_server(
    client: Any, network: Network, nats_server: EmbeddedNats, actor: Actor
) -> None:
    actor.go_on.clear()
    back = asyncio.Event()
    network.on_reconnect = back.set
    stream = await client.chat.completions.create(**WAIT)
    assert (await anext(stream)).choices[0].delta.content == "begun "
    nats_server.kill()
    await until(back)
    actor.go_on.set()
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "and done"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_slow_reader_has_all_of_it_in_the_end_and_delays_nobody(gateway: Gateway, actor: Actor) -> None:
    text = " ".join(f"word{number}" for number in range(60_000))
    ask = {"messages": [{"role": "user", "content": text}], "stream": True}
    quick = {"messages": [{"role": "user", "content": "quick"}]}
    async with (
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=ask) as slow,
    ):
        lines = slow.aiter_lines()
        first = await anext(lines)
        for _ in range(5):  # nothing more of it is read meanwhile
            answer = await http.post("/v1/chat/completions", json=quick)
            assert answer.json()["choices"][0]["message"]["content"] == "quick"
        said = [first] + [line async for line in lines]
    events = [json.loads(line[6:]) for line in said if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text
    assert [line for line in said if line][-1] == "data: [DONE]"
