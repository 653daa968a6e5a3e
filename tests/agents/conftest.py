"""A network with one negotiator, workers that stream and wait, and the doors of agents open on a port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Self

import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import modelnet
from modelnet import Context, Progress, Reject
from modelnet.agents.a2a_routes import a2a_routes
from modelnet.agents.mcp_http import McpEndpoint
from modelnet.bus.embedded import EmbeddedNats
from modelnet.presence import Presence
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

        @worker.capability("test.lists.items_of", contract={"input": {}, "output": {}}, price=1)
        async def items(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            return {"tenant": ctx.tenant, "input": input}


class Keys:
    """Lets requests in that bear a key; here a tenant's key is its name. What is well known is for everybody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/.well-known/"):
            scheme, _, key = Request(scope).headers.get("authorization", "").partition(" ")
            if scheme != "Bearer" or not key:
                await JSONResponse({"error": "no key"}, status_code=401)(scope, receive, send)
                return
            scope["tenant"] = key
        await self._app(scope, receive, send)


class Door:
    """The doors on a port of this machine."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        client = await self._stack.enter_async_context(modelnet.connect(config=self._network.config))
        self.presence = await self._stack.enter_async_context(Presence(client))

        def tenant_of(request: Request) -> str:
            return str(request.scope["tenant"])

        endpoint = McpEndpoint(client, self.presence, tenant_of=tenant_of, origins=["https://friend.example"])

        @asynccontextmanager
        async def serving(app: Starlette) -> AsyncIterator[None]:
            async with endpoint.running():
                yield

        agents = a2a_routes(client, self.presence, tenant_of=tenant_of, url_of=lambda _: self.url)
        app = Starlette(routes=[*agents, Route("/mcp", endpoint)], lifespan=serving)
        listening = socket.create_server(("127.0.0.1", 0))  # from here on a client's connection waits
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(Keys(app), log_level="error", timeout_graceful_shutdown=2))
        self._serving = asyncio.create_task(self._server.serve([listening]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        await self._serving
        await self._stack.aclose()


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
async def door(network: Network, joined: Worker) -> AsyncIterator[Door]:
    """The doors, open."""
    async with Door(network) as door:
        yield door


async def served(presence: Presence, capability: str) -> None:
    """Wait until somebody serves a capability."""
    async with asyncio.timeout(PATIENCE_S), aclosing(presence.changes()) as changes:
        while presence.contract(capability) is None:
            await anext(changes)


async def soon(queue: asyncio.Queue[str]) -> str:
    """The next item of a queue, but not for ever."""
    return await asyncio.wait_for(queue.get(), PATIENCE_S)
