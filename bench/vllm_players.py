"""Who asks in the benches of vLLM: processes of their own that do nothing else, each of one kind of server or engine.

python -m bench.vllm_players KIND WHERE     # a child, told by lines of JSON what to play
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import aiohttp
import nats
import uvloop
from nats.aio.client import Client

import modelnet
from bench.gateway import KEY
from bench.lifecycle_floor import FloorClient
from modelnet.cores import starting_on
from modelnet.engines.vllm_setup import engine_options, prepare_environment
from modelnet.messages import Delta

__all__ = [
    "Answer",
    "Kind",
    "Player",
    "Question",
    "Stream",
    "async_llm",
    "cached",
    "engine_environment",
    "http_client",
    "settle_memory",
    "summary",
]

CACHE, OPTIONS, DOOR_KEY = "VLLM_CACHE_ROOT", "BENCH_ENGINE_OPTIONS", "BENCH_KEY"
CORES = "BENCH_ENGINE_CORES"

BARE_EVERY = 8
"""Seldom enough not to take part in what is measured."""

Kind = Literal["LLMEngine", "AsyncLLM", "http", "bus", "floor"]


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
    auction_ms: float = 0.0
    """Of a network: what its Final says of the auction and the award."""
    bare_ms: float = 0.0
    """Of a network, behind one answer in `BARE_EVERY`: a bare round trip on its server."""


Stream = list[Question]
"""Asked one after another."""

Ask = Callable[[str, int, float], Awaitable[Answer]]
"""A prompt's answer of so many tokens, and when it was due."""

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
        "auction p50": statistics.median(one.auction_ms for one in answers),
        "bare p50": statistics.median([one.bare_ms for one in answers if one.bare_ms] or [0.0]),
    }


class Player:
    """A child that asks, told what to play."""

    def __init__(
        self,
        kind: Kind,
        where: str,
        log: Path,
        options: Mapping[str, Any],
        cores: Sequence[int] = (),
        cache: Path | None = None,
    ) -> None:
        """`where`: the model's folder or the address. `log`: for what it has to say of itself. `options`: of an engine
        of its own, `cores` for its process if it is to have some to itself, `cache` for what it compiles."""
        self._kind, self._log = kind, log
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.vllm_players", kind, where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=os.environ | engine_environment(options, cores, cache) | {DOOR_KEY: KEY},
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
        raise SystemExit(f"the process that asks {self._kind} ended:\n{self._log.read_text()[-3000:]}")


async def _child(kind: str, where: str) -> None:
    """The other end of a `Player`."""
    async with _PLAYERS[kind](where) as play:
        settle_memory()
        sys.stdout.write("player: ready\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            streams = [[Question(*one) for one in stream] for stream in json.loads(line)]
            sys.stdout.write(f"player: {json.dumps(await play(streams))}\n")
            sys.stdout.flush()


def settle_memory() -> None:
    """What is there by now is never looked at again for garbage, as in modelnet's processes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


async def _play(ask: Ask, streams: list[Stream]) -> list[Answer]:
    began = time.perf_counter()

    async def stream(questions: Stream) -> list[Answer]:
        found = []
        for one in questions:
            asked = time.perf_counter()
            if one.due is not None:
                await asyncio.sleep(max(began + one.due - asked, 0.0))
                asked = began + one.due
            found.append(await ask(one.prompt, one.tokens, asked))
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
                        then = streams[number][turn + 1].due
                        heapq.heappush(waiting, (now - began if then is None else then, number, turn + 1))
        return found

    yield play


@contextlib.asynccontextmanager
async def async_llm(where: str) -> AsyncIterator[Callable[[str, int], AsyncIterator[Any]]]:
    """vLLM's AsyncLLM, the engine in a process of its own, as `vllm serve` and modelnet have it: a prompt's answer of
    so many tokens, as vLLM's outputs."""
    arguments = _engine_arguments(where, in_process=False)
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    with starting_on(json.loads(os.environ[CORES])):
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(disable_log_stats=True, **arguments))
    tokenizer, numbers = llm.renderer.get_tokenizer(), itertools.count()

    async def generate(prompt: str, tokens: int) -> AsyncIterator[Any]:
        params = SamplingParams(max_tokens=tokens, temperature=0, output_kind=RequestOutputKind.DELTA)
        rendered = {"type": "token", "prompt_token_ids": tokenizer.encode(prompt)}
        async for output in llm.generate(rendered, params, str(next(numbers))):
            yield output.outputs[0]

    yield generate
    llm.shutdown()


@contextlib.asynccontextmanager
async def _async(where: str) -> AsyncIterator[Play]:
    """AsyncLLM, asked in this process."""
    async with async_llm(where) as generate:

        async def ask(prompt: str, tokens: int, asked: float) -> Answer:
            first, last, counted = 0.0, 0.0, 0
            async for output in generate(prompt, tokens):
                last = time.perf_counter()
                first = first or last
                counted += len(output.token_ids)
            return Answer(asked, first, last, counted)

        yield lambda streams: _play(ask, streams)


@contextlib.asynccontextmanager
async def _http(where: str) -> AsyncIterator[Play]:
    """A client of a server that speaks OpenAI's protocol."""
    headers = {"Authorization": f"Bearer {os.environ[DOOR_KEY]}"}
    async with http_client() as session:

        async def ask(prompt: str, tokens: int, asked: float) -> Answer:
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
            return Answer(asked, first, last, counted)

        yield lambda streams: _play(ask, streams)


@contextlib.asynccontextmanager
async def _bus(where: str) -> AsyncIterator[Play]:
    """A client of a network."""
    async with modelnet.connect(where) as net:
        bare = _bare_now_and_then(net.bus)

        async def ask(prompt: str, tokens: int, asked: float) -> Answer:
            task = await net.submit("text.generate", {"prompt": prompt, "max_tokens": tokens, "temperature": 0})
            first, last = 0.0, 0.0
            async for event in task.stream():
                if isinstance(event, Delta):
                    last = time.perf_counter()
                    first = first or last
            final = await task.result()
            assert final.usage is not None
            bare_ms = await bare()
            return Answer(asked, first, last, final.usage.completion_tokens, final.timings.negotiation_ms, bare_ms)

        yield lambda streams: _play(ask, streams)


@contextlib.asynccontextmanager
async def _floor(where: str) -> AsyncIterator[Play]:
    """A client of the floor under a network."""
    nc = await nats.connect(where)
    client, bare = FloorClient(nc), _bare_now_and_then(nc)
    await client.listen()

    async def ask(prompt: str, tokens: int, asked: float) -> Answer:
        first, last, counted = 0.0, 0.0, 0

        def read(delta: Any) -> None:
            nonlocal first, last, counted
            last = time.perf_counter()
            first = first or last
            counted += len(delta["tokens"])

        auction_ms = await client.stream({"prompt": prompt, "tokens": tokens}, read)
        return Answer(asked, first, last, counted, auction_ms, await bare())

    yield lambda streams: _play(ask, streams)
    await nc.close()


def _bare_now_and_then(nc: Client) -> Callable[[], Awaitable[float]]:
    """The milliseconds of a bare round trip, each `BARE_EVERY`th time; 0 else."""
    numbers = itertools.count()

    async def bare() -> float:
        if next(numbers) % BARE_EVERY:
            return 0.0
        began = time.perf_counter()
        await nc.request("echo", b"x" * 200, timeout=5)
        return (time.perf_counter() - began) * 1e3

    return bare


_PLAYERS: dict[str, Callable[[str], AbstractAsyncContextManager[Play]]] = {
    "LLMEngine": _stepped,
    "AsyncLLM": _async,
    "http": _http,
    "bus": _bus,
    "floor": _floor,
}


def http_client() -> aiohttp.ClientSession:
    """A client of HTTP with no limits of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2), timeout=aiohttp.ClientTimeout(total=None)
    )


def engine_environment(options: Mapping[str, Any], cores: Sequence[int], cache: Path | None) -> dict[str, str]:
    """For a process that has an engine: see `Player`."""
    return cached(cache) | {OPTIONS: json.dumps(options), CORES: json.dumps(cores)}


def cached(folder: Path | None) -> dict[str, str]:
    """What makes vLLM keep what it compiles in this folder, as environment variables."""
    return {CACHE: str(folder)} if folder is not None else {}


if __name__ == "__main__":
    uvloop.run(_child(*sys.argv[1:]))
