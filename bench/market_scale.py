"""One negotiator's market as the network grows: time to decide, and memory, from 10 to 10,000 workers.

    python -m bench.market_scale [--tasks 1000000] [--write]

For each size: the negotiator's directory keeps standing offers in order and chooses whom to ask for a task, 32 workers
at most; all of them bid, the market decides, a checker's verdict is learned, the winner makes a new offer. Times are
CPU of the market's own code, without the network; the last size takes all the tasks, the others enough of them for a
steady figure. Memory is what Python has allocated for directory, records and prices.
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

from modelnet.market import Directory, Outcome, ReferencePrices, TrackRecords
from modelnet.market.auction import Auction
from modelnet.messages import Bid, CapabilityCard, Contract, Offer, Task, WorkerCard

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
    """Whom to ask, and under which contracts."""
    decide_us: float
    """Ranking and price, of all bids."""
    decide_p99_us: float
    learn_us: float
    """The outcome, and the winner's new offer."""
    memory_mb: float
    seconds: float
    """All of it, with the bids that the bench makes."""


def measure(workers: int, tasks: int) -> Size:
    """One size."""
    chance = random.Random(workers)
    tracemalloc.start()
    records, prices = TrackRecords(), ReferencePrices()
    directory = Directory(lost_after_s=3.5, now=0.0, records=records)
    contract = Contract(capability=CAPABILITY, input={}, output={})
    directory.learn_contracts([contract])
    quality, price, p50_ms = dict[str, float](), dict[str, int](), dict[str, float]()

    def offer(name: str, late: float) -> Offer:
        """For a typical task, `late` times as long from now as it takes."""
        p50 = p50_ms[name] * late
        return Offer.model_construct(
            worker=name, capability=CAPABILITY, price=price[name], p50_ms=p50, p90_ms=p50 * 1.5, free=4
        )

    for number in range(workers):
        name = f"w{number}"
        quality[name], price[name] = chance.uniform(0.6, 1.0), chance.randint(10, 400)
        p50_ms[name] = chance.uniform(100, 5000)
        served = CapabilityCard(pattern=CAPABILITY, contract=contract.digest, quality=quality[name])
        card = WorkerCard(worker=name, owner=f"o{number % 997}", capabilities=(served,), slots=4, instance="i")
        directory.learn_card(card, 0.0)
        directory.hear_offer(offer(name, 1.0), 0.0)
        records.learn(Outcome(name, CAPABILITY, "k", 1, "checker", True, price[name]), 0.0)
    choosing, deciding, learning = list[int](), list[int](), list[int]()
    clock, began, memory, now = time.thread_time_ns, time.perf_counter(), 0, 10.0
    for number in range(tasks):
        if number == SAMPLE // 2:  # tracing slows what it traces: the rest goes on without
            memory = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            choosing, deciding, learning = [], [], []
        id = f"a{number}"
        task = Task(id=f"k{number}", tenant="t", capability=CAPABILITY)
        at0 = clock()
        directory.contracts_for(CAPABILITY)
        asked = directory.invite(task, id, frozenset(), now).candidates
        at1 = clock()
        bids = [
            Bid.model_construct(
                auction=id,
                worker=one.worker,
                price=price[one.worker],
                p50_ms=p50_ms[one.worker],
                p90_ms=p50_ms[one.worker] * 1.5,
            )
            for one in asked
        ]
        at2 = clock()
        auction = Auction(id, asked, settled=True, now=now)
        for bid in bids:
            auction.take(bid, None)
        auction.close(task, 60.0, prices)
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
            busy = offer(name, chance.uniform(1, 2))
            at4 = clock()
            records.learn(outcome, now)
            directory.hear_offer(busy, now)
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
