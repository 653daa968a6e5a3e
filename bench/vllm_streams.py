"""What a network leaves of an engine's tokens when many streams run at once: vLLM's AsyncLLM asked directly, `vllm
serve` over HTTP, and modelnet. Made for a GPU; runs on a CPU with the smallest model.

    python -m bench.vllm_streams [--model llama-1b] [--streams 1 64 256 1024] [--each 3 8 3 2] [--rounds 3]
                                 [--minutes 9] [--sides …] [--write]

Closed loop: each stream asks `--each` times, one after another, for answers of half to one and a half times so many
tokens, so that streams do not keep step. The engines have the same options and stand beside one another on the same
GPU; only one side plays at a time. HTTP and bus are asked by several client processes, so that no client is what is
measured.
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
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.conversations import words
from bench.vllm_models import MODELS, write_model
from bench.vllm_players import Question, Stream, summary
from bench.vllm_sides import Side, opened
from modelnet.engines.vllm_setup import has_gpu

__all__ = ["main"]

RESULTS = Path(__file__).with_name("results")
PROMPT_BYTES = 300
CLIENTS = max(1, min(4, (os.cpu_count() or 1) // 3))
SIDES = ("AsyncLLM", "vllm serve", "modelnet")
CORES = "worker's cores"

Measured = dict[str, dict[int, list[dict[str, float]]]]
"""By side and streams: a summary for each round."""


def load(seed: str, streams: int, each: int, tokens: int) -> list[Stream]:
    """What all streams ask."""
    chance = random.Random(seed)

    def question(name: str) -> Question:
        return Question(f"{seed} {name} {words(chance, PROMPT_BYTES)}", chance.randint(tokens // 2, tokens * 3 // 2))

    return [[question(f"{stream} {turn}") for turn in range(each)] for stream in range(streams)]


async def measure(side: Side, work: list[Stream]) -> dict[str, float]:
    """Play it; of a modelnet, also how many cores its worker's process took, the engine's aside."""
    began, before = time.perf_counter(), _cpu_s(side)
    found = summary(await side.play(work))
    if side.worker is not None:
        found[CORES] = (_cpu_s(side) - before) / (time.perf_counter() - began)
    return found


def _cpu_s(side: Side) -> float:
    if side.worker is None:
        return 0.0
    fields = Path(f"/proc/{side.worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run(kept: Path, args: argparse.Namespace) -> Measured:
    """All sides, round by round; what was measured is told as it comes."""
    model, most = MODELS[args.model], max(args.streams)
    folder, options, names = kept / "model", model.engine(most), args.sides
    write_model(folder, model)
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as up:
        # Each compiles for itself: what one keeps while another reads it may be half of a file.
        ways = [
            opened(name, folder, options, slots=most, clients=CLIENTS, cache=kept / name if has_gpu() else None)
            for name in names
        ]
        async with asyncio.TaskGroup() as group:  # one that fails ends the others
            opening = [group.create_task(up.enter_async_context(way)) for way in ways]
        sides = {name: task.result() for name, task in zip(names, opening, strict=True)}
        say(f"all engines are up after {time.monotonic() - began:.0f} s")
        for name in names:
            await sides[name].play(load("warm-up", most, 1, 32))
        found: Measured = {name: {streams: [] for streams in args.streams} for name in names}
        took = 0.0
        for number in range(args.rounds):
            since = time.monotonic()
            if number and since + took > began + args.minutes * 60:
                break
            turn = number % len(names)
            for streams, each in zip(args.streams, args.each, strict=True):
                for name in [*names[turn:], *names[:turn]]:
                    one = await measure(sides[name], load(f"{number} {streams}", streams, each, args.tokens))
                    found[name][streams].append(one)
                    shown = ", ".join(f"{what} {value:.1f}" for what, value in one.items())
                    say(f"round {number + 1}, {streams} streams, {name}: {shown}")
            took = time.monotonic() - since
        return found


def say(line: str) -> None:
    """How far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def report(found: Measured, args: argparse.Namespace, device: str) -> str:
    """Medians over rounds, and ratios of neighbours."""
    base = found[SIDES[0]]
    rounds = len(base[args.streams[0]])
    lines = [
        f"bench/vllm_streams.py, {datetime.now(UTC).date()}, {device}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}: {MODELS[args.model]}, random weights",
        f"{rounds} round{'s' if rounds > 1 else ''}; answers of {args.tokens // 2} to {args.tokens * 3 // 2} tokens; "
        "medians over rounds, ratios of one round",
    ]
    names = ("tok/s", "TTFT p50", "TTFT p99", "token p50", "token p99")
    for streams, answers in zip(args.streams, args.each, strict=True):
        head = f"{streams} x {answers}".ljust(14)
        lines += ["", head + "".join(f"{name:>11}" for name in names) + "   tok/s of AsyncLLM's"]
        for side, by_streams in found.items():
            each = by_streams[streams]
            row = "".join(f"{_median(each, name):>11.1f}" for name in names)
            ratios = [one["tok/s"] / of["tok/s"] for one, of in zip(each, base[streams], strict=True)]
            shown = f"{statistics.median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})"
            cores = f"; worker {_median(each, CORES):.2f} cores" if CORES in each[0] else ""
            lines.append(f"{side:<14}{row}   {shown}{cores}")
    return "\n".join(lines)


def _median(summaries: list[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in summaries)


def device_name() -> str:
    """Of the GPU, if vLLM uses one."""
    if not has_gpu():
        return "no GPU"
    import torch

    return str(torch.cuda.get_device_name())


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and with --write keep the output and the raw figures under bench/results."""
    gpu = has_gpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-1b" if gpu else "tiny")
    usual = [1, 64, 256, 1024] if gpu else [1, 4, 16]
    parser.add_argument("--streams", type=int, nargs="+", default=usual)
    parser.add_argument("--each", type=int, nargs="+", default=[3, 8, 3, 2] if gpu else [6, 4, 3], help="answers")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--minutes", type=float, default=9.0 if gpu else 4.0, help="no round begins that would end after them"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES[1:], default=list(SIDES[1:]), help="beside AsyncLLM")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    args.sides = [SIDES[0], *args.sides]
    with tempfile.TemporaryDirectory(prefix="modelnet-streams-") as kept:
        found = asyncio.run(run(Path(kept), args))
    text = report(found, args, device_name())
    sys.stdout.write(text + "\n")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        name = "_".join(["vllm_streams", args.model, *(map(str, args.streams) if args.streams != usual else ())])
        RESULTS.joinpath(f"{name}.txt").write_text(text + "\n")
        RESULTS.joinpath(f"{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
