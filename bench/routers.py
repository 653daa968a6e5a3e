"""Who gets a task: the network's own market, the routers that others use, and one that knows the future."""

from __future__ import annotations

import heapq
import math
import time
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from bench.marketplace import BLOCK, NOISE, Job, Network, Work
from modelnet.market import Candidate, Outcome, ReferencePrices, TrackRecords
from modelnet.market.auction import Auction
from modelnet.market.calibration import load_class
from modelnet.market.reputation import Source
from modelnet.messages import Bid, Task, Transcript

__all__ = ["BASELINES", "Clairvoyant", "Market"]

How = Literal["good", "bad", "crashed", "late"]

CAPABILITY = "text.generate"

_P90 = math.exp(1.2815515655446004 * NOISE)


class Push(ABC):
    """A router that sends each task on at once; it queues at the worker. Pays what the work costs."""

    name = ""
    central = False

    def __init__(self, network: Network, seed: int) -> None:
        self._chance = np.random.default_rng(seed)
        self._next = 0

    def place(self, job: Job, workers: list[Work], failed: frozenset[int], now: float) -> tuple[int, int] | None:
        """A worker that did not fail at it before."""
        able = [work for work in workers if work.number not in failed]
        work = self.choose(job, able)
        return work.number, work.price(job)

    @abstractmethod
    def choose(self, job: Job, able: list[Work]) -> Work:
        """One of them."""

    def learn(self, job: Job, worker: int, how: How, run_s: float, at: float) -> None:
        """Nothing is learned."""
        return

    def least(self, able: list[Work], costs: list[float]) -> Work:
        """The one of least cost; among equals, any."""
        lowest = min(costs)
        equal = [work for work, cost in zip(able, costs, strict=True) if cost <= lowest + 1e-9]
        return equal[int(self._chance.integers(len(equal)))]


class Random(Push):
    """Any."""

    name = "random"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """Any."""
        return able[int(self._chance.integers(len(able)))]


class RoundRobin(Push):
    """Each in turn."""

    name = "round robin"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """The next."""
        self._next += 1
        return able[self._next % len(able)]


class LeastConnections(Push):
    """The one with the fewest tasks in hand."""

    name = "least connections"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """The least loaded."""
        return self.least(able, [work.in_hand for work in able])


class PowerOfTwo(Push):
    """The less loaded of two at random (Mitzenmacher, IEEE TPDS 12, 2001)."""

    name = "power of two"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """The less loaded of two."""
        two = [able[int(n)] for n in self._chance.choice(len(able), 2, replace=False)]
        return self.least(two, [work.in_hand for work in two])


class Dynamo(Push):
    """Least (blocks to prefill + blocks in hand): the cost of NVIDIA Dynamo's KV router, overlap weight 1.

    https://docs.nvidia.com/dynamo/v1.2.0/components/router/routing-concepts
    """

    name = "prefix-aware (Dynamo)"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """The one of least cost."""
        return self.least(able, [work.prefill + (job.prompt - work.hit(job)) / BLOCK + work.blocks for work in able])


class LlmD(Push):
    """Most of 3 x the share of the prompt that is cached + 2 x the shortness of the queue, scaled to 0..1: the default
    profile of llm-d's scheduler.

    https://docs.redhat.com/en/documentation/red_hat_openshift_ai_self-managed/3.4/html/deploy_models_using_distributed_inference_with_llm-d/configuring-llm-scheduler
    """

    name = "prefix-aware (llm-d)"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """The one of the highest score."""
        queues = [len(work.queue) for work in able]
        low, high = min(queues), max(queues)
        costs = []
        for work, queue in zip(able, queues, strict=True):
            short = 1.0 if high == low else (high - queue) / (high - low)
            costs.append(-(3 * work.hit(job) / job.prompt + 2 * short))
        return self.least(able, costs)


class Cheapest(Push):
    """The lowest price, always."""

    name = "always cheapest"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """The cheapest."""
        return self.least(able, [work.price(job) for work in able])


class Best(Push):
    """The highest quality, always; the faster of two alike."""

    name = "always best"

    def choose(self, job: Job, able: list[Work]) -> Work:
        """The best."""
        return self.least(able, [-work.seller.quality - work.seller.speed / 1e3 for work in able])


class Clairvoyant:
    """Knows every true quality, cost and run time, those of the tasks in hand too; only not which answers will be good.

    Each task goes where it adds most, or nowhere: value of the answer, less its time from when a slot is free there,
    less what it costs, less a shadow price for each second that it holds a slot, which stands for the tasks to come:
    `shadow` micro-credits times the worker's speed, or, where that is None, one that follows demand at each worker as
    the market's sellers' does. The best of several such schedules is what others are measured by.
    """

    central = False

    def __init__(self, network: Network, shadow: float | None) -> None:
        self.name = f"oracle (shadow price {shadow})"
        self._network, self._shadow = network, shadow
        self._free = [[0.0] * seller.slots for seller in network.sellers]

    def place(self, job: Job, workers: list[Work], failed: frozenset[int], now: float) -> tuple[int, int] | None:
        """Where it adds most."""
        best, most, ends = None, 0.0, 0.0
        for work in workers:
            seller = work.seller
            work.scarcity.asked(full=work.full)
            if work.number in failed:
                continue
            run_s = work.median_s(job) * float(self._network.noise[job.number, work.number])
            until = max(self._free[work.number][0], now) + run_s
            time_s = until - job.at
            if time_s > job.deadline_s:
                continue
            net = job.value * seller.quality * (1 - seller.crashes) - job.value_of_time * time_s
            net -= run_s * seller.cost_per_s
            net -= work.ask(job) - work.price(job) if self._shadow is None else run_s * self._shadow * seller.speed
            if net > most:
                best, most, ends = work, net, until
        if best is None:
            return None
        heapq.heapreplace(self._free[best.number], ends)
        return best.number, best.price(job)

    def learn(self, job: Job, worker: int, how: How, run_s: float, at: float) -> None:
        """It knows."""


BASELINES: tuple[type[Push], ...] = (
    Random,
    RoundRobin,
    LeastConnections,
    PowerOfTwo,
    Dynamo,
    LlmD,
    Cheapest,
    Best,
)


class Market:
    """The network's own market, as a negotiator holds it: its auction, its records, its reference prices. Workers bid
    while they have a free slot or room in their backlog, as modelnet/bidding.py does; else the task waits in line."""

    central = True

    def __init__(self, network: Network, *, name: str = "market", keep: bool = False, scarcity: bool = True) -> None:
        """`keep`: the transcripts. `scarcity`: whether workers ask for it, as those of the SDK do if told to."""
        self.name, self._scarcity = name, scarcity
        self.records, self.prices = TrackRecords(), ReferencePrices()
        self.transcripts: list[Transcript] = []
        self.decisions, self.seconds = 0, 0.0
        self._network, self._keep = network, keep
        self._awarded: dict[tuple[int, int], tuple[Bid, int, int, int | None]] = {}

    def place(self, job: Job, workers: list[Work], failed: frozenset[int], now: float) -> tuple[int, int] | None:
        """Hold an auction."""
        self.decisions += 1
        id, left_s = f"a{job.number}-{len(failed)}", job.deadline_s - (now - job.at)
        task = Task.model_construct(
            id=f"k{job.number}",
            tenant="t",
            capability=CAPABILITY,
            input={},
            budget=job.value,
            value=None,
            value_of_time=job.value_of_time,
            min_quality=0.0,
            deadline_s=job.deadline_s,
        )
        candidates, bids = [], []
        for work in workers:
            if self._scarcity:
                work.scarcity.asked(full=work.full)
            if work.full or work.number in failed:
                continue
            seller = work.seller
            record = self.records.of(seller.name, CAPABILITY)
            known = record.reputation.estimate(seller.claimed_quality or seller.quality, now)
            candidates.append(
                Candidate(
                    seller.name,
                    seller.owner,
                    "c",
                    known.quality,
                    mean_quality=known.mean,
                    cases=known.cases,
                    load=load_class(work.in_hand),
                    calibration=record.calibration,
                )
            )
            wait_ms, run_ms = work.wait_s(now) * 1e3, work.median_s(job) * 1e3
            bids.append(
                Bid.model_construct(
                    auction=id,
                    worker=seller.name,
                    price=work.ask(job),
                    p50_ms=seller.claim * (wait_ms + run_ms),
                    p90_ms=seller.claim * (wait_ms + run_ms * _P90),
                )
            )
        if not bids:
            return None
        began = time.perf_counter()
        auction = Auction(id, candidates, settled=True, now=now)
        for bid in bids:
            auction.take(bid, None)
        auction.close(task, left_s, self.prices)
        won = auction.winner()
        self.seconds += time.perf_counter() - began
        if self._keep:
            self.transcripts.append(
                auction.transcript(
                    task, negotiator="n", attempt=len(failed) + 1, closed_by="all_answered", why="", now=now
                )
            )
        if won is None:
            return None
        winner, price = won
        number = next(work.number for work in workers if work.seller.name == winner.worker)
        usual = auction.usual_price(winner.worker)
        self._awarded[job.number, number] = (auction.bids[winner.worker], price, winner.load, usual)
        return number, price

    def learn(self, job: Job, worker: int, how: How, run_s: float, at: float) -> None:
        """A checker has seen the answer."""
        bid, price, load, usual = self._awarded.pop((job.number, worker))
        sources: dict[How, Source] = {"good": "checker", "bad": "checker", "crashed": "error", "late": "timeout"}
        if how == "late" and run_s < bid.p90_ms / 1e3:
            return  # it did not get the time that it had asked for
        outcome = Outcome(
            bid.worker,
            CAPABILITY,
            f"k{job.number}",
            1,
            sources[how],
            how == "good",
            price,
            usual,
            (bid.p50_ms, bid.p90_ms) if how != "crashed" else None,
            run_s * 1e3,
            load,
        )
        self.records.learn(outcome, at)
