"""A cancel on the bus reaches the engine: its own counters say that the request and its cache are gone."""

from __future__ import annotations

import time

import pytest

from modelnet.bus.embedded import EmbeddedNats
from modelnet.engines import EngineKind, vllm_available
from modelnet.messages import Delta, Final
from tests.engines.models import CONTEXT, LOOP, Folder
from tests.network.stage import PATIENCE_S, Network, fast
from workers.vllm import ModelConfig, Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE = 8
FREED_S = 1.0
"""Tenfold what it takes on an idle machine: this one may be busy with anything."""


@pytest.mark.parametrize(
    "kind",
    [
        "numpy",
        pytest.param("vllm", marks=pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")),
    ],
)
async def test_a_cancel_frees_the_engine(nats_server: EmbeddedNats, chain_folder: Folder, kind: EngineKind) -> None:
    config = fast(nats_server.url)
    name = f"endless-{kind}"
    served = Served(ModelConfig(model=chain_folder.name, name=name, engine=kind), config)
    await served.start()
    try:
        async with Network(config) as network:
            await network.negotiator()
            await network.join(served.worker)
            endless = {"prompt": LOOP, "max_tokens": CONTEXT, "temperature": 0}
            tasks = [
                await network.client.submit("text.generate", endless, require={"worker": name}) for _ in range(AT_ONCE)
            ]
            streams = [task.stream() for task in tasks]
            for stream in streams:
                async for event in stream:
                    if isinstance(event, Delta):
                        break
            before = served.engine.state()
            assert before.running == AT_ONCE
            assert before.kv_cache_usage > 0
            first, *others = tasks
            asked = time.perf_counter()
            assert await first.cancel()
            async for event in streams[0]:
                if isinstance(event, Final):
                    assert event.status == "cancelled"
            reader_s = time.perf_counter() - asked
            while served.engine.state().running > len(others):
                assert time.perf_counter() - asked < PATIENCE_S
                await served.engine.abort("settle")  # a turn of the engine
            freed_s = time.perf_counter() - asked
            assert max(reader_s, freed_s) < FREED_S
            print(f"{kind}: the reader knew after {reader_s * 1e3:.1f} ms, the engine after {freed_s * 1e3:.1f} ms")
            for task in others:
                await task.cancel()
            for task in others:
                assert (await task.final()).status == "cancelled"
            while served.engine.state().running:
                await served.engine.abort("settle")
            after = served.engine.state()
            assert (after.running, after.waiting, after.kv_cache_usage) == (0, 0, 0)
    finally:
        await served.close()
