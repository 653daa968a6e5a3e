"""`modelnet mcp` in a process of its own, as a host starts it: with the SDK's client, and by hand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp_types import ToolListChangedNotification

from tests.agents.conftest import Worker, soon
from tests.agents.test_mcp_http import offered
from tests.cli.conftest import MODELNET, ROOT
from tests.network.stage import PATIENCE_S, Network, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODES = ["auto", "legacy"]


def environment(network: Network) -> dict[str, str]:
    """Points the command at the network of the test."""
    config = network.config
    return {
        "MODELNET_URL": config.url,
        "MODELNET_BEAT_S": str(config.beat_s),
        "MODELNET_MISSED_BEATS": str(config.missed_beats),
    }


def client(network: Network, mode: str, **options: Any) -> Client:
    """The SDK's client, which starts the command."""
    command, *args = [*MODELNET, "mcp"]
    started = StdioServerParameters(command=command, args=args, env=environment(network), cwd=ROOT)
    return Client(started, mode=mode, **options)


@pytest.mark.parametrize("mode", MODES)
async def test_the_clients_whole_round(network: Network, worker: Worker, mode: str) -> None:
    seen: list[str | None] = []
    told = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(message)

    async def on_message(message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            told.set()

    late = network.worker(f"stdio-{mode}")
    late.capability(f"stdio.{mode}", contract={"input": {}, "output": {}})(lambda ctx, input: {})
    async with client(network, mode, message_handler=on_message) as net:
        assert "text__upper" in [tool.name for tool in (await net.list_tools()).tools]
        result = await net.call_tool("text__generate", {"prompt": "go"}, progress_callback=on_progress)
        assert result.structured_content == {"text": "one two", "finish_reason": "stop"}
        assert "".join(message or "" for message in seen) == "one two"
        assert (await net.call_tool("test__reject", {})).is_error

        call = asyncio.create_task(net.call_tool("test__slow", {"text": "x"}))
        task = await soon(worker.started)
        call.cancel()
        assert await soon(worker.stopped) == task

        if mode == "legacy":
            await network.join(late)
            await until(told)
        else:
            async with net.listen(tools_list_changed=True) as changes, asyncio.timeout(PATIENCE_S):
                await network.join(late)
                await anext(aiter(changes))


async def test_a_hundred_calls_at_once(network: Network, worker: Worker) -> None:
    async with client(network, "auto") as net:
        await offered(net, "test__slow")
        calls = [asyncio.create_task(net.call_tool("test__slow", {"text": str(n)})) for n in range(100)]
        for _ in range(100):
            await soon(worker.started)
        worker.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)
        assert [a.structured_content for a in answers] == [{"text": f"begun {n}"} for n in range(100)]


class Host:
    """The command, spoken to by hand."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout

    @classmethod
    async def start(cls, network: Network, **env: str) -> Host:
        """Start it."""
        process = await asyncio.create_subprocess_exec(
            *MODELNET,
            "mcp",
            env={**os.environ, **environment(network), **env},
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(process)

    async def say(self, line: str) -> None:
        """Write a line."""
        self.stdin.write(line.encode() + b"\n")
        await self.stdin.drain()

    async def ask(self, id: int, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a request."""
        await self.say(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
        while True:
            line = await asyncio.wait_for(self.stdout.readline(), PATIENCE_S)
            answer: dict[str, Any] = json.loads(line)  # nothing else may stand there
            assert answer["jsonrpc"] == "2.0"
            if answer.get("id") == id:
                return answer

    async def shake_hands(self) -> None:
        """As a client of 2025-11-25."""
        info = {"name": "test", "version": "1"}
        answer = await self.ask(1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info)
        assert answer["result"]["serverInfo"]["name"] == "modelnet"
        await self.say('{"jsonrpc": "2.0", "method": "notifications/initialized"}')


async def test_nothing_but_the_protocol_on_stdout(network: Network, worker: Worker) -> None:
    host = await Host.start(network, MODELNET_LOG_LEVEL="debug", MODELNET_LOG_FORMAT="console")
    await host.shake_hands()
    for garbage in ("", "garbage", "{", "[1, 2]", '{"jsonrpc": "2.0"}', "\x00\xff", "x" * 100_000):
        await host.say(garbage)
    assert (await host.ask(2, "tools/list"))["result"]["tools"]
    assert (await host.ask(3, "no/such/method"))["error"]["code"] == -32601
    assert (await host.ask(4, "tools/call", arguments={}))["error"]["code"] == -32602
    called = await host.ask(5, "tools/call", name="text__upper", arguments={"text": "a"})
    assert called["result"]["structuredContent"] == {"text": "A"}
    host.stdin.close()
    rest = await asyncio.wait_for(host.stdout.read(), PATIENCE_S)
    for line in rest.splitlines():
        assert json.loads(line)["jsonrpc"] == "2.0"
    assert await host.process.wait() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_it_and_cancels_what_runs(
    network: Network, worker: Worker, number: signal.Signals, code: int
) -> None:
    host = await Host.start(network)
    await host.shake_hands()
    call = {"name": "test__slow", "arguments": {"text": "x"}}
    await host.say(json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}))
    task = await soon(worker.started)
    host.process.send_signal(number)
    assert await soon(worker.stopped) == task
    assert await asyncio.wait_for(host.process.wait(), PATIENCE_S) == code


async def test_the_end_of_the_input_cancels_what_runs(network: Network, worker: Worker) -> None:
    host = await Host.start(network)
    await host.shake_hands()
    call = {"name": "test__slow", "arguments": {"text": "x"}}
    await host.say(json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}))
    task = await soon(worker.started)
    host.stdin.close()
    assert await soon(worker.stopped) == task
    assert await asyncio.wait_for(host.process.wait(), PATIENCE_S) == 0


async def test_a_host_that_is_killed_leaves_no_task_behind(network: Network, worker: Worker) -> None:
    """The command is killed with its host, and says nothing more: the negotiator finds its client gone."""
    host = await Host.start(network)
    await host.shake_hands()
    call = {"name": "test__slow", "arguments": {"text": "x"}}
    await host.say(json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}))
    task = await soon(worker.started)
    host.process.kill()
    assert await asyncio.wait_for(worker.stopped.get(), PATIENCE_S) == task
    await host.process.wait()


async def test_without_a_network_it_says_so_on_stderr(network: Network, tmp_path: Path) -> None:
    host = await Host.start(network, MODELNET_URL="nats://127.0.0.1:1")
    out, err = await asyncio.wait_for(host.process.communicate(), PATIENCE_S)
    assert host.process.returncode == 1
    assert out == b""
    assert err.decode().startswith("error: no NATS server answers at nats://127.0.0.1:1")
    assert sys.executable not in err.decode()
