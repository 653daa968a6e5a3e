"""A network with one negotiator, workers that stream and wait, and the doors of agents open on a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from starlette.datastructures import Headers

from modelnet import Context, Progress, Reject
from modelnet.bus.embedded import EmbeddedNats
from tests.gateway.doors import Gateway
from tests.network.stage import PATIENCE_S, Network, fast
from workers.gateway.entrance import Entrance
from workers.gateway.refusal import Refusal

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(network: Network, joined: Worker) -> AsyncIterator[Gateway]:
    """A gateway whose doors are open."""
    # Until there are keys: a bearer's key is the name of its tenant.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Entrance, "_tenant", _tenant)
        async with Gateway(network.config) as gateway:
            yield gateway


def _tenant(entrance: Entrance, headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or not key:
        raise Refusal(401, "invalid_api_key", "no key")
    return key


async def soon(queue: asyncio.Queue[str]) -> str:
    """The next item of a queue, but not for ever."""
    return await asyncio.wait_for(queue.get(), PATIENCE_S)
