"""One negotiator's market as the network grows: time to decide, and memory, from 10 to 10,000 workers.

    python -m bench.market_scale [--tasks 1000000] [--write]

For each size: standing offers are kept in order, at most 32 workers are asked for a task, all of them bid, the market
decides, a checker's verdict is learned. Times are the market's own code, without the network; the last size takes all
the tasks, the others enough of them for a steady figure. Memory is what Python has allocated for directory, standing
offers, records and prices.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path

from modelnet.market import Candidate, Directory, Outcome, ReferencePrices, TrackRecords
from modelnet.market.auction import Auction
from modelnet.market.exploration import Standing
from modelnet.messages import Bid, CapabilityCard, Task, WorkerCard, digest_of

__all__ = ["Size", "main", "measure"]

CAPABILITY = "text.generate"
SIZES = (10, 100, 1_000, 10_000)
SAMPLE = 20_000
"""Tasks at all sizes but the last."""

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Size:
    """What was measured at one size. Times in microseconds, medians of the tasks unless named."""

    workers: int
    tasks: int
    choose_us: float
    """Whom to ask."""
    decide_us: float
    """Ranking and price, of all bids."""
    decide_p99_us: float
    learn_us: float
    """The outcome, and the winner's standing offer put in its new place."""
    memory_mb: float
    seconds: float
    """All of it, with the bids that the bench makes."""


def measure(workers: int, tasks: int) -> Size:
    """One size."""
    chance = random.Random(workers)
    tracemalloc.start()
    records, prices, standing = TrackRecords(), ReferencePrices(), Standing()
    directory = Directory(lost_after_s=3.5, now=0.0, records=records)
    contract = digest_of("contract")
    cards = {}
    quality, price, p50_ms = {}, {}, {}
    for number in range(workers):
        name = f"w{number}"
        quality[name], price[name] = chance.uniform(0.6, 1.0), chance.randint(10, 400)
        p50_ms[name] = chance.uniform(100, 5000)
        offered = CapabilityCard(pattern=CAPABILITY, contract=contract, quality=quality[name])
        cards[name] = WorkerCard(worker=name, owner=f"o{number % 997}", capabilities=(offered,), instance="i")
        directory.learn_card(cards[name], 0.0)
        standing.put(name, 1000 * quality[name] - price[name] - p50_ms[name] / 100)
        records.learn(Outcome(name, CAPABILITY, "k", 1, "checker", True, price[name]), 0.0)
    choosing, deciding, learning = list[int](), list[int](), list[int]()
    clock, began, memory = time.perf_counter_ns, time.perf_counter(), 0
    for number in range(tasks):
        if number == SAMPLE // 2:  # tracing slows what it traces: the rest goes on without
            memory = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            choosing, deciding, learning = [], [], []
        id = f"a{number}"
        task = Task.model_construct(
            id=f"k{number}",
            tenant="t",
            capability=CAPABILITY,
            input={},
            budget=1000,
            value=None,
            value_of_time=None,
            min_quality=0.0,
        )
        at0 = clock()
        asked = standing.shortlist(id)
        at1 = clock()
        candidates, bids = [], []
        for name in asked:
            known = records.quality(name, CAPABILITY, quality[name], 0.0)
            candidates.append(
                Candidate(name, cards[name].owner, contract, known.quality, mean_quality=known.mean, cases=known.cases)
            )
            bids.append(
                Bid.model_construct(
                    auction=id, worker=name, price=price[name], p50_ms=p50_ms[name], p90_ms=p50_ms[name] * 1.5
                )
            )
        at2 = clock()
        auction = Auction(id, candidates, settled=True, now=0.0)
        for bid in bids:
            auction.take(bid, None)
        auction.close(task, 60.0, prices, records)
        won = auction.winner()
        at3 = clock()
        if won is not None:
            name = won[0].worker
            times = (p50_ms[name], p50_ms[name] * 1.5)
            outcome = Outcome(
                name,
                CAPABILITY,
                task.id,
                1,
                "checker",
                chance.random() < quality[name],
                won[1],
                auction.usual_price(name),
                times,
                times[0] * chance.lognormvariate(0, 0.3),
            )
            at4 = clock()
            records.learn(outcome, 0.0)
            # Busy now: its next offer names a later end.
            standing.put(name, 1000 * quality[name] - price[name] - chance.uniform(1, 2) * p50_ms[name] / 100)
            learning.append(clock() - at4)
        choosing.append(at1 - at0)
        deciding.append(at3 - at2)
    if not memory:
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    choosing.sort()
    deciding.sort()
    learning.sort()
    return Size(
        workers,
        tasks,
        choosing[len(choosing) // 2] / 1e3,
        deciding[len(deciding) // 2] / 1e3,
        deciding[int(len(deciding) * 0.99)] / 1e3,
        learning[len(learning) // 2] / 1e3,
        memory / 1e6,
        time.perf_counter() - began,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run and print; --write keeps the output and the raw figures under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="at the largest size")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    found = [measure(size, args.tasks if size == SIZES[-1] else min(SAMPLE, args.tasks)) for size in SIZES]
    lines = [
        f"bench/market_scale.py, Python {platform.python_version()}, one core; at most 32 workers are asked",
        f"{'workers':>8}{'tasks':>10}{'whom to ask us':>16}{'decide us':>11}{'p99':>8}{'learn us':>10}"
        f"{'memory MB':>11}{'whole run s':>13}",
    ]
    lines += [
        f"{one.workers:>8}{one.tasks:>10}{one.choose_us:>16.1f}{one.decide_us:>11.0f}{one.decide_p99_us:>8.0f}"
        f"{one.learn_us:>10.1f}{one.memory_mb:>11.1f}{one.seconds:>13.0f}"
        for one in found
    ]
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if args.write:
        RESULTS.joinpath("market_scale.txt").write_text(text + "\n")
        RESULTS.joinpath("market_scale.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in found))


if __name__ == "__main__":
    main()
