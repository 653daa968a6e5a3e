"""An agent of the NATS agent protocol on the network, served by the protocol's own host package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from nats.aio.client import Client as Bus
from synadia_ai.agent_service import AgentService, PromptStream, RequestRejectedError
from synadia_ai.agents import Attachment, Envelope
from synadia_ai.agents.messages import ResponseChunk

from modelnet import TaskFailed
from modelnet.agents.nats_worker import AgentWorker
from modelnet.bus import subjects
from modelnet.bus.connection import connect
from modelnet.errors import ModelnetError
from modelnet.messages import Beat, Delta
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Echo:
    """An agent that does as it is told, and can be stopped and started."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.begun = asyncio.Event()

    async def start(self) -> None:
        """Register it."""
        self._service = AgentService(
            agent="echo", owner="tests", session_name="parrot", nc=self._bus, max_concurrent_prompts=200
        )
        self._service.on_prompt(self._answer)
        await self._service.start()

    async def stop(self) -> None:
        """Be gone."""
        await self._service.stop()

    async def _answer(self, envelope: Envelope, stream: PromptStream) -> None:
        verb, _, rest = envelope.prompt.partition(" ")
        known: dict[str, Callable[[str, PromptStream], Awaitable[None]]] = {
            "say": self._say,
            "file": self._file,
            "ask": self._ask,
            "refuse": self._refuse,
            "fail": self._fail,
            "wait": self._wait,
        }
        await known[verb](rest, stream)

    async def _say(self, rest: str, stream: PromptStream) -> None:
        for word in rest.split():
            await stream.send(f"{word} ")

    async def _file(self, rest: str, stream: PromptStream) -> None:
        await stream.send(ResponseChunk(text="here", attachments=[Attachment.from_bytes("a.txt", rest.encode())]))

    async def _ask(self, rest: str, stream: PromptStream) -> None:
        await stream.ask(rest, timeout=0.5)

    async def _refuse(self, rest: str, stream: PromptStream) -> None:
        raise RequestRejectedError(403, rest)

    async def _fail(self, rest: str, stream: PromptStream) -> None:
        raise ValueError(rest)

    async def _wait(self, rest: str, stream: PromptStream) -> None:
        await stream.send("waiting")
        self.begun.set()
        await asyncio.Event().wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def echo(network: Network) -> AsyncIterator[Echo]:
    """The agent, registered."""
    bus = await connect(network.config, "echo")
    echo = Echo(bus)
    await echo.start()
    yield echo
    await echo.stop()
    await bus.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(network: Network, echo: Echo) -> AsyncIterator[AgentWorker]:
    """Its worker."""
    worker = AgentWorker("parrot", price=4, slots=128, config=network.config, backoff_s=(0.05,), probe_s=0.2)
    app = worker.app
    await app.start()
    yield worker
    await app.stop()


async def test_it_answers_tasks_and_streams(network: Network, agent: AgentWorker) -> None:
    task = await network.client.submit("agent.parrot", {"text": "say hello you there"})
    words = [event.text async for event in task.stream() if isinstance(event, Delta)]
    final = await task.result()
    assert "".join(words) == "hello you there " == (final.output or {})["text"]
    assert final.worker == "agent-parrot"


async def test_what_it_attaches_are_files(network: Network, agent: AgentWorker) -> None:
    output = await network.client.run("agent.parrot", {"text": "file content"})
    (file,) = output["files"]
    assert (output["text"], file["name"]) == ("here", "a.txt")
    assert await network.client.fetch(file) == b"content"


@pytest.mark.parametrize(
    ("text", "code"),
    [("ask which one?", "input_required"), ("refuse you", "bad_input"), ("fail inside", "agent_error")],
)
async def test_what_goes_wrong_has_a_code(network: Network, agent: AgentWorker, text: str, code: str) -> None:
    with pytest.raises(TaskFailed) as failed:
        await network.client.run("agent.parrot", {"text": text})
    assert failed.value.wire_code == code


async def test_a_hundred_at_once(network: Network, agent: AgentWorker) -> None:
    run = network.client.run
    outputs = await asyncio.gather(*(run("agent.parrot", {"text": f"say {number}"}) for number in range(100)))
    assert [output["text"] for output in outputs] == [f"{number} " for number in range(100)]


async def test_a_cancelled_task_leaves_the_worker_free(network: Network, agent: AgentWorker, echo: Echo) -> None:
    echo.begun.clear()
    task = await network.client.submit("agent.parrot", {"text": "wait"})
    await asyncio.wait_for(echo.begun.wait(), PATIENCE_S)
    assert await task.cancel()
    assert (await task.final()).status == "cancelled"
    assert (await network.client.run("agent.parrot", {"text": "say on"}))["text"] == "on "


async def test_an_agent_that_is_gone_takes_no_tasks_until_it_is_back(
    network: Network, agent: AgentWorker, echo: Echo
) -> None:
    async with network.ear(subjects.beat("agent-parrot")) as beats:
        await echo.stop()
        await beats.next(lambda msg: Beat.decode(msg.data).draining)
    task = await network.client.submit("agent.parrot", {"text": "say again"}, deadline_s=30)
    reasons = set[str]()
    async for event in task.stream():
        if event.kind == "waiting":
            reasons.add(event.reason)
            await echo.start()
        if event.kind == "final":
            break
    assert reasons
    assert ((await task.result()).output or {})["text"] == "again "


async def test_an_agent_that_does_not_exist(network: Network, echo: Echo) -> None:
    worker = AgentWorker("nobody", config=network.config)
    with pytest.raises(ModelnetError, match=r"no NATS agent 'nobody' answers; there are: .*echo/tests/parrot"):
        await worker.app.start()
    await worker.worker.broker.stop()
