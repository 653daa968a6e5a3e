"""The room of agents in a gateway that stops, and on a network whose server restarts; and several gateways."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
from a2a.types.a2a_pb2 import GetTaskRequest, SubscribeToTaskRequest

from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis
from tests.agents.conftest import Door, Worker, soon
from tests.agents.test_a2a_agent import client as a2a_client
from tests.agents.test_a2a_agent import folded, responses, text, texts
from tests.agents.test_mcp_http import client as mcp_client
from tests.network.stage import PATIENCE_S, Network, fast

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_gateway_that_stops_finishes_calls_and_ends_streams_that_have_no_end(
    network: Network, worker: Worker, door: Door
) -> None:
    running = AsyncExitStack()
    gateway = await running.enter_async_context(door.again)
    async with mcp_client(gateway) as new, mcp_client(gateway, "legacy") as old:
        await new.list_tools()  # else it asks for them when it has its answer, of a gateway that is gone by then
        await old.list_tools()
        async with new.listen(tools_list_changed=True) as changes:
            call = asyncio.create_task(new.call_tool("test__slow", {"text": "x"}))
            await soon(worker.started)
            begun = time.monotonic()
            stopping = asyncio.create_task(running.aclose())
            async with asyncio.timeout(PATIENCE_S):
                assert [event async for event in changes] == []  # it ends, and not with an error
            worker.gate.set()
            assert (await call).structured_content == {"text": "begun x"}
            await stopping
            assert time.monotonic() - begun < 10  # of the 30 s that it would wait for open streams


async def test_any_gateway_answers_for_any_task(network: Network, worker: Worker, door: Door) -> None:
    async with (
        door.again as other,
        a2a_client(door, "JSONRPC") as net,
        a2a_client(other, "JSONRPC") as elsewhere,
        aclosing(responses(net, text("x", "test.slow"))) as told,
    ):
        id = (await anext(told)).task.id
        await soon(worker.started)
        subscribed = responses(elsewhere, SubscribeToTaskRequest(id=id))
        first = await anext(subscribed)
        assert texts(first.task) == texts(await elsewhere.get_task(GetTaskRequest(id=id))) == "begun "
        worker.gate.set()
        assert texts(folded([first, *[response async for response in subscribed]])) == "begun x"


async def test_a_server_that_restarts_is_got_over(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    async with Network(fast(server.url)) as network:
        await network.negotiator()
        worker = Worker(network)
        await network.join(worker.worker)
        config = network.config.model_copy(update={"redis_url": redis_server.url})
        async with Door(config) as gateway, mcp_client(gateway) as net:
            call = asyncio.create_task(net.call_tool("test__slow", {"text": "x"}))
            await soon(worker.started)
            await server.stop()
            await server.start()
            worker.gate.set()
            assert (await asyncio.wait_for(call, 2 * PATIENCE_S)).structured_content == {"text": "begun x"}
            assert (await net.call_tool("text__upper", {"text": "c"})).structured_content == {"text": "C"}
    await server.stop()
