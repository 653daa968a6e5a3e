"""Who waits for a worker, in the order in which they try again. Pure.

Higher priority first. Among equals tenants take turns, by start-time fair queueing (Goyal, Vin & Cheng, SIGCOMM 1996):
a waiter's tag is one above its tenant's last, or above the tag last served if that is later. So whoever brings a
thousand tasks waits behind the first task of everybody else. Within a tenant, first come, first served.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from heapq import merge
from typing import Generic, Protocol, TypeVar

from modelnet.messages import Task

__all__ = ["Line", "Place", "Waiter"]

Place = tuple[int, int, int]
"""Of a waiter: minus its priority, its tag, its age. Smaller is earlier."""


class Waiter(Protocol):
    """A task that waits."""

    place: Place | None
    """Given by the line when it first waits; kept if it tries in vain and comes back."""

    @property
    def task(self) -> Task:
        """What it wants."""

    @property
    def age(self) -> int:
        """When it came: smaller is earlier."""


W = TypeVar("W", bound=Waiter)


class _Queue(Generic[W]):
    """Those who wait for one capability."""

    def __init__(self) -> None:
        self.waiters: list[W] = []
        self._served = 0
        self._tags: dict[str, int] = {}
        """The last tag of each tenant that has one above `_served`."""

    def add(self, waiter: W) -> None:
        if waiter.place is None:
            tenant = waiter.task.tenant
            tag = max(self._served, self._tags.get(tenant, 0)) + 1
            self._tags[tenant] = tag
            waiter.place = -waiter.task.priority, tag, waiter.age
        insort(self.waiters, waiter, key=_place)

    def served(self, waiter: W) -> None:
        self._served = max(self._served, _place(waiter)[1])
        if len(self._tags) > 2 * len(self.waiters) + 16:
            self._tags = {tenant: tag for tenant, tag in self._tags.items() if tag > self._served}


class Line(Generic[W]):
    """One bounded queue for each capability. Empty ones are forgotten."""

    def __init__(self, limit: int) -> None:
        """`limit`: most that wait for one capability."""
        self._limit = limit
        self._queues: dict[str, _Queue[W]] = {}

    def __len__(self) -> int:
        return sum(len(queue.waiters) for queue in self._queues.values())

    def __iter__(self) -> Iterator[W]:
        return merge(*(queue.waiters for queue in self._queues.values()), key=_place)

    def add(self, waiter: W) -> W | None:
        """Take a place; returns whoever has none any more, the last in line, if it is too long."""
        queue = self._queues.setdefault(waiter.task.capability, _Queue())
        if waiter not in queue.waiters:
            queue.add(waiter)
        return queue.waiters.pop() if len(queue.waiters) > self._limit else None

    def leave(self, waiter: W) -> None:
        """Give up a place, if it has one."""
        capability = waiter.task.capability
        queue = self._queues.get(capability)
        if queue is None:
            return
        if waiter in queue.waiters:
            queue.waiters.remove(waiter)
        if not queue.waiters:
            del self._queues[capability]

    def is_before(self, task: Task) -> bool:
        """Whether somebody waits for the same workers that a new task wants, so that it must wait in line."""
        wants = (task.require, task.exclude, task.contract)
        queue = self._queues.get(task.capability)
        waiting = (waiter.task for waiter in queue.waiters) if queue else ()
        return any((other.require, other.exclude, other.contract) == wants for other in waiting)

    def call(self, serves: Callable[[str], bool], could_take: Callable[[W], bool], count: int) -> list[W]:
        """The first `count` whom a worker could take leave the line: it serves the capability and may do the task."""
        queues = [queue.waiters for capability, queue in self._queues.items() if serves(capability)]
        called: list[W] = []
        for waiter in merge(*queues, key=_place):
            if len(called) >= count:
                break
            if could_take(waiter):
                called.append(waiter)
        for waiter in called:
            self._queues[waiter.task.capability].served(waiter)
            self.leave(waiter)
        return called


def _place(waiter: Waiter) -> Place:
    assert waiter.place is not None
    return waiter.place
