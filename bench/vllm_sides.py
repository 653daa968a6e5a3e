"""The ways to a vLLM engine that bench/vllm_tax.py and bench/vllm_streams.py compare: `vllm serve` over HTTP, LiteLLM's
proxy before one, and modelnet; all with the same engine options, and each asked by one small function.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

import modelnet
from bench.gateway import KEY, litellm_proxy
from bench.overhead import end, server, spawn
from modelnet.bus.embedded import free_port
from modelnet.engines.vllm_setup import engine_options, prepare_environment
from modelnet.messages import Delta

__all__ = ["CACHE", "Ask", "Network", "http", "network", "over_bus", "over_http", "proxied", "serve"]

START_S = 240.0
CACHE = "VLLM_CACHE_ROOT"

Ask = Callable[[str, int], Awaitable[tuple[float, float, int]]]
"""A prompt's answer of so many tokens: when the first was there, when the last, on time.perf_counter; how many came."""


def http() -> aiohttp.ClientSession:
    """A client with no limit of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2), timeout=aiohttp.ClientTimeout(total=None)
    )


@contextlib.asynccontextmanager
async def serve(folder: Path, options: Mapping[str, Any], *, cache: Path | None = None) -> AsyncIterator[str]:
    """`vllm serve`: its address. `options`: vLLM's engine arguments. `cache`: for what it compiles, else the user's."""
    prepare_environment(str(folder), in_process=False)
    port = free_port()
    given = {name: value for name, value in engine_options(str(folder), dict(options)).items() if name != "model"}
    flags = ["--disable-log-stats", "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag if value else flag.replace("--", "--no-", 1)] if isinstance(value, bool) else [flag, str(value)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    quiet = asyncio.subprocess.DEVNULL
    env = os.environ | ({CACHE: str(cache)} if cache is not None else {})
    served = await asyncio.create_subprocess_exec(*command, *flags, stdout=quiet, stderr=quiet, env=env)
    base = f"http://127.0.0.1:{port}"
    try:
        async with http() as session:
            await _until_up(session, f"{base}/health", lambda: served.returncode is not None)
        yield base
    finally:
        with contextlib.suppress(ProcessLookupError):
            served.terminate()
        await served.wait()


@contextlib.asynccontextmanager
async def proxied(folder: Path, options: Mapping[str, Any], python: Path) -> AsyncIterator[str]:
    """LiteLLM's proxy before a `vllm serve`: its address. `python`: of the environment that has it."""
    async with (
        serve(folder, options) as upstream,
        litellm_proxy(python, folder.parent, "m", "text-completion-openai/m", upstream) as base,
        http() as session,
    ):
        await _until_up(session, f"{base}/health/liveliness")
        yield base


def over_http(session: aiohttp.ClientSession, base: str) -> Ask:
    """A client of a server that speaks OpenAI's protocol."""

    async def ask(prompt: str, tokens: int) -> tuple[float, float, int]:
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        usage = {"stream_options": {"include_usage": True}}
        first, last, counted = 0.0, 0.0, 0
        headers = {"Authorization": f"Bearer {KEY}"}
        async with session.post(f"{base}/v1/completions", json={**body, **usage}, headers=headers) as reply:
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if event["choices"]:
                        last = time.perf_counter()
                        first = first or last
                    if event.get("usage"):
                        counted = event["usage"]["completion_tokens"]
        return first, last, counted

    return ask


@dataclass(frozen=True, slots=True)
class Network:
    """A modelnet that runs."""

    url: str
    negotiator: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]


@contextlib.asynccontextmanager
async def network(
    folder: Path, options: Mapping[str, Any], engine: str, slots: int, *, cache: Path | None = None
) -> AsyncIterator[Network]:
    """A server, a negotiator, and a worker."""
    file = folder.parent / f"{engine}.toml"
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    file.write_text(f'[[models]]\nmodel = "{folder}"\nslots = {slots}\nengine = "{engine}"\noptions = {{ {table} }}\n')
    async with server() as url:
        env = {"MODELNET_URL": url, "MODELNET_REDIS_URL": "redis://127.0.0.1:1/0", "MODELNET_DATA": str(folder.parent)}
        env |= {"MODELNET_LOG_LEVEL": "info", "MODELNET_WORKERS_FILE": str(file)}
        env |= {CACHE: str(cache)} if cache is not None else {}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        try:
            children.append(spawn(["modelnet.run", "workers.vllm:app"], b"workers_joined", env))
            yield Network(url, *children)
        finally:
            end(children)


def over_bus(net: modelnet.Client) -> Ask:
    """A client of a network."""

    async def ask(prompt: str, tokens: int) -> tuple[float, float, int]:
        task = await net.submit("text.generate", {"prompt": prompt, "max_tokens": tokens, "temperature": 0})
        first, last = 0.0, 0.0
        async for event in task.stream():
            if isinstance(event, Delta):
                last = time.perf_counter()
                first = first or last
        final = await task.result()
        assert final.usage is not None
        return first, last, final.usage.completion_tokens

    return ask


async def _until_up(session: aiohttp.ClientSession, url: str, ended: Callable[[], bool] = lambda: False) -> None:
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as reply:
                    if reply.status == 200:
                        return
            if ended():
                raise SystemExit(f"what was to answer at {url} ended before it was ready")
            await asyncio.sleep(0.5)
