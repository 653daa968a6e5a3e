"""A worker in front of an OpenAI-compatible server: cancelled, limited, cut off, killed and started again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modelnet.engines import Engine, Prompt, Sampling, open_engine, vllm_available
from modelnet.engines.openai import OpenAIEngine
from modelnet.handle import TaskHandle
from modelnet.messages import Bid, Delta, Refusal, Reset, decode_bid_reply
from tests.engines.kinds import vllm_serve
from tests.engines.models import CONTEXT, LOOP, write_chain, write_random
from tests.engines.openai_server import Fault, OpenAIServer
from tests.network.stage import PATIENCE_S, Network, events
from workers.vllm import ModelConfig, Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = {"prompt": LOOP, "max_tokens": CONTEXT, "temperature": 0}
FOX = {"prompt": "the quick brown fox", "max_tokens": 32, "temperature": 0}


@asynccontextmanager
async def numpy(folder: Path) -> AsyncIterator[Engine]:
    engine = open_engine(str(folder), kind="numpy")
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    async with numpy(write_chain(tmp_path_factory.mktemp("models") / "chain").path) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def random(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    async with numpy(write_random(tmp_path_factory.mktemp("models") / "random").path) as engine:
        yield engine


class House:
    """Servers, and a worker in front of each."""

    def __init__(self, network: Network, data: Path) -> None:
        self._network, self._data = network, data
        self.stack = AsyncExitStack()

    async def serve(self, engine: Engine, name: str, *, vllm: bool = False, **fields: Any) -> OpenAIServer:
        """A server on this engine, and a worker of this name in front of it."""
        server = OpenAIServer(engine, "tiny", vllm=vllm)
        await server.start()
        self.stack.push_async_callback(server.stop)
        config = ModelConfig(model="tiny", name=name, engine="openai", url=server.url, **fields)
        served = Served(config, self._network.config.model_copy(update={"data": self._data}))
        await served.start()
        self.stack.push_async_callback(served.close)
        await self._network.join(served.worker)
        self.stack.push_async_callback(self._network.stop, served.worker)
        server.asked.clear()
        self.engine = served.engine.current
        return server


@pytest_asyncio.fixture(loop_scope="module")
async def house(network: Network, tmp_path: Path) -> AsyncIterator[House]:
    house = House(network, tmp_path)
    async with house.stack:
        yield house


async def first_delta(task: TaskHandle) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for event in task.stream():
            if isinstance(event, Delta):
                return
    raise AssertionError("the task ended without a word")


async def test_a_cancel_reaches_the_server(house: House, network: Network, chain: Engine) -> None:
    server = await house.serve(chain, "cancelled")
    task = await network.client.submit("text.generate", ENDLESS)
    await first_delta(task)
    assert await task.cancel()
    await asyncio.wait_for(server.gone.get(), PATIENCE_S)
    assert house.engine.state().running == 0


async def test_a_server_that_wants_to_be_left_alone_is(house: House, network: Network, random: Engine) -> None:
    server = await house.serve(random, "limited")
    server.faults.append(Fault(status=429, headers={"retry-after": "1"}))
    task = await network.client.submit("text.generate", FOX, deadline_s=PATIENCE_S)
    final = await task.final()
    assert (final.status, final.worker, final.attempts) == ("completed", "limited", 2)
    assert len(server.asked) == 2  # nobody asked while it was to be left alone


async def test_a_worker_whose_minute_is_used_up_refuses(house: House, network: Network, random: Engine) -> None:
    await house.serve(random, "spent", requests_per_minute=1)
    assert (await (await network.client.submit("text.generate", FOX)).final()).status == "completed"
    async with network.ear("bid.>") as ear:
        task = await network.client.submit("text.generate", FOX, deadline_s=2)
        reply = decode_bid_reply((await ear.next()).data)
        assert isinstance(reply, Refusal)
        assert reply.reason == "busy"
        await task.cancel()


@pytest.mark.parametrize("input", [{"grammar": {"regex": "a+"}}, {"top_k": 3}, {"min_p": 0.5}])
async def test_what_the_server_can_not_do_is_refused_before_an_award(
    house: House, network: Network, random: Engine, input: dict[str, Any]
) -> None:
    server = await house.serve(random, "plain")
    async with network.ear("bid.>") as ear:
        task = await network.client.submit("text.generate", {**FOX, **input}, deadline_s=2)
        reply = decode_bid_reply((await ear.next()).data)
        assert isinstance(reply, Refusal)
        assert reply.reason == "unsupported"
        await task.cancel()
    assert not server.asked


@pytest.mark.parametrize("fault", [Fault(after=3, cut=True), Fault(after=3, send=b"data: garbage\n\n")])
@pytest.mark.parametrize("vllm", [True, False])
async def test_what_breaks_off_is_finished_elsewhere(
    house: House, network: Network, random: Engine, fault: Fault, *, vllm: bool
) -> None:
    """By tokens on the same model where the server is vLLM; else from the beginning, for a chat could not go on."""
    whole = await undisturbed(random)
    these = f"{'cut' if fault.cut else 'garbage'}-{'vllm' if vllm else 'other'}"  # each without a history
    server = await house.serve(random, f"breaks-{these}", vllm=vllm, price=1)
    await house.serve(random, f"finishes-{these}", vllm=vllm, price=50)
    server.faults += [fault] * 3
    task = await network.client.submit("text.generate", FOX, deadline_s=PATIENCE_S)
    told = await events(task)
    final = await task.final()
    assert (final.status, final.attempts, (final.output or {})["text"]) == ("completed", 2, whole)
    assert any(isinstance(event, Reset) for event in told) != vllm


async def undisturbed(engine: Engine) -> str:
    """What an engine says to `FOX` when nothing goes wrong."""
    sampling = Sampling(max_tokens=int(str(FOX["max_tokens"])), temperature=0)
    return "".join([c.text async for c in engine.generate("whole", Prompt(text=str(FOX["prompt"])), sampling)])


async def test_a_killed_server_takes_nothing_until_it_is_back(house: House, network: Network, chain: Engine) -> None:
    server = await house.serve(chain, "comes-back", vllm=True)
    server.faults.append(Fault(after=20, stall=True))  # so that it is surely at work when it is killed
    task = await network.client.submit("text.generate", {**ENDLESS, "max_tokens": 100}, deadline_s=PATIENCE_S)
    stream = task.stream()
    async with asyncio.timeout(PATIENCE_S):
        async for event in stream:
            if isinstance(event, Delta):
                break
        await server.stop()
        assert isinstance(house.engine, OpenAIEngine)
        await house.engine.lost()
        async with network.ear("bid.>") as ear:
            other = await network.client.submit("text.generate", FOX, deadline_s=PATIENCE_S)
            reply = decode_bid_reply((await ear.next()).data)
            assert isinstance(reply, Refusal)
            assert reply.reason == "busy"
        await server.start()
        assert (await other.final()).status == "completed"
        final = await task.final()
    assert (final.status, final.attempts) == ("completed", 2)
    text = str((final.output or {})["text"])
    assert text == LOOP * 50  # what it said before it was killed, and what it went on with


async def test_prices_by_the_token_are_bid(house: House, network: Network, random: Engine) -> None:
    await house.serve(random, "priced", price=5, price_per_token=0.5, price_per_input_token=0.1)
    async with network.ear("bid.>") as ear:
        task = await network.client.submit("text.generate", FOX, budget=1000)
        bid = decode_bid_reply((await ear.next()).data)
        assert (await task.final()).status == "completed"
    assert isinstance(bid, Bid)
    assert bid.price == 5 + 16 + 1  # 32 tokens of answer, 19 bytes of prompt


def said(*choices: dict[str, Any]) -> Fault:
    """A server's whole answer, a choice in each event."""
    events = [{"choices": [choice]} for choice in choices]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return Fault(status=200, body=body, headers={"content-type": "text/event-stream"})


async def run(network: Network, input: dict[str, Any]) -> tuple[dict[str, Any], list[Delta]]:
    task = await network.client.submit("text.generate", input, deadline_s=PATIENCE_S)
    deltas = [event for event in await events(task) if isinstance(event, Delta)]
    final = await task.final()
    assert final.status == "completed", final.error
    return final.output or {}, deltas


async def test_several_answers_come_through(house: House, network: Network, random: Engine) -> None:
    server = await house.serve(random, "several")
    output, deltas = await run(network, {**FOX, "n": 2})
    assert [one["text"] for one in output["choices"]] == [await undisturbed(random)] * 2
    assert output["text"] == output["choices"][0]["text"]
    for index, choice in enumerate(output["choices"]):
        assert "".join(delta.text for delta in deltas if delta.index == index) == choice["text"]
    assert server.asked[-1]["n"] == 2


async def test_log_probabilities_come_through(house: House, network: Network, random: Engine) -> None:
    server = await house.serve(random, "sure")
    top = [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -2.0, "bytes": [98]}]
    told = {"content": [{**top[0], "top_logprobs": top}]}
    server.faults.append(said({"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", "logprobs": told}))
    output, deltas = await run(network, {"messages": [{"role": "user", "content": "a"}], "logprobs": 2})
    (one,) = output["logprobs"]
    assert (one["token"], one["logprob"], [other["token"] for other in one["top"]]) == ("a", -0.5, ["a", "b"])
    assert [told.token for delta in deltas for told in delta.logprobs or ()] == ["a"]
    assert server.asked[-1]["top_logprobs"] == 2


async def test_calls_of_functions_come_through(house: House, network: Network, random: Engine) -> None:
    server = await house.serve(random, "caller")

    def call(**part: Any) -> dict[str, Any]:
        return {"index": 0, "delta": {"tool_calls": [{"index": 0, **part}]}, "finish_reason": None}

    server.faults.append(
        said(
            call(id="c1", function={"name": "weather", "arguments": ""}),
            call(function={"arguments": '{"city":'}),
            call(function={"arguments": ' "Ulm"}'}),
            {"index": 0, "delta": {}, "finish_reason": "tool_calls"},
        )
    )
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    output, deltas = await run(network, {"messages": [{"role": "user", "content": "how is Ulm"}], "tools": [tool]})
    assert output["tool_calls"] == [{"id": "c1", "name": "weather", "arguments": '{"city": "Ulm"}'}]
    assert output["finish_reason"] == "tool_calls"
    parts = [part for delta in deltas for part in delta.tool_calls]
    assert "".join(part.arguments for part in parts) == '{"city": "Ulm"}'
    assert server.asked[-1]["tools"] == [tool]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
async def test_what_vllms_own_server_says_comes_through(network: Network, tmp_path: Path) -> None:
    async with vllm_serve(write_random(tmp_path / "random")) as (url, _):
        config = ModelConfig(model="tiny", name="vllm-server", engine="openai", url=url)
        served = Served(config, network.config.model_copy(update={"data": tmp_path}))
        await served.start()
        await network.join(served.worker)
        try:
            # A chat: completions tell the likeliest by their text, which the bytes of this model's share.
            asked = {"messages": [{"role": "user", "content": "the quick"}], "max_tokens": 16}
            output, deltas = await run(network, {**asked, "n": 2, "logprobs": 2, "temperature": 1, "seed": 1})
            assert len(output["choices"]) == 2
            for index, choice in enumerate(output["choices"]):
                assert "".join(delta.text for delta in deltas if delta.index == index) == choice["text"]
                assert len(choice["logprobs"]) > 1
                assert {len(one["top"]) for one in choice["logprobs"]} == {2}
            output, _ = await run(network, {**FOX, "grammar": {"choice": ["yes", "no"]}})
            assert output["text"] in ("yes", "no")
        finally:
            await network.stop(served.worker)
            await served.close()
