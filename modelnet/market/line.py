"""Who waits for a worker, in the order in which they try again: higher priority first, then first come. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from heapq import merge
from typing import Generic, Protocol, TypeVar

from modelnet.messages import Task

__all__ = ["Line", "Waiter"]


class Waiter(Protocol):
    """A task that waits."""

    @property
    def task(self) -> Task:
        """What it wants."""

    @property
    def order(self) -> tuple[int, int]:
        """Its place: smaller is earlier."""


W = TypeVar("W", bound=Waiter)


class Line(Generic[W]):
    """One bounded line for each capability. Empty lines are forgotten."""

    def __init__(self, limit: int) -> None:
        """`limit`: most that wait for one capability."""
        self._limit = limit
        self._lines: dict[str, list[W]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[W]:
        return merge(*self._lines.values(), key=_order)

    def add(self, waiter: W) -> W | None:
        """Take a place; returns whoever has none any more, the last in line, if it is too long."""
        line = self._lines.setdefault(waiter.task.capability, [])
        if waiter not in line:
            insort(line, waiter, key=_order)
        return line.pop() if len(line) > self._limit else None

    def leave(self, waiter: W) -> None:
        """Give up a place, if it has one."""
        capability = waiter.task.capability
        line = self._lines.get(capability, [])
        if waiter in line:
            line.remove(waiter)
        if not line:
            self._lines.pop(capability, None)

    def is_before(self, task: Task) -> bool:
        """Whether somebody waits for the same workers that a new task wants, so that it must wait behind."""
        wants = (task.require, task.exclude, task.contract)
        waiting = (waiter.task for waiter in self._lines.get(task.capability, ()))
        return any((other.require, other.exclude, other.contract) == wants for other in waiting)

    def call(self, serves: Callable[[str], bool], could_take: Callable[[W], bool], count: int) -> list[W]:
        """The first `count` whom a worker could take leave the line: it serves the capability and may do the task."""
        lines = [line for capability, line in self._lines.items() if serves(capability)]
        called: list[W] = []
        for waiter in merge(*lines, key=_order):
            if len(called) >= count:
                break
            if could_take(waiter):
                called.append(waiter)
        for waiter in called:
            self.leave(waiter)
        return called


def _order(waiter: Waiter) -> tuple[int, int]:
    return waiter.order
