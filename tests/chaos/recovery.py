"""How long tasks take to recover from a fault. Pure.

The recovery of a task from a fault that touched it: from the moment it was touched until its reader saw the Final,
less what was still to be expected of it then. Expected of a task is what its handler takes by itself plus the median of
what undisturbed tasks of its kind took beyond that. Tasks touched by more than one fault, in their whole life, that can
slow a task are left out: whose fault it was could not be told. So are chains, which wait for another task's recovery.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.chaos.custody import TaskKey
from tests.chaos.faults import KINDS, Fault

__all__ = ["Followed", "Recoveries", "percentile", "recoveries"]


@dataclass(frozen=True, slots=True)
class Followed:
    """A task that was seen to its end."""

    key: TaskKey
    kind: str
    nominal_s: float
    submitted_at: float
    ended_at: float


@dataclass(slots=True)
class Recoveries:
    """Seconds of recovery by kind of fault."""

    by_kind: dict[str, list[float]] = field(default_factory=dict)
    by_task: dict[TaskKey, list[str]] = field(default_factory=dict)
    """The faults that touched each task, by kind and number."""
    several: int = 0
    """Tasks left out because more than one fault touched them."""
    slowest: dict[str, tuple[float, TaskKey, int]] = field(default_factory=dict)
    """The worst of each kind: seconds, task, number of the fault."""

    def of(self, *prefixes: str) -> list[float]:
        """All of the kinds that begin so."""
        return [s for kind, found in self.by_kind.items() if kind.startswith(prefixes) for s in found]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not below `share` of them."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def recoveries(tasks: Iterable[Followed], faults: list[Fault]) -> Recoveries:
    """Recovery of every task that was touched by one fault."""
    found, tasks = Recoveries(), list(tasks)
    touches: defaultdict[TaskKey, list[tuple[Fault, float]]] = defaultdict(list)
    for fault in faults:
        for key, at in fault.touched.items():
            touches[key].append((fault, at))
    wide = [fault for fault in faults if KINDS[fault.kind].everyone or fault.target.startswith("client-")]
    for task in tasks:
        for fault in wide:
            if task.submitted_at < fault.ended_at and fault.struck_at < task.ended_at and _meets(fault, task):
                touches[task.key].append((fault, max(fault.struck_at, task.submitted_at)))
    calm: defaultdict[str, list[float]] = defaultdict(list)
    for task in tasks:
        if task.key not in touches:
            calm[task.kind].append(task.ended_at - task.submitted_at - task.nominal_s)
    beyond = {kind: statistics.median(values) for kind, values in calm.items()}
    for task in tasks:
        at_work = [(fault, at) for fault, at in touches[task.key] if at < task.ended_at]
        found.by_task[task.key] = [f"{fault.kind} {fault.number}" for fault, _ in at_work]
        if task.kind == "chain":
            continue
        serious = [touch for touch in at_work if not KINDS[touch[0].kind].harmless]
        if len(serious) > 1:
            found.several += 1
            continue
        for fault, at in serious or at_work:
            expected = task.nominal_s + beyond.get(task.kind, 0.0) - (at - task.submitted_at)
            recovery = max(task.ended_at - at - max(expected, 0.0), 0.0)
            found.by_kind.setdefault(fault.kind, []).append(recovery)
            if recovery >= found.slowest.get(fault.kind, (0.0,))[0]:
                found.slowest[fault.kind] = (recovery, task.key, fault.number)
    return found


def _meets(fault: Fault, task: Followed) -> bool:
    return KINDS[fault.kind].everyone or fault.target == task.key[0]
