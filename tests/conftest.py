"""Fixtures of every test: servers of the module's own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedNats]:
    """A server with JetStream and empty streams; lives as long as the test module."""
    server = EmbeddedNats(tmp_path_factory.mktemp("nats"))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedRedis]:
    """A Redis that holds nothing yet; lives as long as the test module."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
