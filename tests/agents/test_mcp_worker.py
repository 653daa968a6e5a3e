"""An MCP server's tools on the network: started as a command, and at a URL; what it says and how it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modelnet import Client, TaskFailed
from modelnet.agents.mcp_worker import McpServer, ToolWorker
from modelnet.errors import ModelnetError, UsageError
from modelnet.messages import Beat, Final, Progress
from tests.agents.conftest import Door
from tests.agents.test_mcp_http import client, offered
from tests.cli.conftest import ROOT
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMMAND = (sys.executable, "-m", "tests.agents.mcp_server")


class Remote:
    """The server in a process of its own, at a port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; return once it listens."""
        self._process = await asyncio.create_subprocess_exec(
            *COMMAND, str(self.port), cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@pytest_asyncio.fixture(loop_scope="module", params=["command", "url"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[McpServer]:
    """The same server by either way."""
    if request.param == "command":
        yield McpServer(command=COMMAND)
        return
    remote = Remote()
    await remote.start()
    yield McpServer(url=remote.url)
    await remote.kill()


@asynccontextmanager
async def on_network(network: Network, server: McpServer, **options: Any) -> AsyncIterator[ToolWorker]:
    """Its worker on the network."""
    worker = ToolWorker(server, config=network.config, backoff_s=(0.1,), probe_s=0.2, **options)
    app = worker.app
    await app.start()
    try:
        yield worker
    finally:
        await app.stop()


async def test_tools_are_capabilities_with_their_contracts(network: Network, server: McpServer) -> None:
    async with on_network(network, server, price=7, slots=3) as worker:
        assert worker.worker.id == "mcp-odd_tools"
        [card] = [w.card for w in await network.client.workers() if w.card.worker == worker.worker.id]
        assert card.slots == 3
        assert {c.price for c in card.capabilities} == {7}
        assert {c.pattern for c in card.capabilities} == {
            f"mcp.odd_tools.{name}"
            for name in ("add", "picture", "weird_n_me", "weird_n_me-2", "count", "wait", "fail", "large", "die")
        }
        contracts = {c.capability: c for c in await network.client.contracts()}
        add = contracts["mcp.odd_tools.add"]
        assert add.description == "Add two numbers."
        assert set(add.input["required"]) == {"a", "b"}
        run = network.client.run
        assert await run("mcp.odd_tools.add", {"a": 1, "b": 2}) == {"result": 3}
        assert await run("mcp.odd_tools.weird_n_me", {}) == {"result": "weird"}
        assert await run("mcp.odd_tools.weird_n_me-2", {}) == {"result": "weird too"}
        picture = await run("mcp.odd_tools.picture", {"name": "it"})
        assert picture["text"] == "this is it"
        assert [block["type"] for block in picture["content"]] == ["text", "image"]
        large = await run("mcp.odd_tools.large", {"size": 600_000})
        assert large == {"result": "x" * 600_000}


async def test_progress_is_passed_on(network: Network, server: McpServer) -> None:
    async with on_network(network, server, prefix="mcp.steps", name="steps"):
        task = await network.client.submit("mcp.steps.count", {"to": 4})
        said = [(e.fraction, e.note) async for e in task.stream() if isinstance(e, Progress)]
        assert (await task.final()).output == {"result": "counted to 4"}
    assert said == [(0.25, "at 1"), (0.5, "at 2"), (0.75, "at 3"), (1.0, "at 4")]


async def test_a_cancel_reaches_the_tool(network: Network, server: McpServer, tmp_path: Path) -> None:
    async with on_network(network, server, prefix="mcp.cancel", name="cancel"):
        task = await network.client.submit("mcp.cancel.wait", {"folder": str(tmp_path)})
        async for event in task.stream():
            if isinstance(event, Progress):
                await task.cancel()
        assert (await task.final()).status == "cancelled"
        async with asyncio.timeout(PATIENCE_S):
            while not (tmp_path / "cancelled").exists():  # noqa: ASYNC110 - another process leaves it
                await asyncio.sleep(0.02)


async def test_errors_say_whose_they_are(network: Network, server: McpServer) -> None:
    async with on_network(network, server, prefix="mcp.errors", name="errors"):
        with pytest.raises(TaskFailed) as failed:
            await network.client.run("mcp.errors.fail", {})
        with pytest.raises(TaskFailed) as broken:
            await network.client.run("mcp.errors.add", {"a": "one", "b": 2})
    assert failed.value.wire_code == "tool_error"
    assert broken.value.wire_code == "contract_violation"


async def test_a_hundred_calls_at_once(network: Network, server: McpServer) -> None:
    async with on_network(network, server, prefix="mcp.many", name="many", slots=100):
        finals = await asyncio.gather(*(ended(network.client, "mcp.many.count", {"to": n % 7}) for n in range(100)))
    assert [final.output for final in finals] == [{"result": f"counted to {n % 7}"} for n in range(100)]


async def ended(client: Client, capability: str, input: dict[str, Any]) -> Final:
    """Submit and wait."""
    return await (await client.submit(capability, input)).final()


async def test_a_command_that_dies_is_started_again(network: Network) -> None:
    async with on_network(network, McpServer(command=COMMAND), prefix="mcp.dies", name="dies"):
        final = await ended(network.client, "mcp.dies.die", {})
        assert final.error is not None
        assert final.error.code == "upstream_away"
        # It waits until the worker bids again.
        assert await network.client.run("mcp.dies.add", {"a": 1, "b": 2}) == {"result": 3}


async def test_a_command_that_is_killed_while_idle_is_noticed(network: Network, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        f"import os; open({str(note)!r}, 'w').write(str(os.getpid())); from tests.agents.mcp_server import server; "
    )
    command = (sys.executable, "-c", script + "server.run()")
    async with on_network(network, McpServer(command=command), prefix="mcp.idle", name="idle"):
        async with network.ear("beat.idle") as ear:
            os.kill(int(note.read_text()), signal.SIGKILL)
            await ear.until(lambda heard: any(Beat.decode(msg.data).draining for msg in heard))
            await ear.until(lambda heard: not Beat.decode(heard[-1].data).draining)
        assert await network.client.run("mcp.idle.add", {"a": 1, "b": 2}) == {"result": 3}


async def test_a_server_that_is_away_takes_nothing_until_it_is_back(network: Network) -> None:
    remote = Remote()
    await remote.start()
    async with on_network(network, McpServer(url=remote.url), prefix="mcp.away", name="away"):
        async with network.ear("beat.away") as ear:
            await remote.kill()
            await ear.until(lambda heard: any(Beat.decode(msg.data).draining for msg in heard))
            task = await network.client.submit("mcp.away.add", {"a": 1, "b": 2})
            await remote.start()
            assert (await task.final()).output == {"result": 3}
        assert (await task.final()).attempts == 1
    await remote.kill()


async def test_what_cannot_be_started_or_has_no_tools_never_joins(network: Network) -> None:
    empty = "from mcp.server import MCPServer; MCPServer('empty').run()"
    refused = {
        ("no-such-command",): "no_upstream",
        ("false",): "no_upstream",
        (sys.executable, "-c", empty): "no_tools",
    }
    for command, code in refused.items():
        worker = ToolWorker(McpServer(command=command), config=network.config, name="never")
        with pytest.raises(ModelnetError) as raised:
            await worker.app.start()
        assert raised.value.wire_code == code
        assert command[0] in raised.value.message
    assert "never" not in {w.card.worker for w in await network.client.workers()}
    with pytest.raises(UsageError):
        ToolWorker(McpServer(command=COMMAND), prefix="Not A Capability")


async def test_out_and_in_again(network: Network, door: Door) -> None:
    """A server's tools through the network's own door: MCP on both sides."""
    heard: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    server = McpServer(command=COMMAND)
    async with on_network(network, server, prefix="mcp.round", name="round"), client(door) as net:
        await offered(net, "mcp__round__count")
        result = await net.call_tool("mcp__round__count", {"to": 3}, progress_callback=on_progress)
    assert result.structured_content == {"result": "counted to 3"}
    assert heard == ["at 1", "at 2", "at 3"]
