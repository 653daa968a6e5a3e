"""Everything a model on vLLM does, asked for over the bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from modelnet.bus import subjects
from modelnet.bus.embedded import EmbeddedNats
from modelnet.engines import keeper as keeper_module
from modelnet.engines import vllm_available
from modelnet.errors import TaskError
from modelnet.handle import TaskHandle
from modelnet.messages import Delta, Reset
from tests.engines.bert import write_embedder
from tests.engines.models import CALL, CONTEXT, LOOP, Folder, write_adapted, write_calling
from tests.engines.test_abilities import ASK, WEATHER
from tests.network.stage import PATIENCE_S, Network, events, fast
from workers.vllm import AdapterConfig, ModelConfig, Served

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_vllm = pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")

Json = dict[str, Any]
FOX: Json = {"prompt": "the quick brown fox", "temperature": 0, "max_tokens": 12}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(nats_server: EmbeddedNats) -> AsyncIterator[Network]:
    async with Network(fast(nats_server.url)) as network:
        await network.negotiator()
        yield network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(network: Network, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[None]:
    """A model with an adapter that can call functions, one that embeds, and a plain one on NumPy."""
    folder = tmp_path_factory.mktemp("models")
    caller = write_calling(folder / "caller")
    adapter, _ = write_adapted(folder / "adapted", caller, seed=1)
    embedder = str(write_embedder(folder / "embedder"))
    models = [
        ModelConfig(
            model=caller.name,
            engine="vllm",
            tool_parser="hermes",
            max_model_len=512,
            price=10,
            adapters={"legal": AdapterConfig(path=str(adapter), price=70)},
        ),
        ModelConfig(model=embedder, name="embedder", engine="vllm", capability="text.embed", dtype="float32"),
        ModelConfig(model=embedder, name="ranker", engine="vllm", capability="text.rerank", dtype="float32"),
        ModelConfig(model=caller.name, name="plain", engine="numpy", price=1),
    ]
    ready = [Served(model, network.config) for model in models]
    for one in ready:
        await one.start()
        await network.join(one.worker)
    yield
    for one in ready:
        await network.stop(one.worker)
        await one.close()


async def run(
    network: Network, input: Json, capability: str = "text.generate", **options: Any
) -> tuple[TaskHandle, Json, list[Delta]]:
    task = await network.client.submit(capability, input, **options)
    deltas = [event for event in await events(task) if isinstance(event, Delta)]
    final = await task.final()
    assert final.status == "completed", final.error
    return task, final.output or {}, deltas


@needs_vllm
async def test_the_plain_one_answers_what_is_plain(network: Network, served: None) -> None:
    task, output, deltas = await run(network, FOX, require={"worker": "plain"})
    assert "".join(delta.text for delta in deltas) == output["text"] == task.text


@needs_vllm
@pytest.mark.parametrize(
    "more", [{"n": 2}, {"logprobs": 1}, {"min_p": 0.1}, {"grammar": {"regex": "[ab]{3}"}}, {"repetition_penalty": 1.5}]
)
async def test_who_cannot_do_it_does_not_bid(network: Network, served: None, more: Json) -> None:
    task, _, _ = await run(network, {**FOX, **more})
    final = await task.final()
    assert (final.worker, final.attempts, final.bids) == ("caller", 1, 1)


@needs_vllm
async def test_several_answers(network: Network, served: None) -> None:
    task, output, deltas = await run(network, {**FOX, "n": 3, "temperature": 2, "seed": 1, "logprobs": 2})
    assert len(output["choices"]) == 3
    assert output["text"] == output["choices"][0]["text"] == task.text
    assert {delta.index for delta in deltas} == {0, 1, 2}
    for index, choice in enumerate(output["choices"]):
        mine = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in mine) == choice["text"]
        told = [one for delta in mine for one in delta.logprobs or ()]
        assert [one.token for one in told] == [one["token"] for one in choice["logprobs"]]
        assert {len(one["top"]) for one in choice["logprobs"]} == {2}
        assert not any(delta.continuable for delta in mine)
    usage = (await task.final()).usage
    assert usage is not None
    assert usage.completion_tokens == sum(len(choice["logprobs"]) for choice in output["choices"])


@needs_vllm
async def test_a_form_is_kept(network: Network, served: None) -> None:
    _, output, _ = await run(network, {**FOX, "grammar": {"choice": ["yes", "no"]}})
    assert output["text"] in ("yes", "no")


@needs_vllm
async def test_a_bad_form_is_an_error_of_the_task(network: Network, served: None) -> None:
    task = await network.client.submit("text.generate", {**FOX, "grammar": {"regex": "(("}})
    with pytest.raises(TaskError) as caught:
        await task.result()
    assert caught.value.wire_code == "bad_sampling"


@needs_vllm
async def test_a_function_is_called(network: Network, served: None) -> None:
    task, output, deltas = await run(network, {"messages": list(ASK), "tools": [WEATHER], "temperature": 0})
    (call,) = output["tool_calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Ulm"})
    assert (output["text"], output["finish_reason"]) == (CALL[0], "tool_calls")
    parts = [part for delta in deltas for part in delta.tool_calls]
    assert "".join(part.arguments for part in parts) == call["arguments"]
    assert [part.id for part in parts if part.id] == [call["id"]]
    assert task.text == CALL[0]


@needs_vllm
async def test_an_adapter_is_a_capability_of_its_own(network: Network, served: None) -> None:
    task, output, _ = await run(network, {"messages": list(ASK), "temperature": 0}, "text.generate.legal")
    final = await task.final()
    assert final.worker == "caller"
    _, plain, _ = await run(network, {"messages": list(ASK), "temperature": 0})
    # Nothing but noise goes through its layers, so what it says is another text.
    assert output["text"] != plain["text"] == "".join(CALL)
    found = {card.pattern: card for one in await network.client.workers() for card in one.card.capabilities}
    assert found["text.generate.legal"].price == 70
    assert found["text.generate.legal"].model == f"{found['text.generate'].model}+legal"


@needs_vllm
async def test_vectors_and_rankings(network: Network, served: None) -> None:
    texts = ["the lazy dog", "a quick fox"]
    task, output, _ = await run(network, {"texts": texts}, "text.embed")
    assert [len(vector) for vector in output["vectors"]] == [64, 64]
    usage = (await task.final()).usage
    assert usage is not None
    assert usage.prompt_tokens == 3 + 3 + 4
    _, output, _ = await run(network, {"query": "the dog", "documents": texts, "top_n": 1}, "text.rerank")
    ((best),) = output["results"]
    _, output, _ = await run(network, {"query": "the dog", "documents": texts}, "text.rerank")
    assert [one["score"] for one in output["results"]] == sorted(
        (one["score"] for one in output["results"]), reverse=True
    )
    assert output["results"][0] == best


async def test_an_engine_that_dies_hands_its_tasks_on_and_bids_again(
    network: Network, chain_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nobody else there, they come back to it, and go on behind what was said."""
    monkeypatch.setattr(keeper_module, "BACKOFF_S", (0.01,))
    served = Served(ModelConfig(model=chain_folder.name, name="mortal", engine="numpy", slots=4), network.config)
    await served.start()
    await network.join(served.worker)
    loop = {"prompt": LOOP, "max_tokens": CONTEXT - 100, "temperature": 0}
    tasks = [
        await network.client.submit("text.generate", loop, require={"worker": "mortal"}, deadline_s=60)
        for _ in range(4)
    ]
    texts = [asyncio.create_task(text_without_reset(task)) for task in tasks]
    try:
        async with network.ear(subjects.result("*", "*", "mortal", 1)) as ear:
            await ear.until(lambda heard: len({msg.subject for msg in heard}) == 4)
        core: Any = served.engine.current

        def fail() -> None:
            raise RuntimeError("out of memory")

        async with network.ear("beat.mortal") as beats:
            core._core.step = fail
            async with asyncio.timeout(PATIENCE_S):
                found = await asyncio.gather(*texts)
            seen = [json.loads(msg.data)["draining"] for msg in beats.heard]
        assert {text for text, _ in found} == {(LOOP * CONTEXT)[: CONTEXT - 100]}
        assert [resets for _, resets in found] == [0] * 4
        for task in tasks:
            final = await task.final()
            assert (final.status, final.attempts, final.worker) == ("completed", 2, "mortal")
        assert served.engine.restarts == 1
        assert True in seen
        assert seen[-1] is False
    finally:
        await network.stop(served.worker)
        await served.close()


async def text_without_reset(task: TaskHandle) -> tuple[str, int]:
    """What a reader saw, and how often it had to begin anew."""
    text, resets = "", 0
    async for event in task.stream():
        text += event.text if isinstance(event, Delta) else ""
        resets += isinstance(event, Reset)
    return text, resets


async def test_a_task_that_brings_down_engine_after_engine_fails(
    network: Network, chain_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_S", (0.01,))
    served = Served(ModelConfig(model=chain_folder.name, name="fragile", engine="numpy"), network.config)
    await served.start()
    await network.join(served.worker)

    def poison() -> None:
        core: Any = served.engine.current

        def fail() -> None:
            raise RuntimeError("what a task")

        core._core.step = fail

    def restarted() -> None:
        poison()
        resume()

    resume, served.engine.on_up = served.engine.on_up, restarted
    poison()
    try:
        task = await network.client.submit("text.generate", {"prompt": LOOP}, require={"worker": "fragile"})
        async with asyncio.timeout(PATIENCE_S):
            final = await task.final()
        assert final.status == "failed"
        assert final.error is not None
        assert final.error.code == "engine_dead"
        assert served.engine.restarts == 2
    finally:
        await network.stop(served.worker)
        await served.close()


async def test_a_model_that_sleeps_says_in_its_bids_that_it_has_to_wake_and_does(
    network: Network, chain_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_S", 0.01)
    config = ModelConfig(model=chain_folder.name, name="sleeper", engine="numpy", sleep_s=1.0)
    served = Served(config, network.config)
    asleep = asyncio.Event()
    forget = served.engine.on_asleep

    def fell_asleep() -> None:
        forget()
        asleep.set()

    served.engine.on_asleep = fell_asleep
    await served.start()
    await network.join(served.worker)
    ask = {"prompt": LOOP, "max_tokens": 8, "temperature": 0}
    try:
        _, output, _ = await run(network, ask, require={"worker": "sleeper"})
        if served.engine.wake_s == 0:  # it may have slept before, on a machine that was busy
            asleep.clear()
            async with asyncio.timeout(PATIENCE_S):
                await asleep.wait()
        first = served.engine.current
        served.engine._wake_s = 7.0  # as of a large model
        async with network.ear("bid.>") as bids:
            _, again, _ = await run(network, ask, require={"worker": "sleeper"}, deadline_s=60)
            (bid,) = [json.loads(msg.data) for msg in bids.heard if json.loads(msg.data)["worker"] == "sleeper"]
        assert again == output
        assert 7000 < bid["first_ms"] < 9000
        assert 7000 < bid["p50_ms"] <= bid["p90_ms"]
        assert served.engine.current is not first
        assert served.engine.restarts == 0
    finally:
        await network.stop(served.worker)
        await served.close()
