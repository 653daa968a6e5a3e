"""A network for each module: one server, one negotiator, a client; workers join in the tests."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from modelnet.bus.embedded import EmbeddedNats
from modelnet.client import Client
from tests.network.stage import Network, Store, fast


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare_network(nats_server: EmbeddedNats) -> AsyncIterator[Network]:
    """A server and a client, nobody else."""
    async with Network(fast(nats_server.url)) as network:
        yield network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(bare_network: Network) -> Network:
    """A network with one negotiator, for the whole module."""
    await bare_network.negotiator()
    return bare_network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(network: Network) -> Client:
    """The module's client."""
    return network.client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    """A Redis of the module's own."""
    store = Store(tmp_path_factory.mktemp("redis"))
    await store.start()
    yield store
    await store.kill()
