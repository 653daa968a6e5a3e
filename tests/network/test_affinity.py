"""Conversations come home to the worker that has their beginning cached, and nobody keeps a list of who that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modelnet.bus.catalogue import Catalogue
from modelnet.bus.embedded import EmbeddedNats
from modelnet.engines import vllm_available
from modelnet.messages import BidRequest, Final, Transcript
from modelnet.prefix import block_ends, hashes_in
from tests.engines.models import Folder, write_random
from tests.network.stage import PATIENCE_S, Ear, Network, fast
from workers.negotiator.prefixes import PrefixKeys
from workers.vllm import ModelConfig, Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

WAIT_S = 3 * PATIENCE_S
"""An engine that steps in this process shares its cores with all else that runs."""

DEAR: Json = {"budget": 10**9, "value_of_time": 1e6}
"""A millisecond is worth something, and an answer more than the minute that one may take on a busy machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_random(tmp_path_factory.mktemp("models") / "random")


def chat(*turns: str) -> Json:
    """A conversation whose last turn is the user's."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return {"messages": messages, "max_tokens": 4, "temperature": 0}


async def ask(network: Network, input: Json, **options: Any) -> Final:
    async with asyncio.timeout(WAIT_S):
        return await (await network.client.submit("text.generate", input, deadline_s=WAIT_S, **options)).result()


async def requests_of(ear: Ear, number: int) -> list[BidRequest]:
    return [BidRequest.decode(msg.data) for msg in await ear.until(lambda heard: len(heard) >= number)]


# ---------------------------------------------------------------------- what bidders hear


async def test_a_request_carries_the_same_hashes_from_every_negotiator(
    nats_server: EmbeddedNats, tmp_path: Path
) -> None:
    async with Network(fast(nats_server.url, data=tmp_path)) as network:
        first = await network.negotiator()
        worker = network.worker("plain")

        @worker.capability("text.generate", contract=None)
        async def generate(ctx: Any, input: Json) -> Json:
            return {"text": "yes", "finish_reason": "stop"}

        await network.join(worker)
        async with network.ear("cap.text.generate") as ear:
            await ask(network, chat("a" * 600))
            await network.negotiator()
            await network.stop(first)
            await ask(network, chat("a" * 600, "yes", "and" * 100))
            one, two = (request.features for request in await requests_of(ear, 2))
        assert one.prompt_bytes is not None
        assert two.prompt_bytes is not None
        assert len(hashes_in(one.prefix)) == sum(end <= one.prompt_bytes for end in block_ends()) == 4
        assert two.prefix.startswith(one.prefix)
        assert len(two.prefix) > len(one.prefix)


async def test_what_bidders_hear_of_others_prompts_matches_nothing_of_ones_own(
    nats_server: EmbeddedNats, tmp_path: Path
) -> None:
    config = fast(nats_server.url, data=tmp_path)
    async with Network(config) as network, Network(config.model_copy(update={"tenant": "other"})) as other:
        await network.negotiator()
        worker = network.worker("plain")

        @worker.capability("text.generate", contract=None)
        async def generate(ctx: Any, input: Json) -> Json:
            return {"text": "yes", "finish_reason": "stop"}

        await network.join(worker)
        async with network.ear("cap.text.generate") as ear:
            for asker in (network, other):
                await ask(asker, chat("the same secret " * 60))
            mine, theirs = (hashes_in(request.features.prefix) for request in await requests_of(ear, 2))
        assert len(mine) == len(theirs) > 5
        assert not set(mine) & set(theirs)


async def test_a_capability_without_a_mark_has_no_hashes(nats_server: EmbeddedNats, tmp_path: Path) -> None:
    async with Network(fast(nats_server.url, data=tmp_path)) as network:
        await network.negotiator()
        worker = network.worker("plain")

        @worker.capability("text.echo")
        async def echo(ctx: Any, input: Json) -> Json:
            return input

        await network.join(worker)
        async with network.ear("cap.text.echo") as ear:
            async with asyncio.timeout(PATIENCE_S):
                await (await network.client.submit("text.echo", {"prompt": "x" * 1000})).result()
            (request,) = await requests_of(ear, 1)
        assert (request.features.prefix, request.features.prompt_bytes) == (b"", None)


async def test_negotiators_agree_on_a_secret_and_one_that_was_set_is_taken(network: Network) -> None:
    keys = [PrefixKeys(Catalogue(network.bus), "") for _ in range(8)]
    assert len({one.of("t") for one in keys}) == len(keys), "until they have asked"
    await asyncio.gather(*(one.refresh() for one in keys))
    assert len({one.of("t") for one in keys}) == 1
    assert keys[0].of("t") != keys[0].of("u")
    given = [PrefixKeys(Catalogue(network.bus), "a secret that was set") for _ in range(2)]
    for one in given:
        await one.refresh()
    assert given[0].of("t") == given[1].of("t") != keys[0].of("t")


# ---------------------------------------------------------------------- on an engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    nats_server: EmbeddedNats, model: Folder, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Network]:
    """A negotiator and two vLLM workers, alike in everything."""
    config = fast(nats_server.url, data=tmp_path_factory.mktemp("data"))
    options = {"max_model_len": 2048, "kv_cache_memory_bytes": 16 << 20}
    served = [
        Served(ModelConfig(model=model.name, name=f"twin-{n}", engine="vllm", options=options), config) for n in "ab"
    ]
    for one in served:
        await one.start()
    try:
        async with Network(config) as network:
            await network.negotiator()
            await network.join(*(one.worker for one in served))
            for one in served:  # so that both know what their steps take
                for n in range(12):
                    await ask(network, chat(f"{n} the quick brown fox " * 20 * n), require={"worker": one.worker.id})
            # Alike in what they have learned, too: what differs is their caches.
            first, second = (one._outlook for one in served)
            second._predictor = first._predictor
            known, same = (one.engine.state().step_times for one in served)
            assert known is not None
            assert same is not None
            same.recall(known.save())
            same.pace, same.learn = known.pace, known.learn  # type: ignore[method-assign]
            yield network
    finally:
        for one in served:
            await one.close()


@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
async def test_who_has_a_conversation_bids_an_earlier_time_for_its_next_turn(stage: Network) -> None:
    """That this wins is the market's business, and measured by bench/affinity.py: here the machine may be busy."""
    for conversation in range(6):
        home, other = ("twin-a", "twin-b") if conversation % 2 else ("twin-b", "twin-a")
        turns = [f"{conversation} " + "over the lazy dog " * 300]
        first = await ask(stage, chat(*turns), require={"worker": home})
        assert first.output is not None
        turns += [first.output["text"] or "-", "jumps"]
        async with stage.ear("audit.>") as audits:
            second = await ask(stage, chat(*turns), **DEAR)
            (heard,) = await audits.until(lambda heard: len(heard) >= 1)
        claimed = {bid.worker: bid for bid in Transcript.decode(heard.data).bids}
        mine, theirs = claimed[home].first_ms, claimed[other].first_ms
        assert mine is not None
        assert theirs is not None
        assert mine < theirs / 1.5
        assert claimed[home].p50_ms < claimed[other].p50_ms
        assert second.usage is not None
        assert (second.usage.cached_tokens > 1000) == (second.worker == home)


@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
async def test_what_was_predicted_and_what_came_stand_in_the_trace(stage: Network) -> None:
    task = await stage.client.submit("text.generate", chat("fox " * 50), deadline_s=WAIT_S)
    async with asyncio.timeout(WAIT_S):
        final = await task.result()
        found = await stage.client.trace(task.id)
        while not found.transcripts:
            found = await stage.client.trace(task.id)
    (_, transcript), *_ = found.transcripts
    assert isinstance(transcript, Transcript)
    won = next(bid for bid in transcript.bids if bid.worker == final.worker)
    assert won.first_ms is not None
    assert 0 < won.first_ms <= won.p50_ms <= won.p90_ms
    assert final.usage is not None
    assert final.usage.first_ms is not None
    assert 0 < final.usage.first_ms <= final.usage.run_ms
    assert final.usage.run_ms < 50 * won.p90_ms


@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
async def test_tenants_share_no_cache(stage: Network) -> None:
    prompt = chat("brown fox jumps over " * 100)
    home = {"require": {"worker": "twin-a"}}
    config = stage.config.model_copy(update={"tenant": "other"})
    async with Network(config) as other:
        before, again, theirs = [await ask(who, prompt, **home) for who in (stage, stage, other)]
    counted = [final.usage.cached_tokens if final.usage else -1 for final in (before, again, theirs)]
    assert counted[0] == 0
    assert counted[1] > 0
    assert counted[2] == 0
