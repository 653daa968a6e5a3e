"""Which strategy a task is worked on by, and why. Pure.

An auction is the rule. `spot` saves its round trips where answers are quick and slots are free, so that offers are
right and there is little to be gained. A race buys a better chance to be in time, a panel a better chance to be right,
both for the price of several answers; a cascade saves where a cheap answer can be told to be good enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelnet.messages import Strategy, StrategyKind, Task

from .candidate import Candidate
from .scoring import Offered, chance_and_time_s

__all__ = ["COMPOSITE", "Plan", "View", "choose"]

COMPOSITE = ("race", "panel", "cascade")
"""Strategies whose tasks are made of others."""

WIDTH = {"race": 2, "panel": 3, "cascade": 3}

QUICK_S = 0.25
"""Answers that come in less are not worth an auction's round trips while slots are free."""

IDLE = 0.5
"""Share of free slots from which a network counts as idle."""

LATE = 0.1
"""Chance of the best worker to miss the deadline from which a second is worth its price."""

CHEAPER = 4
"""A cascade pays where the cheapest asks this many times less than the dearest."""


@dataclass(frozen=True, slots=True)
class View:
    """What is known without asking anybody."""

    candidates: Sequence[Candidate]
    """Those that may answer."""
    offers: Sequence[tuple[Candidate, Offered]]
    """Standing offers of those with a free slot."""
    free: int
    """Free slots of the capability."""
    slots: int
    """All of them."""

    @property
    def owners(self) -> int:
        """How many different owners the candidates have."""
        return len({candidate.owner for candidate in self.candidates})

    @property
    def idle(self) -> bool:
        """Whether most slots are free."""
        return self.free >= IDLE * self.slots > 0

    @property
    def cheapest_first(self) -> list[str]:
        """Candidates by the price they offer, those without an offer last; equals by quality, best first."""
        prices = {candidate.worker: offer.bid.price for candidate, offer in self.offers}
        return [
            candidate.worker
            for candidate in sorted(
                self.candidates,
                key=lambda c: (prices.get(c.worker) is None, prices.get(c.worker) or 0, -c.quality, c.worker),
            )
        ]


@dataclass(frozen=True, slots=True)
class Plan:
    """The strategy chosen."""

    kind: StrategyKind
    why: str = ""
    """For people; empty where the task asked for nothing special."""
    width: int = 1
    workers: tuple[str, ...] = ()
    """A cascade's, in the order in which they are asked."""


def choose(task: Task, view: View) -> Plan:
    """The plan for a task. One of several workers falls back to an auction where there are not enough of them."""
    wanted = task.strategy
    if wanted.kind == "auction":
        return Plan("auction")
    if wanted.kind == "auto":
        kind, why = _automatic(task, view)
    else:
        kind, why = wanted.kind, "asked for"
    if kind not in COMPOSITE:
        return Plan(kind, f"{kind}: {why}")
    return _composite(kind, why, wanted, view)


def _composite(kind: StrategyKind, why: str, wanted: Strategy, view: View) -> Plan:
    width = wanted.width or WIDTH[kind]
    there, of = (view.owners, "owner") if kind == "panel" else (len(view.candidates), "worker")
    if there <= 1 < width and (kind != "cascade" or not there):
        return Plan("auction", f"auction: {kind} {why}, but only {there} {of} could answer")
    if there < width:
        why += f"; {there} of {width} {of}s could answer"
        width = max(there, 1)
    workers = tuple(view.cheapest_first[:width]) if kind == "cascade" else ()
    return Plan(kind, f"{kind} of {width}: {why}", width, workers)


def _automatic(task: Task, view: View) -> tuple[StrategyKind, str]:
    """By stakes, size and load, in this order."""
    if not view.offers:
        return "auction", "no standing offer with a free slot"
    prices = [offer.bid.price for _, offer in view.offers]
    dearest = max(prices)
    sure = max(candidate.quality for candidate in view.candidates)
    if task.min_quality > sure and view.owners >= WIDTH["panel"] and task.budget >= WIDTH["panel"] * dearest:
        voted = sure * sure * (3 - 2 * sure)  # Condorcet: two of three independent answers are right
        if voted > sure:
            return "panel", f"quality {task.min_quality:.2f} is wanted, the best worker is sure of {sure:.2f} alone"
    if task.strategy.check is not None and min(prices) * CHEAPER <= dearest > min(prices):
        return "cascade", f"{task.strategy.check} can tell, and prices go from {min(prices)} to {dearest}"
    best = min((offer.bid for _, offer in view.offers), key=lambda bid: bid.p90_ms)
    in_time, _ = chance_and_time_s(best.p50_ms / 1e3, best.p90_ms / 1e3, task.deadline_s)
    if in_time < 1 - LATE and view.idle and len(view.candidates) >= 2 and task.budget >= 2 * dearest:
        return "race", f"the quickest worker is in time with {in_time:.0%}, and slots are free"
    quickest = min(offer.bid.p50_ms for _, offer in view.offers)
    if quickest <= QUICK_S * 1e3 and view.idle:
        return "spot", f"answers take {quickest:.0f} ms, {view.free} of {view.slots} slots are free"
    if not view.idle:
        return "auction", f"only {view.free} of {view.slots} slots are free: who is best must be asked"
    return "auction", f"answers take {quickest:.0f} ms: asking costs little of that"
