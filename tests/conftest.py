"""Fixtures of every test: servers of the module's own, and the JavaScript examples where there is a Node."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

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


@pytest.fixture(scope="session")
def node_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples in JavaScript and the packages that they name."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("examples")
    for file in (*EXAMPLES.glob("*.mjs"), EXAMPLES / "package.json"):
        shutil.copy(file, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install the examples' packages: {done.stderr.strip().splitlines()[-1:]}")
    return folder
