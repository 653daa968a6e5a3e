"""An A2A agent on the network: its skills, its streams, its refusals, and how it goes and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from modelnet import TaskFailed
from modelnet.agents.a2a_worker import CONTRACT, SkillWorker
from modelnet.errors import ModelnetError, UsageError
from modelnet.messages import Beat, Delta, Progress
from tests.agents.a2a_agent import SKILLS, Agent
from tests.agents.conftest import Door, soon
from tests.agents.test_a2a_agent import client as a2a_client
from tests.agents.test_a2a_agent import data, folded, stream, text, texts
from tests.agents.test_mcp_http import client as mcp_client
from tests.agents.test_mcp_http import offered
from tests.network.stage import Network

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The SDK's server leaves tasks behind when it is stopped.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@asynccontextmanager
async def on_network(network: Network, agent: Agent, **options: Any) -> AsyncIterator[SkillWorker]:
    """The agent's worker on the network."""
    options = {"headers": {"X-Key": "secret"}, "prefix": "a2a.odd", "backoff_s": (0.1,), "probe_s": 0.2, **options}
    worker = SkillWorker(agent.url, config=network.config, **options)
    app = worker.app
    await app.start()
    try:
        yield worker
    finally:
        await app.stop()


@pytest_asyncio.fixture(loop_scope="module", params=["streaming", "rest", "polling"])
async def agent(request: pytest.FixtureRequest) -> AsyncIterator[Agent]:
    """Agents of all kinds."""
    binding = "HTTP+JSON" if request.param == "rest" else "JSONRPC"
    async with Agent(streaming=request.param != "polling", binding=binding) as agent:
        yield agent


async def test_skills_are_capabilities(network: Network, agent: Agent) -> None:
    async with on_network(network, agent, prefix=None, price=5, slots=2) as worker:
        assert worker.worker.id == "a2a-odd_agent"
        [card] = [w.card for w in await network.client.workers() if w.card.worker == worker.worker.id]
        contracts = {c.capability: c for c in await network.client.contracts()}
        answer = await network.client.run("a2a.odd_agent.echo_text", {"text": "one two"})
    assert card.slots == 2
    assert {c.price for c in card.capabilities} == {5}
    names = {"echo_text", "data", "wait", "fail", "reject", "ask", "message", "file", "drop"}
    assert {c.pattern for c in card.capabilities} == {f"a2a.odd_agent.{name}" for name in names}
    assert len(names) == len(SKILLS)
    assert contracts["a2a.odd_agent.data"].description == "Does data."
    assert contracts["a2a.odd_agent.data"].input == CONTRACT["input"]
    assert answer["text"] == "one two "
    assert answer["context"]
    assert agent.executor.metadata == [{"skill": "Echo Text"}]


async def test_answers_of_every_kind(network: Network, agent: Agent) -> None:
    async with on_network(network, agent):
        run = network.client.run
        given = {"a": [1, 2], "b": {"c": None}}
        answer = await run("a2a.odd.data", {"text": "look", "data": given})
        assert (answer["text"], answer["data"]) == ("here", [given, [1, 2.5]])
        assert (await run("a2a.odd.message", {"text": "hi"}))["text"] == "you said hi"
        files = (await run("a2a.odd.file", {"text": "x"}))["files"]
        assert await network.client.fetch(files[0]) == b"\x00\x01"
        assert files[0]["name"] == "a.x"
        assert files[1]["url"] == "https://x.example/b"


@pytest.mark.parametrize("kind", ["JSONRPC", "HTTP+JSON"])
async def test_text_streams_and_status_is_progress(network: Network, kind: str) -> None:
    async with Agent(binding=kind) as agent, on_network(network, agent):
        task = await network.client.submit("a2a.odd.wait", {"text": "end"})
        await soon(agent.executor.waiting)
        seen = []
        async for event in task.stream():
            seen.append(event)
            if isinstance(event, Delta) and event.text == "begun ":
                agent.executor.gate.set()
        assert "".join(e.text for e in seen if isinstance(e, Delta)) == "begun end"
        assert [e.note for e in seen if isinstance(e, Progress)] == ["working"]
        assert ((await task.final()).output or {})["text"] == "begun end"


async def test_a_cancel_reaches_the_agent(network: Network) -> None:
    async with Agent() as agent, on_network(network, agent):
        task = await network.client.submit("a2a.odd.wait", {"text": "x"})
        id = await soon(agent.executor.waiting)
        async for event in task.stream():
            if isinstance(event, Delta):
                await task.cancel()
        assert (await task.final()).status == "cancelled"
        assert await soon(agent.executor.cancelled) == id


@pytest.mark.parametrize(
    ("skill", "code", "message"),
    [
        ("fail", "agent_failed", "no way"),
        ("reject", "agent_rejected", "not mine"),
        ("ask", "input_required", "which one?"),
    ],
)
async def test_what_is_no_answer_says_why(network: Network, agent: Agent, skill: str, code: str, message: str) -> None:
    async with on_network(network, agent):
        with pytest.raises(TaskFailed, match=message) as raised:
            await network.client.run(f"a2a.odd.{skill}", {"text": "x"})
    assert raised.value.wire_code == code


async def test_a_hundred_streams_at_once(network: Network) -> None:
    async with Agent() as agent, on_network(network, agent, slots=100):
        run = network.client.run
        answers = await asyncio.gather(*(run("a2a.odd.echo_text", {"text": f"number {n}"}) for n in range(100)))
    assert [answer["text"] for answer in answers] == [f"number {n} " for n in range(100)]


async def test_an_agent_that_is_away_gets_nothing_until_it_is_back(network: Network) -> None:
    async with Agent() as agent, on_network(network, agent, name="away"), network.ear("beat.away") as ear:
        await agent.stop()
        await ear.until(lambda heard: any(Beat.decode(msg.data).draining for msg in heard))
        task = await network.client.submit("a2a.odd.echo_text", {"text": "hi"})
        await agent.start()
        final = await task.result()
        assert (final.output or {})["text"] == "hi "
        assert final.attempts == 1


async def test_a_stream_that_breaks_is_taken_up_again(network: Network) -> None:
    """The agent's connections are cut while its task runs; the task goes on behind what was streamed."""
    async with Agent() as agent, on_network(network, agent, name="broken", probe_s=60):
        task = await network.client.submit("a2a.odd.drop", {"text": "end"})
        await soon(agent.executor.waiting)
        seen = []
        async for event in task.stream():
            seen.append(event)
            if isinstance(event, Delta) and event.text == "begun ":
                await agent.cut()
                agent.executor.gate.set()
        assert "".join(e.text for e in seen if isinstance(e, Delta)) == "begun end"
        final = await task.result()
        assert (final.output or {})["text"] == "begun end"
        assert final.attempts == 1


async def test_what_cannot_be_reached_or_has_no_skills_never_joins(network: Network) -> None:
    async with Agent(skills=()) as empty, Agent(binding="GRPC") as foreign, Agent() as agent:
        for worker, code in (
            (SkillWorker(empty.url, headers={"X-Key": "secret"}, config=network.config, name="never"), "no_skills"),
            (SkillWorker(foreign.url, headers={"X-Key": "secret"}, config=network.config, name="never"), "error"),
            (SkillWorker(agent.url, config=network.config, name="never"), "no_upstream"),
            (SkillWorker("http://127.0.0.1:1", config=network.config, name="never"), "no_upstream"),
        ):
            with pytest.raises(ModelnetError) as raised:
                await worker.app.start()
            assert raised.value.wire_code == code
            assert "the A2A agent http://127.0.0.1" in raised.value.message
    assert "never" not in {w.card.worker for w in await network.client.workers()}
    with pytest.raises(UsageError):
        SkillWorker(agent.url, prefix="Not A Capability")


async def test_a_card_may_be_named_by_its_whole_address(network: Network) -> None:
    async with Agent() as agent:
        worker = SkillWorker(
            f"{agent.url}/.well-known/agent-card.json", headers={"X-Key": "secret"}, config=network.config
        )
        app = worker.app
        await app.start()
        try:
            assert (await network.client.run("a2a.odd_agent.message", {"text": "hi"}))["text"] == "you said hi"
        finally:
            await app.stop()


async def test_out_and_in_again(network: Network, door: Door) -> None:
    """An agent through the network's own doors: as an A2A skill and as an MCP tool."""
    async with Agent() as agent, on_network(network, agent, prefix="a2a.round", name="round"):
        async with mcp_client(door) as tools:
            await offered(tools, "a2a__round__echo_text")
            called = await tools.call_tool("a2a__round__echo_text", {"text": "one two"})
        async with a2a_client(door, "JSONRPC") as net:
            task = folded(await stream(net, text("one two", "a2a.round.echo_text")))
            given = folded(await stream(net, data({"data": {"n": 3}}, "a2a.round.data")))
    assert called.structured_content["text"] == "one two "
    assert texts(task).startswith("one two ")
    assert texts(given).startswith("here")
