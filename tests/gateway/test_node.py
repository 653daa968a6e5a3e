"""OpenAI's client for Node."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.actor import Actor
from tests.gateway.doors import Gateway
from tests.network.stage import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERSION = "7.57.0"


@pytest.fixture(scope="module")
def modules(pytestconfig: pytest.Config) -> Path:
    """A folder with the client, kept for the next run."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed")
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(f"openai-node-{VERSION}")
    if not (folder / "node_modules" / "openai" / "package.json").is_file():
        # A download that stands still is begun again: npm by itself waits five minutes for it.
        patience = ["--fetch-timeout=20000", "--fetch-retries=2", "--fetch-retry-mintimeout=1000"]
        command = ["npm", "install", "--no-audit", "--no-fund", *patience, "--prefix", str(folder), f"openai@{VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm cannot install openai {VERSION} in 90 s")
        if done.returncode != 0:
            pytest.skip(f"npm cannot install openai {VERSION}: {done.stderr.strip().splitlines()[-1:]}")
    return folder


async def test_openais_client_for_node(gateway: Gateway, actor: Actor, modules: Path) -> None:
    script = modules / "client.mjs"
    script.write_bytes(Path(__file__).with_name("client.mjs").read_bytes())
    actor.left.clear()
    process = await asyncio.create_subprocess_exec(
        "node", str(script), gateway.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    found = json.loads(said)
    assert found["whole"] == found["streamed"] == "one two three"
    assert found["response"] == "one two"
    assert found["vector"] == [2, 0.5]
    assert {"text.generate", "parrot"} <= set(found["models"])
    assert found["error"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert found["left"].startswith("begun ")
    await until(actor.left)
