"""Fixtures of every test: servers of the module's own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis

# How long an example takes says how busy the machine is, nothing about what is tested.
hypothesis_settings.register_profile("modelnet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("modelnet")


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
