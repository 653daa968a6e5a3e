"""A network with a gateway for each module; workers join in the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import openai
import pytest_asyncio

from modelnet.bus.embedded import EmbeddedNats
from tests.gateway.actor import Actor
from tests.gateway.doors import Gateway
from tests.network.stage import Network, fast


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(nats_server: EmbeddedNats) -> AsyncIterator[Network]:
    """A network with one negotiator, for the whole module."""
    async with Network(fast(nats_server.url)) as network:
        await network.negotiator()
        yield network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(network: Network) -> AsyncIterator[Gateway]:
    """A gateway on it that asks for no keys."""
    async with Gateway(network.config) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client of it."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        yield http


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def actor(network: Network) -> Actor:
    """One that plays text.generate."""
    actor = Actor(network)
    await network.join(actor.worker)
    return actor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: Gateway, actor: Actor) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client. Tests take it as `Any`: what it is given is meant for the wire, not for its overloads."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client
