"""Do conversations find the cache that has their beginning? Hit rate and time to the first token, by who places them.

    python -m bench.affinity [--rounds 3] [--quick] [--write]       two vLLM workers on this machine
    python -m bench.affinity --simulate [--seeds 5] [--write]       sixteen simulated ones, the network's own code

On real workers every policy goes over the same bus: the market by auction, the others by naming the worker. The model
has random weights and is made on the spot. Predictions are held against what came, too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

import modelnet
from bench.conversations import Conversation, Trace, conversations
from bench.overhead import end, server, spawn
from modelnet.bus import subjects
from modelnet.estimates import Accuracy
from modelnet.messages import Delta, Final, Transcript
from tests.engines.models import Shape, write_random

__all__ = ["main"]

RESULTS = Path(__file__).with_name("results")
WORKERS = ("home-a", "home-b")
POLICIES = ("market", "round robin", "least load")

MODEL = Shape(hidden=256, heads=4, kv_heads=2, head_dim=64, layers=6, inner=768, context=8192)
CACHE_MIB = 64
TRACE = Trace(
    conversations=24,
    turns=5,
    systems=4,
    system_bytes=4000,
    turn_bytes=1000,
    answer_tokens=16,
    arrivals_per_s=1.0,
    think_s=2.0,
)
QUICK = Trace(8, 3, 2, 3000, 1000, 8, 2.0, 1.0)

TERMS: dict[str, Any] = {"budget": 10_000, "value_of_time": 5000.0, "deadline_s": 60.0}
"""Of every task: a millisecond is worth 5 of 10,000. At the default, a second is worth 1.7 of 1,000, and what a cache
saves goes unseen below half a second."""


@dataclass(slots=True)
class Measured:
    """One policy in one round."""

    first_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    moves: int = 0
    """Turns on another worker than the turn before."""
    turns: int = 0
    predicted_first: Accuracy = field(default_factory=Accuracy)
    predicted_whole: Accuracy = field(default_factory=Accuracy)

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens found in a cache."""
        return self.cached_tokens / max(self.prompt_tokens, 1)


class Placing:
    """Names the worker for each task, or leaves it to the auction."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._turn = itertools.cycle(WORKERS)
        self._in_hand = dict.fromkeys(WORKERS, 0)

    def choose(self) -> str | None:
        """The worker for the next task; None where the market finds one."""
        if self._policy == "market":
            return None
        if self._policy == "round robin":
            return next(self._turn)
        # Among equals in turn: else all conversations of an idle hour would go to the first.
        first = next(self._turn)
        return min((first, *(w for w in WORKERS if w != first)), key=lambda worker: self._in_hand[worker])

    def begun(self, worker: str | None) -> None:
        """A task is on its way to it."""
        if worker is not None:
            self._in_hand[worker] += 1

    def ended(self, worker: str | None) -> None:
        """And is done."""
        if worker is not None:
            self._in_hand[worker] -= 1


async def talk(net: modelnet.Client, talk: Conversation, trace: Trace, placing: Placing, into: Measured) -> None:
    """One conversation, from its beginning to its last answer."""
    await asyncio.sleep(talk.at)
    answers, home = list[str](), None
    for turn in range(trace.turns):
        if turn:
            await asyncio.sleep(talk.thinks[turn - 1])
        input = {"messages": talk.messages(answers), "max_tokens": trace.answer_tokens, "temperature": 0}
        worker = placing.choose()
        placing.begun(worker)
        began, first = time.perf_counter(), None
        task = await net.submit("text.generate", input, require={"worker": worker} if worker else None, **TERMS)
        async for event in task.stream():
            if first is None and isinstance(event, Delta):
                first = time.perf_counter()
        final = await task.result()
        placing.ended(worker)
        if final.usage is None or final.output is None or first is None:
            raise SystemExit(f"a turn of {into} had no answer: {final.status} {final.error}")
        into.first_ms.append((first - began) * 1e3)
        into.whole_ms.append((time.perf_counter() - began) * 1e3)
        into.prompt_tokens += final.usage.prompt_tokens
        into.cached_tokens += final.usage.cached_tokens
        into.turns += 1
        into.moves += home is not None and final.worker != home
        home = final.worker
        answers.append(final.output["text"] or "-")


async def play(net: modelnet.Client, policy: str, trace: Trace, seed: int, salt: str) -> Measured:
    """All conversations of a trace under one policy."""
    into, placing = Measured(), Placing(policy)
    async with Predictions(net, into):
        await asyncio.gather(*(talk(net, one, trace, placing, into) for one in conversations(trace, seed, salt)))
    return into


class Predictions:
    """Hears transcripts and ends, and holds what winners predicted against what came."""

    def __init__(self, net: modelnet.Client, into: Measured) -> None:
        self._net, self._into = net, into

    async def __aenter__(self) -> None:
        self._said: dict[str, Transcript] = {}
        self._subs = [
            await self._net.bus.subscribe("audit.>", cb=self._hear_transcript),
            await self._net.bus.subscribe(subjects.accepted("*", "*", "final"), cb=self._hear_final),
        ]
        await self._net.bus.flush()

    async def __aexit__(self, *_: object) -> None:
        await self._net.bus.flush()  # what was sent before is here now
        for sub in self._subs:
            await sub.unsubscribe()

    async def _hear_transcript(self, msg: Msg) -> None:
        transcript = Transcript.decode(msg.data)
        self._said[transcript.task] = transcript

    async def _hear_final(self, msg: Msg) -> None:
        final = Final.decode(msg.data)
        said = self._said.pop(final.task, None)
        if said is None or final.usage is None:
            return
        bid = next(one for one in said.bids if one.worker == final.worker)
        self._into.predicted_whole.note(bid.p50_ms, bid.p90_ms, final.usage.run_ms)
        if bid.first_ms is not None and final.usage.first_ms is not None:
            p90_ms = bid.first_p90_ms or bid.first_ms
            self._into.predicted_first.note(bid.first_ms, p90_ms, final.usage.first_ms)


# ---------------------------------------------------------------------- real workers


def toml(folder: Path, name: str) -> Path:
    """A workers file with one model."""
    found = folder / f"{name}.toml"
    found.write_text(
        f'[[models]]\nmodel = "{folder / "model"}"\nname = "{name}"\nslots = 32\nprice = 10\nengine = "vllm"\n'
        f"options = {{ max_model_len = {MODEL.context}, kv_cache_memory_bytes = {CACHE_MIB << 20} }}\n"
    )
    return found


async def warm_up(net: modelnet.Client, trace: Trace) -> None:
    """Until both workers know what their steps take."""
    for worker in WORKERS:
        for one in conversations(trace, 99, f"warm {worker}")[:6]:
            input = {"messages": one.messages([]), "max_tokens": trace.answer_tokens, "temperature": 0}
            task = await net.submit("text.generate", input, require={"worker": worker}, **TERMS)
            await task.result()


async def real(rounds: int, trace: Trace) -> list[dict[str, Measured]]:
    """All policies in each round, in an order that turns."""
    found = []
    with tempfile.TemporaryDirectory(prefix="modelnet-affinity-") as kept:
        folder = Path(kept)
        write_random(folder / "model", shape=MODEL)
        async with server() as url:
            env = {"MODELNET_URL": url, "MODELNET_REDIS_URL": "redis://127.0.0.1:1/0", "MODELNET_LOG_LEVEL": "info"}
            env |= {"MODELNET_DATA": str(folder)}
            children = [spawn(["modelnet.run", "workers.negotiator:app"], b"negotiator_started", env)]
            try:
                for name in WORKERS:
                    file = {"MODELNET_WORKERS_FILE": str(toml(folder, name))}
                    children.append(spawn(["modelnet.run", "workers.vllm:app"], b"workers_joined", env | file))
                async with modelnet.connect(url) as net:
                    await warm_up(net, trace)
                    for number in range(rounds):
                        order = POLICIES[number % 3 :] + POLICIES[: number % 3]
                        found.append({name: await play(net, name, trace, number, f"{name} {number}") for name in order})
            finally:
                end(children)
    return found


def real_report(rounds: list[dict[str, Measured]], trace: Trace) -> str:
    """Medians over rounds, and the ratio to the market of the same round."""
    today, cores = datetime.now(UTC).date(), os.cpu_count()
    lines = [
        f"bench/affinity.py, {today}, {cores} cores, Python {platform.python_version()}: two vLLM workers, "
        f"{len(rounds)} rounds of {trace.conversations} conversations of {trace.turns} turns; medians over rounds",
        f"{trace.systems} system prompts of {trace.system_bytes} bytes, turns of {trace.turn_bytes}, answers of "
        f"{trace.answer_tokens} tokens; model of {MODEL.layers} layers, {MODEL.hidden} wide; caches of {CACHE_MIB} MiB",
        "",
        f"{'':<14}{'hit rate':>9}{'mean TTFT ms':>14}{'p50':>8}{'p90':>8}{'mean whole ms':>15}{'turns moved':>13}"
        f"{'TTFT / market':>16}",
    ]
    for name in POLICIES:
        each = [one[name] for one in rounds]

        def median(of: Callable[[Measured], float], each: list[Measured] = each) -> float:
            return statistics.median(map(of, each))

        ratios = [statistics.fmean(one[name].first_ms) / statistics.fmean(one["market"].first_ms) for one in rounds]
        lines.append(
            f"{name:<14}{median(lambda m: m.hit_rate):>9.1%}{median(lambda m: statistics.fmean(m.first_ms)):>14.1f}"
            f"{median(lambda m: statistics.median(m.first_ms)):>8.1f}{median(lambda m: at(m.first_ms, 0.9)):>8.1f}"
            f"{median(lambda m: statistics.fmean(m.whole_ms)):>15.1f}{median(lambda m: m.moves / m.turns):>13.1%}"
            f"{statistics.median(ratios):>8.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )
    lines += ["", "predicted against actual, of all tasks"]
    for what in ("predicted_first", "predicted_whole"):
        for name in POLICIES:
            said = [getattr(one[name], what) for one in rounds]
            covered = sum((one.coverage or 0) * one.count for one in said) / max(sum(one.count for one in said), 1)
            error = statistics.median(one.median_error or 0.0 for one in said)
            label = "first token" if what == "predicted_first" else "completion"
            lines.append(f"  {label:<12}{name:<14} within p90: {covered:.1%}   median relative error: {error:.1%}")
    return "\n".join(lines)


def at(values: list[float], share: float) -> float:
    """A quantile."""
    return sorted(values)[round((len(values) - 1) * share)]


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and with --write keep the output under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of few conversations")
    parser.add_argument("--simulate", action="store_true", help="simulated workers instead")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    if args.simulate:
        from bench.affinity_sim import simulate

        name, text = "affinity_sim.txt", simulate(2 if args.quick else args.seeds, quick=args.quick)
    else:
        trace = QUICK if args.quick else TRACE
        rounds = asyncio.run(real(1 if args.quick else args.rounds, trace))
        name, text = "affinity.txt", real_report(rounds, trace)
    sys.stdout.write(text + "\n")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        RESULTS.joinpath(name).write_text(text + "\n")


if __name__ == "__main__":
    main()
