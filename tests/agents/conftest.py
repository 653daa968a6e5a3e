"""A network with one negotiator, workers that stream and wait, and the doors of agents open on a port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from modelnet import Context, Progress, Reject
from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis
from modelnet.errors import TenantExists
from modelnet.settings import Settings
from modelnet.store.tenants import Tenants
from tests.gateway.doors import Gateway
from tests.network.stage import PATIENCE_S, Network, fast

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}


class Worker:
    """A worker for doors, and what it has seen of its tasks."""

    def __init__(self, network: Network) -> None:
        self.started: asyncio.Queue[str] = asyncio.Queue()
        """Tasks that wait at the gate."""
        self.stopped: asyncio.Queue[str] = asyncio.Queue()
        """Tasks that have left it, however."""
        self.gate = asyncio.Event()
        self.worker = worker = network.worker("doors", slots=256)

        @worker.capability("text.upper", contract={"input": TEXT, "output": TEXT}, price=2, description="Capitals.")
        async def upper(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            return {"text": input["text"].upper()}

        @worker.capability("text.generate", price=3)
        async def generate(ctx: Context, input: dict[str, Any]) -> AsyncIterator[str | dict[str, Any]]:
            yield "one "
            yield "two"
            yield {"text": "one two", "finish_reason": "stop"}

        @worker.capability("test.slow", contract={"input": TEXT, "output": TEXT}, price=1)
        async def slow(ctx: Context, input: dict[str, Any]) -> AsyncIterator[str | Progress | dict[str, Any]]:
            try:
                yield "begun "
                yield Progress(0.5, "half way")
                self.started.put_nowait(ctx.task)
                await self.gate.wait()
                yield input["text"]
                yield {"text": f"begun {input['text']}"}
            finally:
                self.stopped.put_nowait(ctx.task)

        @worker.capability("test.double", contract={"input": NUMBER, "output": NUMBER}, price=1)
        async def double(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            assert type(input["number"]) is int
            return {"number": 2 * input["number"]}

        @worker.capability("test.steps", contract={"input": {}, "output": {}}, price=1)
        async def steps(ctx: Context, input: dict[str, Any]) -> AsyncIterator[Progress | dict[str, Any]]:
            yield Progress(0.25, "a quarter")
            yield Progress(0.75)
            yield {"done": True}

        @worker.capability("test.reject", contract={"input": {}, "output": {}}, price=1)
        async def reject(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            raise Reject("not today", code="not_today")

        @worker.capability("test.tokens", contract={"input": {}, "output": {}}, price=1)
        async def tokens(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            ctx.count(prompt_tokens=20, completion_tokens=10)
            return {}

        @worker.capability("test.lists.items_of", contract={"input": {}, "output": {}}, price=1)
        async def items(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            return {"tenant": ctx.tenant, "input": input}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(nats_server: EmbeddedNats) -> AsyncIterator[Network]:
    """A network with one negotiator, for the whole module."""
    async with Network(fast(nats_server.url)) as network:
        await network.negotiator()
        yield network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def joined(network: Network) -> Worker:
    """The worker, on the network."""
    worker = Worker(network)
    await network.join(worker.worker)
    return worker


@pytest.fixture
def worker(joined: Worker) -> Worker:
    """The worker, its gate closed, and nothing seen yet."""
    joined.gate.clear()
    joined.started, joined.stopped = asyncio.Queue(), asyncio.Queue()
    return joined


class Door(Gateway):
    """A gateway that asks for keys, and gives them out."""

    async def key(self, tenant: str) -> str:
        """A key of a tenant, which is made if there is none of this name."""
        if tenant not in self._keys:
            async with Tenants(self.config.redis) as tenants:
                with contextlib.suppress(TenantExists):
                    await tenants.create(tenant)
                _, self._keys[tenant] = await tenants.add_key(tenant)
        return self._keys[tenant]

    def __init__(self, config: Settings) -> None:
        super().__init__(config, gateway_keys="required")
        self._keys: dict[str, str] = {}

    @property
    def again(self) -> Door:
        """Another gateway of the same network; the same keys open it."""
        other = Door(self.config)
        other._keys = self._keys
        return other


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(network: Network, joined: Worker, redis_server: EmbeddedRedis) -> AsyncIterator[Door]:
    """A gateway whose doors are open."""
    async with Door(network.config.model_copy(update={"redis_url": redis_server.url})) as door:
        yield door


async def soon(queue: asyncio.Queue[str]) -> str:
    """The next item of a queue, but not for ever."""
    return await asyncio.wait_for(queue.get(), PATIENCE_S)
