"""A simulated network: unlike workers, tasks that come in bursts, and a clock that jumps from event to event.

What is simulated are workers and publishers. Who gets a task is decided elsewhere: by a router of bench/routers.py, or
by the network's own market. The same seed gives every router the same tasks, the same run times and the same luck.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from modelnet.estimates import wait_s
from modelnet.market import Policy
from modelnet.market.scarcity import Scarcity
from modelnet.worker import BACKLOG

__all__ = ["BLOCK", "End", "Job", "Network", "Played", "Router", "Seller", "Work", "arrivals", "network", "play"]

BLOCK = 16
"""Tokens in a block of the prefix cache."""

PREFILL_S = 0.0004
DECODE_S = 0.01
"""Seconds per token of a worker of speed 1."""

NOISE = 0.25
"""Standard deviation of the logarithm of a run time about its median."""

ATTEMPTS = 3
"""Workers that may fail at a task before it has failed."""

BURST, CALM = 2.0, 0.75
"""Rates of arrival in a burst and between bursts, as multiples of their mean."""


@dataclass(frozen=True, slots=True)
class Seller:
    """What a worker is. It asks what the work costs it, and claims its times `claim` times as long as they are."""

    name: str
    owner: str
    speed: float
    quality: float
    cost_per_s: float
    """Micro-credits for a second of one slot, at which it neither gains nor loses."""
    slots: int = 2
    backlog: int = BACKLOG
    """Tasks that it lets wait for a slot of its own, when it is asked for bids."""
    cached: int = 24
    """Prefixes that its cache holds."""
    crashes: float = 0.0
    """Share of its attempts that end in an error half way."""
    claim: float = 1.0
    claimed_quality: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A task."""

    number: int
    at: float
    prefix: int
    prompt: int
    """Tokens, the shared prefix included."""
    shared: int
    """Tokens of the prefix."""
    tokens: int
    """Tokens of the answer, as all expect."""
    value: int
    deadline_s: float

    @property
    def value_of_time(self) -> float:
        """Micro-credits per second: 2 % of the value."""
        return self.value / 50


@dataclass(slots=True)
class Work:
    """A worker while the simulation runs."""

    seller: Seller
    number: int
    running: int = 0
    queue: deque[Job] = field(default_factory=deque)
    until: list[float] = field(default_factory=list)
    """When each running task is expected to end, by its median."""
    prefixes: OrderedDict[int, None] = field(default_factory=OrderedDict)
    prefill: int = 0
    """Blocks of prompts in hand that were not cached."""
    blocks: int = 0
    """Blocks of all that is in hand."""
    taken: int = 0
    scarcity: Scarcity = field(default_factory=Scarcity)

    @property
    def in_hand(self) -> int:
        """Tasks running or queued here."""
        return self.running + len(self.queue)

    def hit(self, job: Job) -> int:
        """Tokens of the prompt that are cached."""
        return job.shared if job.prefix in self.prefixes else 0

    def median_s(self, job: Job) -> float:
        """Median of the run time, from its start."""
        return (PREFILL_S * (job.prompt - self.hit(job)) + DECODE_S * job.tokens) / self.seller.speed

    def wait_s(self, now: float) -> float:
        """Until a slot is expected to be free for one more task."""
        return wait_s(self.seller.slots, self.until, map(self.median_s, self.queue), now)

    @property
    def full(self) -> bool:
        """Whether it makes no bid."""
        return self.in_hand >= self.seller.slots + self.seller.backlog

    def price(self, job: Job) -> int:
        """What the work costs it, in micro-credits."""
        return math.ceil(self.median_s(job) * math.exp(NOISE**2 / 2) * self.seller.cost_per_s)

    def ask(self, job: Job) -> int:
        """Its price where it may name one: what the work costs, and what else it could have done meanwhile."""
        price, run_s = self.price(job), self.median_s(job)
        self.scarcity.learn(price, run_s)
        return self.scarcity.ask(price, run_s, waits=self.in_hand >= self.seller.slots)

    def remember(self, job: Job) -> None:
        """The prefix is in the cache now."""
        self.prefixes[job.prefix] = None
        self.prefixes.move_to_end(job.prefix)
        if len(self.prefixes) > self.seller.cached:
            self.prefixes.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Network:
    """Who is there, and what luck each task would have with each."""

    sellers: list[Seller]
    jobs: list[Job]
    noise: np.ndarray
    """By task and worker: factor of the run time."""
    luck: np.ndarray
    """By task and worker: an answer is good if this is below the worker's quality."""
    crash: np.ndarray


@dataclass(frozen=True, slots=True)
class End:
    """How a task ended."""

    job: Job
    good: bool
    in_time: bool
    """An answer, good or not, within the deadline."""
    time_s: float
    cost: float
    """What it cost those that worked at it."""
    paid: int
    worker: int | None

    @property
    def welfare(self) -> float:
        """What the answer was worth, less the time it took and the work it cost. Payments only pass it on."""
        return self.job.value * self.good - self.job.value_of_time * self.time_s - self.cost


class Router(Protocol):
    """Decides who gets a task."""

    name: str
    central: bool
    """Whether tasks wait in one line until a slot is free, or queue at the worker they were sent to."""

    def place(self, job: Job, workers: list[Work], failed: frozenset[int], now: float) -> tuple[int, int] | None:
        """Number of a worker and what it is paid; None to give the task up."""

    def learn(
        self, job: Job, worker: int, how: Literal["good", "bad", "crashed", "late"], run_s: float, at: float
    ) -> None:
        """What became of it. `run_s`: from the award on."""


@dataclass(slots=True)
class Played:
    """One simulation's outcome."""

    ends: list[End]
    taken: list[int]
    """Tasks begun, by worker."""


def network(seed: int, tasks: int, load: float, *, liars: int = 3, prefixes: int = 200) -> Network:
    """Twelve workers of four speeds and three qualities, four that are equal, two that crash, and liars.

    `load`: the tasks that come, as a share of what all slots could do if none were ever idle.
    """
    sellers = []
    for speed in (0.2, 0.6, 2.0, 6.0):
        for quality, extra in ((0.70, 1.0), (0.85, 1.3), (0.97, 1.8)):
            name = f"w-{speed * 10:.0f}-{quality * 100:.0f}"
            # A faster machine costs more a second, but less than it is faster.
            sellers.append(Seller(name, f"o-{name}", speed, quality, 20 * extra * speed**0.8))
    sellers += [Seller(f"equal-{n}", f"o-equal-{n}", 1.0, 0.9, 28) for n in range(4)]
    sellers += [Seller(f"flaky-{n}", f"o-flaky-{n}", 2.0, 0.9, 35, crashes=0.3) for n in range(2)]
    sellers += [Seller(f"liar-{n}", f"o-liar-{n}", 0.5, 0.6, 15, claim=0.5, claimed_quality=0.99) for n in range(liars)]
    chance = np.random.default_rng(seed)
    shape = (tasks, len(sellers))
    jobs = arrivals(chance, tasks, load * capacity(sellers), prefixes)
    noise = np.exp(chance.normal(0, NOISE, shape))
    return Network(sellers, jobs, noise, chance.random(shape), chance.random(shape))


MEAN_PROMPT, MEAN_TOKENS = 1500, 120
SHARED = 2 / 3
"""Of the prompt, the prefix that others begin with too."""

CACHED = 0.5
"""Of the prefixes, those that are in the cache, for reckoning what a load is: more where the router looks at caches."""


def capacity(sellers: list[Seller]) -> float:
    """Tasks a second that all slots do together, if none were ever idle."""
    median_s = PREFILL_S * MEAN_PROMPT * (1 - SHARED * CACHED) + DECODE_S * MEAN_TOKENS
    return sum(seller.slots * seller.speed for seller in sellers) / (median_s * math.exp(NOISE**2 / 2))


def arrivals(chance: np.random.Generator, tasks: int, rate: float, prefixes: int) -> list[Job]:
    """Tasks at a mean rate, in bursts: a Poisson process whose rate switches between two levels (MMPP)."""
    share = (1 - CALM) / (BURST - CALM)  # of the time, in bursts, so that the mean is right
    length_s = 60 / rate  # of a burst: 150 tasks
    jobs, now, burst, until = list[Job](), 0.0, False, 0.0
    popularity = 1 / np.arange(1, prefixes + 1) ** 0.9
    popular = np.cumsum(popularity / popularity.sum())
    for number in range(tasks):
        level = rate * (BURST if burst else CALM)
        now += chance.exponential(1 / level)
        while now > until:
            burst = not burst
            until += chance.exponential(length_s if burst else length_s * (1 - share) / share)
        shared = int(MEAN_PROMPT * SHARED)
        tokens = max(int(MEAN_TOKENS * math.exp(chance.normal(-0.18, 0.6))), 4)
        jobs.append(
            Job(
                number=number,
                at=now,
                prefix=min(int(np.searchsorted(popular, chance.random())), prefixes - 1),
                prompt=shared + int(chance.exponential(MEAN_PROMPT * (1 - SHARED))),
                shared=shared,
                tokens=tokens,
                value=int(1000 * math.exp(chance.normal(-0.125, 0.5))),
                deadline_s=float(chance.choice([4.0, 10.0, 30.0])) + 0.03 * tokens,
            )
        )
    return jobs


def play(network: Network, router: Router) -> Played:
    """Let all tasks run through a router."""
    workers = [Work(seller, number) for number, seller in enumerate(network.sellers)]
    ends: list[End | None] = [None] * len(network.jobs)
    failed = dict[int, frozenset[int]]()
    cost, paid = dict[int, float](), dict[int, int]()
    line: deque[Job] = deque()
    events: list[tuple[float, int, int, Job, int, str]] = []
    """(time, order, kind: 0 an end, 1 an arrival, 2 another try; job, worker, outcome)"""
    order = 0
    for job in network.jobs:
        events.append((job.at, order, 1, job, -1, ""))
        order += 1
    heapq.heapify(events)
    policy = Policy()
    placed_at, pauses = dict[int, float](), dict[int, float]()
    running = dict[tuple[int, int], float]()

    def end(job: Job, now: float, *, good: bool, answered: bool, worker: int | None) -> None:
        time_s = min(now - job.at, job.deadline_s)
        ends[job.number] = End(
            job, good, answered, time_s, cost.get(job.number, 0.0), paid.get(job.number, 0) if answered else 0, worker
        )

    def start(work: Work, job: Job, now: float) -> None:
        nonlocal order
        n, w = job.number, work.number
        uncached = job.prompt - work.hit(job)
        median_s = work.median_s(job)
        run_s = median_s * float(network.noise[n, w])
        work.until.append(now + median_s)
        running[n, w] = now + median_s
        work.remember(job)
        work.running += 1
        work.taken += 1
        work.prefill += uncached // BLOCK
        crashed = network.crash[n, w] < work.seller.crashes
        until = now + (run_s / 2 if crashed else run_s)
        deadline = job.at + job.deadline_s
        outcome = "crashed" if crashed else "good" if network.luck[n, w] < work.seller.quality else "bad"
        if until > deadline:
            until, outcome = deadline, "late"
        cost[n] = cost.get(n, 0.0) + (until - now) * work.seller.cost_per_s
        order += 1
        heapq.heappush(events, (until, order, 0, job, w, outcome + f":{uncached // BLOCK}"))

    def later(job: Job, now: float) -> None:
        nonlocal order
        pauses[job.number] = pause_s = min(max(2 * pauses.get(job.number, 0.0), policy.pause_s), policy.longest_pause_s)
        order += 1
        heapq.heappush(events, (now + pause_s, order, 2, job, -1, ""))

    def give(job: Job, now: float) -> bool:
        """Whether the task is off our hands."""
        if now >= job.at + job.deadline_s:
            end(job, now, good=False, answered=False, worker=None)
            return True
        if router.central and all(work.full for work in workers):
            return False
        found = router.place(job, workers, failed.get(job.number, frozenset()), now)
        if found is None and router.central and any(work.full for work in workers):
            later(job, now)  # those too busy to bid may bid better
            return True
        if found is None:
            end(job, now, good=False, answered=False, worker=None)
            return True
        number, price = found
        work, paid[job.number], placed_at[job.number] = workers[number], price, now
        work.blocks += (job.prompt + job.tokens) // BLOCK
        if work.running < work.seller.slots:
            start(work, job, now)
        else:
            work.queue.append(job)
        return True

    while events:
        now, _, kind, job, number, what = heapq.heappop(events)
        if kind == 2:
            if not give(job, now):
                line.appendleft(job)
            continue
        if kind == 1:
            if line or not give(job, now):
                line.append(job)
            continue
        work = workers[number]
        outcome, uncached = what.split(":")
        work.running -= 1
        work.until.remove(running.pop((job.number, number)))
        work.prefill -= int(uncached)
        work.blocks -= (job.prompt + job.tokens) // BLOCK
        router.learn(job, number, outcome, now - placed_at[job.number], now)  # type: ignore[arg-type]
        if outcome == "crashed":
            tried = failed[job.number] = failed.get(job.number, frozenset()) | {number}
            if len(tried) >= ATTEMPTS:
                end(job, now, good=False, answered=False, worker=number)
            elif not give(job, now):
                line.appendleft(job)
        else:
            answered = outcome != "late"
            end(job, now, good=outcome == "good", answered=answered, worker=number)
        while work.queue and work.running < work.seller.slots:
            waiting = work.queue.popleft()
            if now >= waiting.at + waiting.deadline_s:
                work.blocks -= (waiting.prompt + waiting.tokens) // BLOCK
                end(waiting, now, good=False, answered=False, worker=None)
            else:
                start(work, waiting, now)
        while line and give(line[0], now):
            line.popleft()
    assert all(one is not None for one in ends)
    return Played([one for one in ends if one is not None], [work.taken for work in workers])
