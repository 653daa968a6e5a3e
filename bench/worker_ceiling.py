"""How much text one worker process can carry, without a model: a synthetic engine emits tokens as fast as is asked of
it, through the real worker, its handler and the bus, to a reader in another process.

    python -m bench.worker_ceiling [--streams 1,16,64] [--rates 1000,4000,16000] [--seconds 5] [--write]

For each number of streams the rate (tokens a second of all streams together) rises until the worker lags: until the
last token leaves it more than a tenth late. A token is four characters. `sustained` is what came through; messages a
second show how deltas are coalesced; CPU is of the worker's process alone, with its engine's thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import modelnet
from modelnet.bus.embedded import EmbeddedNats
from modelnet.engines import Ability, Chunk, Embeddings, EngineState, Prompt, Sampling, Scores, Unsupported
from modelnet.messages import Delta, Final
from modelnet.settings import Settings
from modelnet.worker import worker_app
from workers.negotiator import make_app as negotiator_app
from workers.vllm import ModelConfig, Served

RESULTS = Path(__file__).parent / "results" / "worker_ceiling.txt"
TOKEN = "word"
STEPS_PER_S = 50
"""Steps of the engine: in each, every stream gets its share of tokens in one chunk, as from a decoding batch."""
LATE = 1.1
MOST_TOKENS = 32_768
"""The contract's bound of `max_tokens`: one stream at a high rate ends early."""


class Synthetic:
    """An engine whose requests name their rate as the prompt: tokens a second."""

    model, software, max_model_len = "synthetic", "synthetic", 1 << 20
    abilities: frozenset[Ability] = frozenset({"generate", "prompt"})

    def __init__(self) -> None:
        self._running = 0

    async def start(self) -> None: ...

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        return [0]

    async def decode(self, token_ids: list[int]) -> str:
        return TOKEN * len(token_ids)

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        rate = float(prompt.text or 0)
        self._running += 1
        began, drawn = time.perf_counter(), 0
        # As fast as an engine's steps come, but no more than one token a chunk where streams are slow.
        step_s = max(1 / STEPS_PER_S, 1 / rate)
        try:
            while drawn < sampling.max_tokens:
                due = int((time.perf_counter() - began) * rate) + 1
                count = min(due, sampling.max_tokens) - drawn
                if count > 0:
                    drawn += count
                    yield Chunk(
                        text=TOKEN * count,
                        token_ids=(1,) * count,
                        finish_reason="length" if drawn >= sampling.max_tokens else None,
                        prompt_tokens=1,
                        completion_tokens=drawn,
                    )
                ahead = began + drawn / rate - time.perf_counter()
                await asyncio.sleep(min(max(ahead, 0.0), step_s))
        finally:
            self._running -= 1

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        raise Unsupported("it makes tokens only")

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        raise Unsupported("it makes tokens only")

    async def abort(self, request_id: str) -> None: ...

    def state(self) -> EngineState:
        return EngineState(running=self._running, waiting=0, max_running=1 << 16, kv_cache_usage=0.0)

    def wait_s(self, tokens: int) -> float:
        return 0.0

    async def health(self) -> None: ...

    async def close(self) -> None: ...


def _settings(url: str) -> Settings:
    return Settings(url=url, redis_url="redis://127.0.0.1:1/0", log_level="error", log_format="json")


def _work(url: str, streams: int, pipe: Any) -> None:
    """The worker's process: it tells its CPU seconds whenever it is asked."""
    os.environ["MODELNET_LOG_LEVEL"] = "error"

    async def main() -> None:
        config = ModelConfig(model="bench/synthetic", name="synthetic", slots=streams, backlog=0, price=0)
        served = Served(config, _settings(url), Synthetic)
        await served.start()
        app = worker_app(served.worker)
        await app.start()
        pipe.send("ready")
        while await asyncio.to_thread(pipe.recv) == "cpu":
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(used.ru_utime + used.ru_stime)
        await app.stop()
        await served.close()

    import uvloop

    with uvloop_runner(uvloop) as runner:
        runner.run(main())


def uvloop_runner(uvloop: Any) -> asyncio.Runner:
    """As `modelnet.run` runs an app."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


@dataclass(frozen=True)
class Measured:
    """One load on one worker."""

    asked: float
    sustained: float
    messages_per_s: float
    cpu_ms_per_1000: float
    first_ms: float

    @property
    def kept_up(self) -> bool:
        return self.sustained * LATE >= self.asked


async def _stream(net: modelnet.Client, rate: float, tokens: int) -> tuple[int, float, float, float, int]:
    """Messages, when the first and the last delta came, when it was submitted, and tokens that came."""
    asked = time.perf_counter()
    task = await net.submit("text.generate", {"prompt": f"{rate}", "max_tokens": tokens}, deadline_s=120)
    messages, first, last, came = 0, 0.0, 0.0, 0
    async for event in task.stream():
        if isinstance(event, Delta):
            last = time.perf_counter()
            first = first or last
            messages += 1
            came += len(event.tokens or ())
        elif isinstance(event, Final):
            assert event.status == "completed", event.error
    return messages, first, last, asked, came


async def _load(net: modelnet.Client, pipe: Any, streams: int, rate: float, seconds: float) -> Measured:
    each = rate / streams
    tokens = min(max(int(each * seconds), 2), MOST_TOKENS)
    pipe.send("cpu")
    before = await asyncio.to_thread(pipe.recv)
    found = await asyncio.gather(*(_stream(net, each, tokens) for _ in range(streams)))
    pipe.send("cpu")
    cpu_s = await asyncio.to_thread(pipe.recv) - before
    assert all(came == tokens for *_, came in found)
    # Each by itself: a stream that began later must not make the others look slow.
    sustained = sum(tokens / max(last - first + 1 / each, 1e-9) for _, first, last, _, _ in found)
    span = max(last for _, _, last, _, _ in found) - min(first for _, first, *_ in found)
    return Measured(
        asked=rate,
        sustained=sustained,
        messages_per_s=sum(messages for messages, *_ in found) / max(span, 1e-9),
        cpu_ms_per_1000=cpu_s * 1e6 / (tokens * streams),
        first_ms=statistics.median((first - asked) * 1e3 for _, first, _, asked, _ in found),
    )


async def measure(streams: int, rates: Sequence[float], seconds: float) -> list[Measured]:
    """Rates in rising order, until one is not kept up with."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedNats(Path(folder))
        await server.start()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        config = _settings(server.url)
        negotiator = negotiator_app(config)
        await negotiator.start()
        process = context.Process(target=_work, args=(server.url, streams, theirs), daemon=True)
        process.start()
        try:
            assert await asyncio.to_thread(ours.recv) == "ready"
            found = []
            async with modelnet.connect(config=config) as net:
                await _load(net, ours, min(streams, 4), 100.0, 0.5)  # everything once, before it counts
                for rate in rates:
                    found.append(await _load(net, ours, streams, rate, seconds))
                    print(_line(streams, found[-1]), flush=True)
                    if not found[-1].kept_up:
                        break
            ours.send("end")
            return found
        finally:
            process.join(20)
            process.kill()
            await negotiator.stop()
            await server.stop()


def _line(streams: int, one: Measured) -> str:
    state = "" if one.kept_up else "  lags"
    return (
        f"{streams:>7}  {one.asked:>9,.0f}  {one.sustained:>9,.0f}  {one.messages_per_s:>8,.0f}"
        f"  {one.cpu_ms_per_1000:>12.1f}  {one.first_ms:>9.1f}{state}"
    )


def main() -> None:
    os.environ["MODELNET_LOG_LEVEL"] = "error"
    parser = argparse.ArgumentParser(description="How much text one worker process can carry.")
    parser.add_argument("--streams", default="1,16,64,256", help="numbers of streams")
    parser.add_argument("--rates", default="1000,4000,8000,16000,32000,64000", help="tokens a second, rising")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load")
    parser.add_argument("--write", action="store_true", help="keep the output under bench/results")
    asked = parser.parse_args()
    head = (
        f"bench/worker_ceiling.py, {date.today()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" {asked.seconds:g} s a load\n"
        "streams  asked t/s    sustained   msgs/s  CPU ms/1000 t  first ms"
    )
    print(head, flush=True)
    lines, facts = [head], []
    for streams in (int(part) for part in asked.streams.split(",")):
        rates = [float(part) for part in asked.rates.split(",")]
        found = asyncio.run(measure(streams, rates, asked.seconds))
        lines += [_line(streams, one) for one in found]
        facts += [{"streams": streams, **vars(one)} for one in found]
    if asked.write:
        RESULTS.write_text("\n".join(lines) + "\n")
        RESULTS.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
