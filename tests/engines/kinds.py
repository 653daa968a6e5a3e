"""Every kind of engine, started over a model folder, for the tests that hold for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelnet import Piece
from modelnet.bus.embedded import HeldPort
from modelnet.engines import Chunk, Engine, Prompt, Sampling, open_engine, vllm_available
from modelnet.engines.function import FunctionEngine
from modelnet.engines.openai import OpenAIEngine
from tests.engines.models import Folder
from tests.engines.openai_server import OpenAIServer

__all__ = ["KINDS", "Opened", "drawn", "opened", "vllm_serve"]

_needs_vllm = pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
_slow = [_needs_vllm, pytest.mark.slow, pytest.mark.timeout(600)]
KINDS = [
    pytest.param("numpy"),
    pytest.param("vllm", marks=_needs_vllm),
    pytest.param("vllm-async", marks=_slow),
    pytest.param("function"),
    pytest.param("openai"),
    pytest.param("openai-vllm"),  # says that it is vLLM, and speaks as vLLM does
    pytest.param("vllm-serve", marks=_slow),
]
DEAR = frozenset({"vllm-async", "vllm-serve"})
"""With processes that take so long to start that tests share them."""


@dataclass
class Opened:
    """An engine, and what it takes to kill what it runs on."""

    engine: Engine
    kill: Callable[[], Awaitable[None]]


@asynccontextmanager
async def opened(kind: str, folder: Folder) -> AsyncIterator[Opened]:
    """An engine that was not started yet, and whatever it needs around it."""
    if kind in ("function", "openai", "openai-vllm"):
        async with opened("numpy", folder) as behind:
            await behind.engine.start()
            if kind == "function":
                async with _closed(Opened(_function(behind.engine), _no_kill)) as found:
                    yield found
                return
            server = OpenAIServer(behind.engine, "tiny", vllm=kind == "openai-vllm")
            await server.start()
            try:
                async with _closed(Opened(OpenAIEngine("tiny", url=server.url), server.stop)) as found:
                    yield found
            finally:
                await server.stop()
        return
    if kind == "vllm-serve":
        async with vllm_serve(folder) as (url, process):
            engine = OpenAIEngine("tiny", url=url)
            async with _closed(Opened(engine, lambda: asyncio.to_thread(_kill, process))) as found:
                yield found
        return
    own: Any = open_engine(folder.name, kind=kind)  # type: ignore[arg-type]
    async with _closed(Opened(own, lambda: _fail(own))) as found:
        yield found


@asynccontextmanager
async def _closed(found: Opened) -> AsyncIterator[Opened]:
    try:
        yield found
    finally:
        await found.engine.close()


async def _no_kill() -> None:
    pytest.skip("a function runs on nothing that could die")


async def _fail(engine: Any) -> None:
    """What runs the model dies in the middle of a step."""
    if hasattr(engine, "_core"):

        def fail() -> None:
            raise RuntimeError("out of memory")

        engine._core.step = fail
    else:
        for process in engine._llm.engine_core.resources.engine_manager.processes:
            process.kill()


def _function(behind: Engine) -> Engine:
    """A function that has another engine answer, word by word."""

    async def answer(prompt: Prompt, sampling: Sampling) -> AsyncIterator[str]:
        async for chunk in behind.generate(os.urandom(8).hex(), prompt, sampling):
            yield Piece(chunk.text, chunk.token_ids)

    return FunctionEngine("tiny", answer=answer)


def drawn(chunks: list[Chunk]) -> tuple[int, ...] | str:
    """What an answer consists of: its tokens, or its text where they are not told."""
    ids = [chunk.token_ids for chunk in chunks]
    known = [one for one in ids if one is not None]
    if len(known) == len(ids):
        return tuple(token for one in known for token in one)
    return "".join(chunk.text for chunk in chunks)


@asynccontextmanager
async def vllm_serve(folder: Folder) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """vLLM's own server in a process, with the model under the name `tiny`: where its API is, and the process."""
    held = HeldPort()
    port = held.number
    # By its module: `vllm serve` asks for a distribution named vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder.name]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--distributed-executor-backend", "uni", "--kv-cache-memory-bytes", str(64 << 20)]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    cpu = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment, quiet = {**os.environ, **offline, **cpu}, subprocess.DEVNULL
    process = await asyncio.to_thread(
        subprocess.Popen, command, env=environment, cwd=Path(folder.name), stdout=quiet, stderr=quiet
    )
    try:
        await asyncio.to_thread(_until_healthy, f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        await asyncio.to_thread(_kill, process)
        held.release()


def _until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    raise AssertionError(f"vLLM's server ended with {process.returncode}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
