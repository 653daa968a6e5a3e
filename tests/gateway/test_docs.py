"""The snippets of docs/gateway.md, as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.actor import Actor
from tests.gateway.doors import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PACKAGES = ("dspy==3.4.1", "langchain-openai==1.7.4", "llama-index-llms-openai-like==0.8.1")


def snippet(word: str) -> str:
    """The one that has this word."""
    found: list[str] = [one for one in SNIPPETS if word in one]
    assert len(found) == 1
    return found[0]


async def run(gateway: Gateway, *command: str) -> str:
    """What a command says, told where the gateway is."""
    env = {**os.environ, "MODELNET_GATEWAY_URL": gateway.url, "DSPY_CACHEDIR": ""}
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(100):
        said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    return said.decode()


async def test_curl(gateway: Gateway, actor: Actor) -> None:
    command = PAGE[PAGE.index("    curl ") :].split("\n\n")[0]
    assert '"content":"one two three"' in await run(gateway, "sh", "-c", command)


async def test_openais_client(gateway: Gateway, actor: Actor) -> None:
    said = await run(gateway, sys.executable, "-c", snippet("import openai\n"))
    assert said.splitlines()[0] == "one two three"


@pytest.fixture(scope="module")
def python(pytestconfig: pytest.Config) -> Path:
    """A Python that has the frameworks, which are large; kept for the next run."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("frameworks")
    python, done = folder / "venv" / "bin" / "python", folder / "installed"
    if not done.is_file() or done.read_text() != "\n".join(PACKAGES):
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "-q", "--clear", "-p", sys.executable, str(folder / "venv")], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *PACKAGES], check=True)
        done.write_text("\n".join(PACKAGES))
    return python


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("word", ["dspy.LM", "ChatOpenAI", "OpenAILike"])
async def test_frameworks(gateway: Gateway, actor: Actor, python: Path, word: str) -> None:
    said = await run(gateway, str(python), "-c", snippet(word))
    assert set(said.splitlines()) == {"one two three"}
