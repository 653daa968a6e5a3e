"""What modelnet costs over vLLM alone: its engines asked directly, `vllm serve` over HTTP, and modelnet.

    python -m bench.vllm_tax [--rounds 3] [--requests 96] [--sides …] [--peers FOLDER] [--quick] [--write]

Each round plays the same prompts at the same times to all, open loop, at four rates: shares of what the engine alone
did with everything at once. Engine, network and client share this machine. Measured after the others, in rounds of
their own, are LiteLLM's proxy and Ray Serve, whose dozens of processes take a share of it while they wait too; and
AsyncLLM and modelnet with a core that only the engine's process runs on (`cores` in a workers file), and the floor: the
messages of a task's life in raw nats-py, with AsyncLLM behind them (bench/vllm_floor.py). vLLM is asked in both of its
ways: LLMEngine stepped by a loop that does nothing else, which the others are compared with, and AsyncLLM, which has
its engine in a process of its own. modelnet drives it in both: `modelnet` is AsyncLLM, `thread` is LLMEngine
in a thread of the worker. All engines have the same options. LiteLLM's proxy, before a `vllm serve` of its own, and Ray
Serve, with AsyncLLM in a replica, are installed as for bench/gateway.py. Time between tokens is
(last - first) / (tokens - 1) of each answer.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.conversations import words
from bench.gateway import PEERS_FOLDER
from bench.vllm_models import MODELS, write_model
from bench.vllm_players import Question, Stream, summary
from bench.vllm_sides import APART, DIRECT, DIRECT_HELD, DRIVERS, FLOOR, HELD, OURS, SIDES, opened

__all__ = ["main"]

RESULTS = Path(__file__).with_name("results")
MODEL = MODELS["tiny"]
SHARES = (0.25, 0.5, 0.75, 1.2)
PROMPT_BYTES, ANSWER_TOKENS = 300, 64
SLOTS = 256
ALONE = SIDES[:2]
"""vLLM's own engines, which the others are compared with."""
OTHERS = SIDES[2:]


def load(seed: int, requests: int, rate: float) -> list[Stream]:
    """Streams of one question; all at once where the rate is infinite."""
    chance, due, found = random.Random(seed), 0.0, list[Stream]()
    for number in range(requests):
        due += chance.expovariate(rate) if rate != float("inf") else 0.0
        prompt = f"{seed} {number} {words(chance, PROMPT_BYTES)}"
        found.append([Question(prompt, ANSWER_TOKENS, due)])
    return found


Measured = dict[str, dict[float, list[dict[str, float]]]]
"""By side and share: a summary for each round."""


async def run(folder: Path, rounds: int, requests: int, names: list[str], peers: Path) -> tuple[Measured, float]:
    """All sides at all rates, and the engine's requests a second with everything at once. Only one is asked at a
    time."""
    write_model(folder, MODEL)
    options = MODEL.engine(SLOTS)
    async with contextlib.AsyncExitStack() as up:
        sides = {}
        for name in names:
            side = opened(name, folder, options, slots=SLOTS, peers=peers)
            sides[name] = await up.enter_async_context(side)
            await sides[name].play(load(98, requests, float("inf")))
        alone = sides[names[0]]
        full = [summary(await alone.play(load(90 + n, requests, float("inf"))))["tok/s"] for n in range(3)]
        peak = statistics.median(full) / ANSWER_TOKENS
        found: Measured = {name: {share: [] for share in SHARES} for name in names}
        for number in range(rounds):
            for place, share in enumerate(SHARES):
                work, turn = load(1000 * number + place, requests, peak * share), number % len(names)
                for name in [*names[turn:], *names[:turn]]:
                    found[name][share].append(summary(await sides[name].play(work)))
    return found, peak


def heading(rounds: int, requests: int) -> str:
    """What was run."""
    return (
        f"bench/vllm_tax.py, {datetime.now(UTC).date()}, {os.cpu_count()} cores, Python {platform.python_version()}: "
        f"{rounds} rounds of {requests} requests at each rate; medians over rounds, ratios of one round\n"
        f"prompts of {PROMPT_BYTES} bytes, answers of {ANSWER_TOKENS} tokens; {MODEL}"
    )


def report(found: Measured, peak: float) -> str:
    """Medians over rounds, and ratios of neighbours."""
    lines = [f"the engine alone, all at once: {peak:.1f} requests/s"]
    names = ("tok/s", "TTFT p50", "TTFT p99", "token p50", "token p99")
    for share in SHARES:
        lines += [
            "",
            f"{share:.0%} of that".ljust(18) + "".join(f"{name:>11}" for name in names) + "   tok/s of LLMEngine's",
        ]
        for side, by_share in found.items():
            each = by_share[share]
            row = "".join(f"{statistics.median(one[name] for one in each):>11.1f}" for name in names)
            alone = found[ALONE[0]][share]
            ratios = [one["tok/s"] / base["tok/s"] for one, base in zip(each, alone, strict=True)]
            shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"{side:<18}{row}   {statistics.median(ratios):.2f} ({shown})")
        lines += [
            added(side, by_share[share], direct, found[direct][share])
            for side, by_share in found.items()
            if side in (FLOOR, *DRIVERS)
            for direct in (DIRECT, DIRECT_HELD)
            if direct in found
        ]
    return "\n".join(lines)


def added(side: str, each: list[dict[str, float]], direct: str, alone: list[dict[str, float]]) -> str:
    """What a network adds to the first token of an AsyncLLM, and what its messages take by themselves beside the
    engine."""
    more = statistics.median(one["TTFT p50"] - base["TTFT p50"] for one, base in zip(each, alone, strict=True))
    bare, auction = (statistics.median(one[name] for one in each) for name in ("bare p50", "auction p50"))
    return (
        f"{side}: first token +{more:.1f} ms over that of {direct}, p50; "
        f"two bare round trips there and the auction: 2 x {bare:.1f} + {auction:.1f} = {2 * bare + auction:.1f} ms"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and with --write keep the output and the raw figures under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96, help="at each rate")
    parser.add_argument("--sides", nargs="+", choices=OTHERS, default=OTHERS, help="beside LLMEngine and AsyncLLM")
    parser.add_argument("--peers", type=Path, default=PEERS_FOLDER, help="where LiteLLM and Ray are, or are installed")
    parser.add_argument("--quick", action="store_true", help="one round of few requests")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    rounds, requests = (1, 16) if args.quick else (args.rounds, args.requests)
    apart = [side for side in args.sides if side in APART]
    held = [side for side in args.sides if side in HELD]
    together = [side for side in args.sides if side not in (*APART, *HELD, FLOOR)]
    groups = [together, held, [*apart, OURS] if apart else [], [FLOOR, OURS] if FLOOR in args.sides else []]
    text, raw = heading(rounds, requests), list[dict[str, Any]]()
    sys.stdout.write(text)
    for group in filter(None, groups):
        with tempfile.TemporaryDirectory(prefix="modelnet-tax-") as kept:
            sides = [*ALONE, *group]
            found, peak = asyncio.run(run(Path(kept) / "model", rounds, requests, sides, args.peers))
        raw.append({"requests_per_s": peak, "sides": found})
        text += (more := "\n\n" + report(found, peak))
        sys.stdout.write(more)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        name = "_".join(["vllm_tax", *(args.sides if args.sides != OTHERS else ())]).replace(", ", "-")
        RESULTS.joinpath(f"{name}.txt").write_text(text + "\n")
        RESULTS.joinpath(f"{name}.json").write_text(json.dumps(raw) + "\n")


if __name__ == "__main__":
    main()
