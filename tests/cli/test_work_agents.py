"""`modelnet work --mcp`, `--mcp-url` and `--a2a`: what they say when they cannot begin, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from a2a.client import A2ACardResolver
from mcp import Client

from tests.cli.conftest import MODELNET, ROOT, Run

SERVER = f"{shlex.quote(sys.executable)} -m tests.agents.mcp_server"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name one thing"),
        (["examples/upper.py", "--mcp", "x"], "name one thing"),
        (["--mcp", "x", "--a2a", "http://x"], "name one thing"),
        (["--mcp", ""], "names no command"),
        (["--mcp", "'unclosed"], "No closing quotation"),
        (["--mcp", "x", "--header", "A: b"], "takes no headers"),
        (["--mcp", "x", "--capability", "Not One"], "is no capability"),
        (["--mcp", "x", "--capability", "a.b", "--capability", "a.c"], "one --capability"),
        (["--mcp-url", "example.com"], "is no URL"),
        (["--a2a", "example.com"], "is no URL"),
        (["--a2a", "http://127.0.0.1:1", "--header", "nonsense"], "is no header"),
        (["--a2a", "http://127.0.0.1:1", "--capability", "a..b"], "is no capability"),
        (["--nats-agent", "x", "--a2a", "http://x"], "name one thing"),
        (["--nats-agent", "x", "--header", "A: b"], "takes no headers"),
        (["--nats-agent", "x", "--capability", "a..b"], "is no capability"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_started(modelnet: Run, args: list[str], message: str) -> None:
    done = modelnet("work", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_help_names_them(modelnet: Run) -> None:
    shown = modelnet("work", "--help", env={"COLUMNS": "200"}).stdout
    assert all(
        option in shown
        for option in ("--mcp ", "--mcp-url", "--a2a", "--nats-agent", "--capability", "--price", "--header")
    )


class Command:
    """`modelnet work …` in a process of its own."""

    def __init__(self, network: dict[str, str], *args: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("MODELNET_")} | network
        env |= {"MODELNET_LOG_LEVEL": "info", "MODELNET_LOG_FORMAT": "json"}
        self.process = subprocess.Popen(
            [*MODELNET, "work", *args], cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def until(self, event: str) -> None:
        """Wait for an event in its log."""
        assert self.process.stderr is not None
        assert any(event in line for line in self.process.stderr), f"it ended before {event}"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--mcp", "no-such-command --at-all"], "error: the MCP server no-such-command --at-all: "),
        (["--mcp", "false"], "error: the MCP server false: "),
        (["--mcp-url", "http://127.0.0.1:1/mcp"], "error: the MCP server http://127.0.0.1:1/mcp: "),
        (["--a2a", "http://127.0.0.1:1"], "error: the A2A agent http://127.0.0.1:1: "),
        (["--nats-agent", "nobody"], "error: no NATS agent 'nobody' answers; there are: none"),
    ],
    ids=["no command", "ends at once", "no server", "no agent", "no such agent"],
)
def test_what_cannot_be_reached_is_told_before_it_joins(network: dict[str, str], args: list[str], error: str) -> None:
    done = Command(network, *args).process
    out, err = done.communicate(timeout=60)
    assert done.returncode == 1
    assert out == ""
    assert error in err
    assert "[no_upstream]" in err
    assert "Traceback" not in err
    assert "worker_joined" not in err


def test_up_opens_the_doors_of_agents(network: dict[str, str]) -> None:
    url = network["MODELNET_GATEWAY_URL"]

    async def come_in() -> tuple[object, list[str]]:
        async with Client(f"{url}/mcp") as tools:
            called = await tools.call_tool("text__upper", {"text": "hey"})
        async with httpx.AsyncClient() as http:
            card = await A2ACardResolver(http, url).get_agent_card()
        return called.structured_content, [skill.id for skill in card.skills]

    answer, skills = asyncio.run(come_in())
    assert answer == {"text": "HEY"}
    assert {"text.upper", "math.sum", "test.stream"} <= set(skills)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tools_join_answer_and_leave(network: dict[str, str], modelnet: Run, number: signal.Signals) -> None:
    name = f"tools-{number.name.lower()}"
    work = Command(network, "--mcp", SERVER, "--capability", f"mcp.{name}", "--name", name, "--price", "3")
    work.until("workers_joined")
    [found] = [
        one for one in map(json.loads, modelnet("workers", "--json").stdout.splitlines()) if one["worker"] == name
    ]
    assert f"mcp.{name}.add" in found["capabilities"]
    done = modelnet("submit", f"mcp.{name}.add", "--input", '{"a": 1, "b": 2}')
    assert json.loads(done.stdout) == {"result": 3}
    assert f"by {name}, price 3" in done.stderr
    work.process.send_signal(number)
    _, err = work.process.communicate(timeout=30)
    assert work.process.returncode == 0
    assert "worker_left" in err
    assert name not in modelnet("workers", "--json").stdout


def test_a_call_that_runs_is_finished_before_it_leaves(network: dict[str, str], modelnet: Run, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = tmp_path / "server.py"
    script.write_text(
        "from mcp.server import MCPServer\n"
        "server = MCPServer('gate', log_level='CRITICAL')\n"
        "@server.tool()\n"
        "def wait(gate: str) -> str:\n"
        "    with open(gate, 'w') as told: told.write('here')\n"
        "    return open(gate).read()\n"
        "server.run()\n"
    )
    work = Command(network, "--mcp", f"{shlex.quote(sys.executable)} {script}", "--capability", "mcp.drained")
    work.until("workers_joined")
    task = modelnet("submit", "mcp.drained.wait", "--input", json.dumps({"gate": str(gate)}), "--detach").stdout.strip()
    assert gate.read_text() == "here"  # it runs
    work.process.send_signal(signal.SIGTERM)
    opened = threading.Thread(target=gate.write_text, args=("done",), daemon=True)
    opened.start()
    assert json.loads(modelnet("result", task).stdout) == {"result": "done"}
    work.process.communicate(timeout=30)
    assert work.process.returncode == 0
