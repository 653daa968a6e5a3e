"""The market against routers, in simulation: welfare, goodput, tail, cost and fairness from light load to 95 %.

    python -m bench.market [--quick] [--write]

The market's side is the network's own code. Intervals are 95 % of the mean over seeds (Student's t), paired with the
market's by seed, so that they say whether a router is really better or worse.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.marketplace import Network, Played, Router, network, play
from bench.routers import BASELINES, Clairvoyant, Market
from modelnet.messages import Transcript

__all__ = ["Score", "main", "run"]

LOADS = (0.3, 0.5, 0.7, 0.85, 0.95)
SHADOWS = (None, 0.0, 20.0, 40.0, 80.0, 120.0, 160.0, 240.0, 320.0)
FIRST_SEED = 100
"""The constants of modelnet/market/scarcity.py and the backlog were chosen on seeds 0 to 7: not used here."""

WARM_UP = 0.15
"""Share of the tasks, the first, that only warm caches and teach the market."""

_T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"""Student's t by number of seeds, for 95 % intervals."""

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Score:
    """One router at one load with one seed."""

    router: str
    load: float
    seed: int
    welfare: float
    """Micro-credits per task."""
    goodput: float
    """Share of tasks answered within their deadline."""
    good: float
    """Share of tasks whose answer was good, too."""
    p99_s: float
    """Of the time to completion; a task that was not answered counts with its deadline."""
    cost: float
    """Micro-credits spent on work, for each good answer."""
    paid: float
    """Micro-credits paid, for each answer."""
    jain: float
    """Jain's index of the tasks that the four equal workers got: 1 is equal."""


def score(name: str, load: float, seed: int, world: Network, played: Played) -> Score:
    """Measure one simulation."""
    counted = played.ends[int(len(played.ends) * WARM_UP) :]
    good = sum(one.good for one in counted)
    answered = sum(one.in_time for one in counted)
    times = sorted(one.time_s if one.in_time else one.job.deadline_s for one in counted)
    equal = [
        taken for seller, taken in zip(world.sellers, played.taken, strict=True) if seller.name.startswith("equal")
    ]
    squares = sum(taken * taken for taken in equal)
    return Score(
        router=name,
        load=load,
        seed=seed,
        welfare=sum(one.welfare for one in counted) / len(counted),
        goodput=answered / len(counted),
        good=good / len(counted),
        p99_s=times[int(len(times) * 0.99)],
        cost=sum(one.cost for one in counted) / max(good, 1),
        paid=sum(one.paid for one in counted) / max(answered, 1),
        jain=sum(equal) ** 2 / (len(equal) * squares) if squares else 1.0,
    )


def run(loads: tuple[float, ...], seeds: int, tasks: int) -> tuple[list[Score], float]:
    """All routers at all loads, and the market's mean time for a decision in s."""
    scores, decisions, seconds = list[Score](), 0, 0.0
    for load in loads:
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            world = network(seed, tasks, load)
            market = Market(world)
            routers: list[Router] = [market, *(kind(world, seed) for kind in BASELINES)]
            scores += [score(router.name, load, seed, world, play(world, router)) for router in routers]
            bare = replace(world, sellers=[replace(seller, backlog=0) for seller in world.sellers])
            plainer = (
                (world, Market(world, name="market, no scarcity", scarcity=False)),
                (bare, Market(bare, name="market, no backlog", scarcity=False)),
            )
            scores += [score(kind.name, load, seed, where, play(where, kind)) for where, kind in plainer]
            knowing = [
                score("oracle", load, seed, world, play(world, Clairvoyant(world, shadow))) for shadow in SHADOWS
            ]
            scores.append(max(knowing, key=lambda one: one.welfare))
            decisions += market.decisions
            seconds += market.seconds
    return scores, seconds / max(decisions, 1)


def mean_of(values: list[float]) -> tuple[float, float]:
    """Mean, and half its 95 % interval."""
    if len(values) < 2:
        return values[0], math.nan
    half = _T975.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def table(scores: list[Score], load: float) -> str:
    """The table of one load, best welfare first."""
    here = [one for one in scores if one.load == load]
    names = dict.fromkeys(one.router for one in here)
    by = {name: sorted((one for one in here if one.router == name), key=lambda one: one.seed) for name in names}
    oracle = [one.welfare for one in by["oracle"]]
    market = [one.welfare for one in by["market"]]
    head = f"load {load:.0%}".ljust(24)
    head += f"{'welfare':>10}{'of oracle':>11}{'market - it':>18}{'in time':>9}{'good':>7}{'p99 s':>8}"
    lines = [head + f"{'cost/good':>11}{'Jain':>7}"]
    for name in sorted(names, key=lambda name: -statistics.fmean(one.welfare for one in by[name])):
        each = by[name]
        welfare = statistics.fmean(one.welfare for one in each)
        share = statistics.fmean(one.welfare / best for one, best in zip(each, oracle, strict=True))
        ahead, half = mean_of([mine - one.welfare for mine, one in zip(market, each, strict=True)])
        gap = "" if name == "market" else f"{ahead:+.1f} ± {half:.1f}"
        lines.append(
            f"{name:<24}{welfare:>10.1f}{share:>11.1%}{gap:>18}"
            f"{statistics.fmean(one.goodput for one in each):>9.1%}{statistics.fmean(one.good for one in each):>7.1%}"
            f"{statistics.fmean(one.p99_s for one in each):>8.1f}{statistics.fmean(one.cost for one in each):>11.1f}"
            f"{statistics.fmean(one.jain for one in each):>7.3f}"
        )
    return "\n".join(lines)


def verdict(scores: list[Score]) -> list[str]:
    """The targets, and whether each is met."""

    def of(name: str, load: float) -> list[Score]:
        found = [one for one in scores if one.router == name and one.load == load]
        return sorted(found, key=lambda one: one.seed)

    loads = sorted({one.load for one in scores})
    names = [kind.name for kind in BASELINES]
    lines = []
    for load in loads:
        market, oracle = of("market", load), of("oracle", load)
        share = statistics.fmean(m.welfare / o.welfare for m, o in zip(market, oracle, strict=True))
        ahead = {
            name: mean_of([m.welfare - one.welfare for m, one in zip(market, of(name, load), strict=True)])
            for name in names
        }
        nearest = min(ahead, key=lambda name: ahead[name][0])
        gap, half = ahead[nearest]
        state = "ahead" if gap > half else "not behind" if gap > -half else "BEHIND"
        lines.append(
            f"load {load:.0%}: market {share:.1%} of the oracle's welfare; {state} of the nearest router, "
            f"{nearest} ({gap:+.1f} ± {half:.1f} a task)"
        )
        goodput, round_robin = (
            statistics.fmean(one.goodput for one in of(name, load)) for name in ("market", "round robin")
        )
        lines[-1] += f"; in time {goodput:.1%}, round robin {round_robin:.1%}"
    return lines


def record(where: Path) -> None:
    """Record some auctions of each kind: for the test that replays what earlier versions of the rules decided."""
    world = network(1, 3000, 0.9)
    market = Market(world, keep=True)
    play(world, market)
    kinds: dict[tuple[str, bool, bool], list[Transcript]] = {}
    for transcript in market.transcripts:
        kind = (transcript.rule, transcript.winner is None, transcript.attempt > 1)
        kinds.setdefault(kind, []).append(transcript)
    chosen = [transcript for alike in kinds.values() for transcript in alike[:: max(len(alike) // 25, 1)]]
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(b"".join(transcript.encode() + b"\n" for transcript in chosen))


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and with --write keep the output, the raw scores and the plots under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two loads, two seeds, few tasks")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=4000)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--transcripts", type=Path, help="only record auctions of one simulation, one a line, there")
    args = parser.parse_args(arguments)
    if args.transcripts:
        record(args.transcripts)
        return
    loads, seeds, tasks = ((0.7, 0.95), 2, 800) if args.quick else (LOADS, args.seeds, args.tasks)
    began = time.perf_counter()
    scores, decision_s = run(loads, seeds, tasks)
    out = [
        f"bench/market.py, Python {platform.python_version()}, {seeds} seeds of {tasks} tasks at each load, "
        f"the first {WARM_UP:.0%} not counted; {time.perf_counter() - began:.0f} s",
        *(table(scores, load) for load in loads),
        "\n".join(verdict(scores)),
        f"time to decide one auction: {decision_s * 1e6:.0f} us on average",
    ]
    text = "\n\n".join(out)
    sys.stdout.write(text + "\n")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        RESULTS.joinpath("market.txt").write_text(text + "\n")
        raw = "".join(json.dumps(asdict(one)) + "\n" for one in scores)
        RESULTS.joinpath("market.jsonl").write_text(raw)


if __name__ == "__main__":
    main()
