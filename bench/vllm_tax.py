"""What modelnet costs over vLLM alone: the engine stepped directly, `vllm serve` over HTTP, and modelnet.

    python -m bench.vllm_tax [--rounds 3] [--requests 192] [--sides …] [--peers FOLDER] [--quick] [--write]

Each round plays the same prompts at the same times to all, open loop, at four rates: shares of what the engine alone
did with everything at once. Engine, network and client share this machine. modelnet drives vLLM in both of its ways:
in a process of its own as `vllm serve` does (`vllm-async`), and in a thread of the worker (`vllm`). All engines have
the same options; the model has random weights and is made on the spot. LiteLLM's proxy, before a `vllm serve` of its
own, is installed as for bench/gateway.py. Time between tokens is (last - first) /
(tokens - 1) of each answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import modelnet
from bench.conversations import words
from bench.gateway import PEERS_FOLDER, install_peers
from bench.vllm_sides import Ask, http, network, over_bus, over_http, proxied, serve
from modelnet.engines.vllm_setup import engine_options, prepare_environment
from tests.engines.models import Shape, write_random

__all__ = ["main"]

RESULTS = Path(__file__).with_name("results")
MODEL = Shape(hidden=256, heads=4, kv_heads=2, head_dim=64, layers=6, inner=768, context=2048)
SHARES = (0.25, 0.5, 0.75, 1.2)
PROMPT_BYTES, ANSWER_TOKENS = 300, 64
OPTIONS = {"max_model_len": 2048, "kv_cache_memory_bytes": 64 << 20}
SLOTS = 256
DRIVERS = {"modelnet": "vllm-async", "modelnet, thread": "vllm"}
PROXIED = "serve + LiteLLM"
SIDES = ("direct", "vllm serve", PROXIED, *DRIVERS)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was due, and when its tokens came. Seconds since the run began."""

    due: float
    first: float
    last: float
    tokens: int


Player = Callable[[list[tuple[float, str]]], Awaitable[list[Answer]]]
"""Plays a load on one side."""


def load(seed: int, requests: int, rate: float) -> list[tuple[float, str]]:
    """Due times and prompts; all at once where the rate is infinite."""
    chance, due, found = random.Random(seed), 0.0, []
    for number in range(requests):
        due += chance.expovariate(rate) if rate != float("inf") else 0.0
        found.append((due, f"{seed} {number} {words(chance, PROMPT_BYTES)}"))
    return found


# ---------------------------------------------------------------------- the engine alone


class Direct:
    """vLLM's engine in a process of its own that does nothing but step it; asked over pipes, between runs only."""

    def __init__(self, folder: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.vllm_tax", "--engine", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def play(self, work: list[tuple[float, str]]) -> list[Answer]:
        """Play a load."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(work) + "\n")
        self._child.stdin.flush()
        return [Answer(*one) for one in json.loads(self._read())]

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()

    def _read(self) -> str:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("engine: "):
                return line.removeprefix("engine: ")
        raise SystemExit("the engine's process ended")


def step_engine(folder: Path) -> None:
    """The other end: loads as lines of JSON in, answers out."""
    prepare_environment(str(folder), in_process=True)
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    engine = LLMEngine.from_engine_args(EngineArgs(**engine_options(str(folder), OPTIONS)))
    params = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0, output_kind=RequestOutputKind.DELTA)
    tokenizer = engine.renderer.get_tokenizer()
    sys.stdout.write("engine: ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        work = json.loads(line)
        began, at, times = time.perf_counter(), 0, dict[str, list[float]]()
        while at < len(work) or engine.has_unfinished_requests():
            now = time.perf_counter() - began
            while at < len(work) and work[at][0] <= now:
                ids = tokenizer.encode(work[at][1])
                engine.add_request(str(at), {"type": "token", "prompt_token_ids": ids}, params)
                times[str(at)] = [work[at][0], 0.0, 0.0, 0]
                at += 1
            if not engine.has_unfinished_requests():
                time.sleep(max(work[at][0] - (time.perf_counter() - began), 0.0))
                continue
            for output in engine.step():
                one, now = times[output.request_id], time.perf_counter() - began
                if tokens := len(output.outputs[0].token_ids):
                    one[1], one[2], one[3] = one[1] or now, now, one[3] + tokens
        sys.stdout.write("engine: " + json.dumps(list(times.values())) + "\n")
        sys.stdout.flush()


# ---------------------------------------------------------------------- over a network


async def play(ask: Ask, work: list[tuple[float, str]]) -> list[Answer]:
    """Play a load: each request is sent when it is due, whatever became of those before."""
    began = time.perf_counter()

    async def one(due: float, prompt: str) -> Answer:
        await asyncio.sleep(max(due - (time.perf_counter() - began), 0.0))
        first, last, tokens = await ask(prompt, ANSWER_TOKENS)
        return Answer(due, first - began, last - began, tokens)

    return list(await asyncio.gather(*(one(due, prompt) for due, prompt in work)))


# ---------------------------------------------------------------------- the run


def summary(answers: list[Answer]) -> dict[str, float]:
    """Tokens a second, and quantiles in ms."""
    span = max(one.last for one in answers) - min(one.due for one in answers)
    first = sorted((one.first - one.due) * 1e3 for one in answers)
    gaps = sorted((one.last - one.first) * 1e3 / (one.tokens - 1) for one in answers if one.tokens > 1)
    last = len(answers) - 1
    return {
        "tok/s": sum(one.tokens for one in answers) / span,
        "TTFT p50": first[round(last * 0.5)],
        "TTFT p99": first[round(last * 0.99)],
        "token p50": gaps[round((len(gaps) - 1) * 0.5)] if gaps else 0.0,
        "token p99": gaps[round((len(gaps) - 1) * 0.99)] if gaps else 0.0,
    }


Measured = dict[str, dict[float, list[dict[str, float]]]]
"""By side and share: a summary for each round."""


async def run(folder: Path, rounds: int, requests: int, sides: list[str], peers: Path | None) -> tuple[Measured, float]:
    """All sides at all rates, and the engine's requests a second with everything at once. Only one side runs at a time;
    those that wait take no processor."""
    write_random(folder, shape=MODEL)
    direct = Direct(folder)
    try:
        direct.play(load(99, requests, float("inf")))
        full = [summary(direct.play(load(90 + n, requests, float("inf"))))["tok/s"] for n in range(3)]
        peak = statistics.median(full) / ANSWER_TOKENS
        found: Measured = {side: {share: [] for share in SHARES} for side in sides}

        async def direct_play(work: list[tuple[float, str]]) -> list[Answer]:
            return await asyncio.to_thread(direct.play, work)

        async with contextlib.AsyncExitStack() as up:
            players: dict[str, Player] = {"direct": direct_play}
            for side in sides[1:]:
                if side in DRIVERS:
                    opened = await up.enter_async_context(network(folder, OPTIONS, DRIVERS[side], SLOTS))
                    ask = over_bus(await up.enter_async_context(modelnet.connect(opened.url)))
                else:
                    assert side != PROXIED or peers is not None
                    server = proxied(folder, OPTIONS, peers) if side == PROXIED and peers else serve(folder, OPTIONS)
                    base = await up.enter_async_context(server)
                    ask = over_http(await up.enter_async_context(http()), base)
                players[side] = partial(play, ask)
                await players[side](load(98, requests, float("inf")))
            for number in range(rounds):
                for place, share in enumerate(SHARES):
                    work, turn = load(1000 * number + place, requests, peak * share), number % len(sides)
                    for side in [*sides[turn:], *sides[:turn]]:
                        found[side][share].append(summary(await players[side](work)))
    finally:
        direct.close()
    return found, peak


def report(found: Measured, peak: float, rounds: int, requests: int) -> str:
    """Medians over rounds, and ratios of neighbours."""
    lines = [
        f"bench/vllm_tax.py, {datetime.now(UTC).date()}, {os.cpu_count()} cores, Python {platform.python_version()}: "
        f"{rounds} rounds of {requests} requests at each rate; medians over rounds, ratios of one round",
        f"prompts of {PROMPT_BYTES} bytes, answers of {ANSWER_TOKENS} tokens; model of {MODEL.layers} layers, "
        f"{MODEL.hidden} wide; the engine alone, all at once: {peak:.1f} requests/s",
    ]
    names = ("tok/s", "TTFT p50", "TTFT p99", "token p50", "token p99")
    for share in SHARES:
        lines += [
            "",
            f"{share:.0%} of that".ljust(16) + "".join(f"{name:>11}" for name in names) + "   tok/s of direct",
        ]
        for side, by_share in found.items():
            each = by_share[share]
            row = "".join(f"{statistics.median(one[name] for one in each):>11.1f}" for name in names)
            ratios = [one["tok/s"] / base["tok/s"] for one, base in zip(each, found["direct"][share], strict=True)]
            shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"{side:<16}{row}   {statistics.median(ratios):.2f} ({shown})")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and with --write keep the output and the raw figures under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=192, help="at each rate")
    parser.add_argument("--sides", nargs="+", choices=SIDES[1:], default=SIDES[1:], help="beside the engine alone")
    parser.add_argument("--peers", type=Path, default=PEERS_FOLDER, help="where LiteLLM is, or is installed")
    parser.add_argument("--quick", action="store_true", help="one round of few requests")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    if args.engine:
        step_engine(Path(args.engine))
        return
    rounds, requests = (1, 16) if args.quick else (args.rounds, args.requests)
    peers = install_peers(args.peers) if PROXIED in args.sides else None
    with tempfile.TemporaryDirectory(prefix="modelnet-tax-") as kept:
        found, peak = asyncio.run(run(Path(kept) / "model", rounds, requests, ["direct", *args.sides], peers))
    text = report(found, peak, rounds, requests)
    sys.stdout.write(text + "\n")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        RESULTS.joinpath("vllm_tax.txt").write_text(text + "\n")
        raw: dict[str, Any] = {"requests_per_s": peak, "sides": found}
        RESULTS.joinpath("vllm_tax.json").write_text(json.dumps(raw) + "\n")


if __name__ == "__main__":
    main()
