"""The network's tools over streamable HTTP, with the SDK's client: of the newest protocol, and of the one before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ToolListChangedNotification

from modelnet.agents import mcp_tools
from modelnet.agents.mcp_tools import META
from modelnet.agents.tool_names import tool_name
from tests.agents.conftest import Door, Worker, soon
from tests.network.stage import PATIENCE_S, Network, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODES = ["auto", "legacy"]
"""The protocol of 2026-07-28, without sessions; and the handshake of 2025-11-25."""


@asynccontextmanager
async def client(door: Door, mode: str = "auto", tenant: str = "default", **options: Any) -> AsyncIterator[Client]:
    """The SDK's client, with a tenant's key."""
    async with (
        httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {await door.key(tenant)}"},
            timeout=PATIENCE_S,
            limits=httpx2.Limits(max_connections=None),
        ) as http,
        Client(streamable_http_client(f"{door.url}/mcp", http_client=http), mode=mode, **options) as found,
    ):
        yield found


async def offered(net: Client, name: str) -> None:
    """Wait until a tool is among those that are offered."""
    async with asyncio.timeout(PATIENCE_S), net.listen(tools_list_changed=True) as changes:
        events = aiter(changes)
        while name not in [tool.name for tool in (await net.list_tools(cache_mode="refresh")).tools]:
            await anext(events)


@pytest.mark.parametrize("mode", MODES)
async def test_capabilities_are_tools_with_their_contracts(door: Door, mode: str) -> None:
    async with client(door, mode) as net:
        assert net.server_capabilities.tools is not None
        assert net.server_capabilities.tools.list_changed
        listed = await net.list_tools()
        again = await net.list_tools(cache_mode="refresh")
    tools = {tool.name: tool for tool in listed.tools}
    assert [tool.name for tool in listed.tools] == [tool.name for tool in again.tools] == sorted(tools)
    upper = tools["text__upper"]
    assert (upper.title, upper.description) == ("text.upper", "Capitals.")
    assert upper.input_schema["required"] == ["text"]
    assert upper.output_schema is not None
    assert upper.output_schema["properties"]["text"] == {"type": "string"}
    assert tools["test__steps"].input_schema == {"type": "object"}
    assert tools["test__steps"].output_schema is None
    assert "test__lists__items_of" in tools


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_is_a_task_and_its_output_the_result(door: Door, mode: str) -> None:
    async with client(door, mode) as net:
        result = await net.call_tool("text__upper", {"text": "hey"})
    assert not result.is_error
    assert result.structured_content == {"text": "HEY"}
    assert [block.text for block in result.content if block.type == "text"] == ['{"text": "HEY"}']
    assert result.meta is not None
    assert result.meta[META + "worker"] == "doors"
    assert result.meta[META + "price"] == 2


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_task_streams_is_progress(door: Door, mode: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with client(door, mode) as net:
        await net.call_tool("test__steps", {}, progress_callback=on_progress)
        steps, seen = seen, []
        result = await net.call_tool("text__generate", {"prompt": "count"}, progress_callback=on_progress)
    assert steps == [(0.25, 1.0, "a quarter"), (0.75, 1.0, None)]
    assert "".join(message or "" for _, _, message in seen) == "one two"
    assert result.structured_content == {"text": "one two", "finish_reason": "stop"}


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_fails_says_so_in_its_result(door: Door, mode: str) -> None:
    async with client(door, mode) as net:
        rejected = await net.call_tool("test__reject", {})
        broken = await net.call_tool("text__upper", {"txt": "hey"})
        poor = await net.call_tool("text__upper", {"text": "hey"}, meta=cast("Any", {META + "budget": 1}))
        odd = await net.call_tool("text__upper", {"text": "hey"}, meta=cast("Any", {META + "budget": -1}))
    found = [rejected, broken, poor, odd]
    assert all(result.is_error and result.structured_content is None for result in found)
    codes = [(result.meta or {})[META + "code"] for result in found]
    assert codes == ["not_today", "contract_violation", "over_budget", "malformed"]
    assert rejected.content[0].type == "text"
    assert rejected.content[0].text == "not today [not_today]"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["nothing__here", "text.upper", "TEXT", "", "normalize__", "x" * 300])
async def test_a_tool_that_is_unknown_is_an_error_of_the_protocol(door: Door, mode: str, name: str) -> None:
    async with client(door, mode) as net:
        with pytest.raises(MCPError) as raised:
            await net.call_tool(name, {})
    assert raised.value.code == INVALID_PARAMS
    assert "Unknown tool" in raised.value.message


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_is_cancelled_cancels_its_task(door: Door, worker: Worker, mode: str) -> None:
    async with client(door, mode) as net:
        call = asyncio.create_task(net.call_tool("test__slow", {"text": "x"}))
        task = await soon(worker.started)
        call.cancel()
        assert await soon(worker.stopped) == task
        # The connection serves on.
        assert (await net.call_tool("text__upper", {"text": "a"})).structured_content == {"text": "A"}


@pytest.mark.parametrize("mode", ["auto"])
async def test_a_client_that_disconnects_cancels_its_task(door: Door, worker: Worker, mode: str) -> None:
    """In the protocol before, a lost connection is no cancel."""
    async with httpx.AsyncClient() as http:
        body = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {
                "name": "test__slow",
                "arguments": {"text": "x"},
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientCapabilities": {},
                },
            },
        }
        named = {"Mcp-Method": "tools/call", "Mcp-Name": "test__slow"}
        request = http.build_request("POST", f"{door.url}/mcp", json=body, headers=await headers(door) | named)
        sending = asyncio.create_task(http.send(request, stream=True))
        task = await soon(worker.started)
        sending.cancel()
        assert await soon(worker.stopped) == task


async def test_a_session_that_is_deleted_cancels_its_calls(door: Door, worker: Worker) -> None:
    async with client(door, "legacy") as net:
        call = asyncio.create_task(net.call_tool("test__slow", {"text": "x"}))
        task = await soon(worker.started)
        call.add_done_callback(lambda done: done.cancelled() or done.exception())
    assert await soon(worker.stopped) == task  # the client's end deletes its session


@pytest.mark.parametrize("mode", MODES)
async def test_a_hundred_calls_at_once_each_get_their_own(door: Door, worker: Worker, mode: str) -> None:
    heard: dict[int, list[str]] = {number: [] for number in range(100)}

    async with client(door, mode) as net:

        async def call(number: int) -> Any:
            async def on_progress(progress: float, total: float | None, message: str | None) -> None:
                heard[number].append(message or "")

            return await net.call_tool("test__slow", {"text": str(number)}, progress_callback=on_progress)

        calls = [asyncio.create_task(call(number)) for number in range(100)]
        for _ in range(100):
            begun = asyncio.create_task(soon(worker.started))
            await asyncio.wait({begun, *calls}, return_when=asyncio.FIRST_COMPLETED)
            assert [call.exception() or call.result() for call in calls if call.done()] == []
            await begun
        worker.gate.set()
        results = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)
    assert [result.structured_content for result in results] == [{"text": f"begun {n}"} for n in range(100)]
    assert heard == {number: ["begun ", "50%: half way", str(number)] for number in range(100)}


@pytest.mark.parametrize("mode", MODES)
async def test_clients_are_told_when_the_tools_change(door: Door, network: Network, mode: str) -> None:
    told = asyncio.Event()

    async def on_message(message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            told.set()

    late = network.worker(f"late-{mode}")
    late.capability(f"late.{mode}", contract={"input": {}, "output": {}})(lambda ctx, input: {})
    name = tool_name(f"late.{mode}")
    async with client(door, mode, message_handler=on_message) as net:
        if mode == "legacy":
            await network.join(late)
            await until(told)
            assert name in [tool.name for tool in (await net.list_tools()).tools]
            told.clear()
            await network.stop(late)
            await until(told)
        else:
            async with net.listen(tools_list_changed=True) as changes:
                await network.join(late)
                async with asyncio.timeout(PATIENCE_S):
                    await anext(aiter(changes))
                assert name in [tool.name for tool in (await net.list_tools()).tools]
                await network.stop(late)
                async with asyncio.timeout(PATIENCE_S):
                    await anext(aiter(changes))
        assert name not in [tool.name for tool in (await net.list_tools(cache_mode="refresh")).tools]


async def test_long_lists_come_in_pages(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_tools, "PAGE", 3)
    async with client(door) as net:
        names, cursor, pages = list[str](), None, 0
        while True:
            page = await net.list_tools(cursor=cursor)
            names += [tool.name for tool in page.tools]
            pages += 1
            if (cursor := page.next_cursor) is None:
                break
        with pytest.raises(MCPError) as raised:
            await net.list_tools(cursor="not.a.cursor")
    assert pages > 1
    assert names == sorted(set(names))
    assert "text__upper" in names
    assert raised.value.code == INVALID_PARAMS


async def test_a_task_is_the_tenants_whose_key_it_came_with(door: Door, network: Network) -> None:
    async with client(door, tenant="acme") as net:
        result = await net.call_tool("test__lists__items_of", {"a": [1, 2]})
    assert result.structured_content == {"tenant": "acme", "input": {"a": [1, 2]}}
    task = (result.meta or {})[META + "task"]
    assert (await network.client.task(task, tenant="acme").final()).tenant == "acme"


async def test_a_session_is_unknown_to_other_tenants(door: Door) -> None:
    ours = await headers(door, version="2025-11-25")
    begin = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{door.url}/mcp", json=begin, headers=ours)
        ours["Mcp-Session-Id"] = answer.headers["mcp-session-id"]
        theirs = ours | {"Authorization": (await headers(door, "thief"))["Authorization"]}
        assert (await http.post(f"{door.url}/mcp", json=listing, headers=ours)).status_code == 200
        assert (await http.post(f"{door.url}/mcp", json=listing, headers=theirs)).status_code == 404


async def headers(door: Door, tenant: str = "default", version: str = "2026-07-28") -> dict[str, str]:
    """What every request bears."""
    return {
        "Authorization": f"Bearer {await door.key(tenant)}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
    }


@pytest.mark.parametrize(
    ("changes", "body", "status"),
    [
        ({"Origin": "https://evil.example"}, "{}", 403),
        ({"Authorization": ""}, "{}", 401),
        ({}, "{", 400),
        ({}, "[]", 400),
        ({}, '{"jsonrpc": "2.0", "method": "notifications/none"}', 202),
        ({"MCP-Protocol-Version": "1999-01-01"}, '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}', 400),
        ({"Accept": "text/html"}, '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}', 406),
    ],
)
async def test_what_the_transport_must_refuse(door: Door, changes: dict[str, str], body: str, status: int) -> None:
    sent = await headers(door) | changes
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{door.url}/mcp", content=body, headers=sent)
    assert answer.status_code == status


async def test_a_page_of_this_machine_may_call(door: Door) -> None:
    sent = await headers(door) | {"Origin": "http://localhost:3000"}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{door.url}/mcp", content="{", headers=sent)
    assert answer.status_code == 400
