"""The network as agents of the NATS agent protocol, prompted by its own client, unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client as Bus
from synadia_ai.agent_service import RequestRejectedError
from synadia_ai.agents import Agent, Envelope, ProtocolError, ResponseChunk, StatusChunk
from synadia_ai.agents import Agents as Callers

import modelnet
from modelnet.agents.nats_agents import as_input, text_slot
from modelnet.bus.connection import connect
from modelnet.messages import Contract
from tests.agents.conftest import TEXT, Worker, soon
from tests.network.stage import PATIENCE_S, Network
from workers.agents import make_app

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(network: Network, joined: Worker) -> AsyncIterator[None]:
    """The bridge, as the process that it is."""
    app = make_app(network.config, heartbeat_s=1, look_s=0.1)
    await app.start()
    yield
    await app.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(network: Network, bridge: None) -> AsyncIterator[tuple[Bus, Callers]]:
    """Somebody who knows the agent protocol and nothing of modelnet."""
    bus = await connect(network.config, "caller")
    callers = Callers(nc=bus)
    yield bus, callers
    await callers.close()
    await bus.close()


async def find(callers: Callers, capability: str) -> Agent:
    """The agent for a capability."""
    (found,) = [one for one in await callers.discover() if one.metadata["capability"] == capability]
    return found


async def replies(agent: Agent, prompt: str | Envelope) -> list[Any]:
    """All that an agent says."""
    async with asyncio.timeout(PATIENCE_S), aclosing(agent.prompt(prompt)) as stream:  # type: ignore[type-var]
        return [message async for message in stream]


def text_of(said: list[Any]) -> str:
    """The text of it."""
    return "".join(one.text for one in said if isinstance(one, ResponseChunk))


async def test_every_capability_is_an_agent(caller: tuple[Bus, Callers], network: Network) -> None:
    agent = await find(caller[1], "text.upper")
    assert (agent.agent, agent.owner, agent.session_name) == ("modelnet", "local", "text-upper")
    assert agent.prompt_subject == "agents.prompt.modelnet.local.text-upper"
    assert agent.description == "Capitals."
    status = await agent.status()
    assert (status.session, status.instance_id) == ("text-upper", agent.instance_id)


async def test_it_beats(caller: tuple[Bus, Callers]) -> None:
    _, callers = caller
    agent = await find(callers, "text.upper")
    alive = asyncio.Event()
    callers.on_heartbeat(agent.instance_id, lambda _: alive.set())
    await asyncio.wait_for(alive.wait(), PATIENCE_S)
    liveness = callers.liveness(agent.instance_id)
    assert liveness is not None
    assert liveness.is_online


async def test_a_prompt_is_a_task_and_its_text_comes_in_chunks(caller: tuple[Bus, Callers]) -> None:
    said = await replies(await find(caller[1], "text.generate"), "count")
    assert said[0] == StatusChunk(status="ack")
    assert text_of(said) == "one two"


async def test_an_output_that_is_no_text_comes_as_json(caller: tuple[Bus, Callers]) -> None:
    agent = await find(caller[1], "test.double")
    assert json.loads(text_of(await replies(agent, '{"number": 21}'))) == {"number": 42}


async def test_text_alone_comes_as_it_is(caller: tuple[Bus, Callers]) -> None:
    agent = await find(caller[1], "text.upper")
    assert text_of(await replies(agent, "loud")) == "LOUD"
    assert text_of(await replies(agent, '{"text": "as an object"}')) == "AS AN OBJECT"
    assert text_of(await replies(agent, "{no object}")) == "{NO OBJECT}"


@pytest.mark.parametrize(
    ("capability", "prompt", "error"),
    [
        ("test.double", "twenty-one", "service error 400: test.double: the prompt must be a JSON object"),
        ("test.double", '{"number": "21"}', "service error 400: test.double: number"),
        ("test.reject", "{}", "service error 500: not_today: not today"),
        ("text.upper", Envelope(prompt="x", budget=1), "service error 402: over_budget"),
        ("text.upper", Envelope(prompt="x", budget="much"), "service error 400: malformed"),
    ],
)
async def test_errors_are_the_protocols(
    caller: tuple[Bus, Callers], capability: str, prompt: str | Envelope, error: str
) -> None:
    with pytest.raises(ProtocolError, match=error):
        await replies(await find(caller[1], capability), prompt)


async def test_a_hundred_at_once(caller: tuple[Bus, Callers]) -> None:
    agent = await find(caller[1], "text.upper")
    said = await asyncio.gather(*(replies(agent, f"prompt {number}") for number in range(100)))
    assert [text_of(one) for one in said] == [f"PROMPT {number}" for number in range(100)]


async def test_the_task_of_a_caller_that_is_gone_is_cancelled(network: Network, bridge: None, worker: Worker) -> None:
    bus = await connect(network.config, "short-lived")
    callers = Callers(nc=bus)
    agent = await find(callers, "test.slow")
    stream = agent.prompt("never said")
    async for message in stream:
        if isinstance(message, ResponseChunk):
            break
    task = await soon(worker.started)
    await bus.close()
    assert await soon(worker.stopped) == task
    final = await network.client.task(task).final()
    assert final.status == "cancelled"


async def test_agents_come_and_go_with_those_who_serve_them(network: Network, caller: tuple[Bus, Callers]) -> None:
    _, callers = caller
    passing = network.worker("passing")
    passing.capability("test.passing", contract={"input": TEXT, "output": TEXT})(lambda ctx, value: value)

    async def names() -> set[str]:
        return {one.session_name for one in await callers.discover()}

    await network.join(passing)
    async with asyncio.timeout(PATIENCE_S):
        while "test-passing" not in await names():
            pass
        await network.stop(passing)
        while "test-passing" in await names():
            pass


@pytest.mark.parametrize("again", ["same", "other"])
async def test_what_was_sent_is_never_taken_back(network: Network, caller: tuple[Bus, Callers], again: str) -> None:
    """An attempt that fails after it has spoken: the next one says the same again, or the answer is given up."""
    first, second = network.worker(f"first-{again}"), network.worker(f"second-{again}")
    capability, spoken = f"test.broken.{again}", asyncio.Event()

    async def fails(ctx: modelnet.Context, input: dict[str, Any]) -> AsyncIterator[str]:
        yield "this much "
        await spoken.wait()
        raise modelnet.Reject("broken", code="broken", retryable=True)

    async def answers(ctx: modelnet.Context, input: dict[str, Any]) -> AsyncIterator[str]:
        yield "this much " if again == "same" else "something else "
        yield "and more"

    first.capability(capability, contract={"input": TEXT, "output": TEXT}, price=1)(fails)
    second.capability(capability, contract={"input": TEXT, "output": TEXT}, price=50)(answers)
    await network.join(first)
    agent = None
    async with asyncio.timeout(PATIENCE_S):
        while agent is None:
            found = await caller[1].discover()
            agent = next((one for one in found if one.metadata["capability"] == capability), None)
    await network.join(second)
    said = list[str]()

    async def listen() -> None:
        async for message in agent.prompt("go"):
            if isinstance(message, ResponseChunk):
                said.append(message.text)
                spoken.set()

    if again == "same":
        await asyncio.wait_for(listen(), PATIENCE_S)
        assert "".join(said) == "this much and more"
    else:
        with pytest.raises(ProtocolError, match="service error 503: the answer broke off"):
            await asyncio.wait_for(listen(), PATIENCE_S)
        assert said == ["this much "]
    await network.stop(second)
    await network.stop(first)


async def test_where_a_plain_text_goes() -> None:
    string, number = {"type": "string"}, {"type": "number"}
    assert text_slot({"properties": {"prompt": string, "messages": {}}}) == "prompt"
    assert text_slot({"properties": {"text": string, "n": number}, "required": ["text"]}) == "text"
    assert text_slot({"properties": {"query": string, "n": number}, "required": ["query"]}) == "query"
    assert text_slot({"properties": {"text": string, "n": number}, "required": ["text", "n"]}) is None
    assert text_slot({}) is None
    contract = Contract(capability="a.b", input={**TEXT, "additionalProperties": False})
    assert as_input(contract, '{"text": "x"}') == {"text": "x"}
    assert as_input(contract, '{"other": "x"}') == {"text": '{"other": "x"}'}
    with pytest.raises(RequestRejectedError):
        as_input(Contract(capability="a.b", input={"required": ["n"]}), "[]")
