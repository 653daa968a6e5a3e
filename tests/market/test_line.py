"""The line of those who wait: order, bounds, and who is called."""

from __future__ import annotations

from dataclasses import dataclass

from modelnet.market import Line
from modelnet.messages import Selector, Task


@dataclass(eq=False)
class One:
    """Somebody who waits."""

    task: Task
    age: int

    @property
    def order(self) -> tuple[int, int]:
        return -self.task.priority, self.age


def one(age: int, priority: int = 5, capability: str = "a.b", worker: str | None = None) -> One:
    require = Selector(worker=worker)
    return One(Task(capability=capability, input={}, priority=priority, require=require), age)


def call(line: Line[One], count: int, worker: str = "w") -> list[One]:
    return line.call(lambda _: True, lambda w: w.task.require.worker in (None, worker), count)


def test_priority_first_then_age_over_all_capabilities() -> None:
    line = Line[One](10)
    low, late, early, high = one(1, 0), one(5), one(2, capability="c"), one(9, 9, capability="d")
    for waiter in (low, late, early, high):
        assert line.add(waiter) is None
    assert list(line) == [high, early, late, low]
    assert call(line, 3) == [high, early, late]
    assert call(line, 3) == [low]
    assert len(line) == 0


def test_those_whom_the_worker_cannot_serve_keep_their_place_and_block_nobody() -> None:
    line = Line[One](10)
    picky, any_worker = one(1, worker="other"), one(2)
    line.add(picky)
    line.add(any_worker)
    assert call(line, 1) == [any_worker]
    assert call(line, 1) == []
    assert call(line, 1, worker="other") == [picky]


def test_only_capabilities_that_are_served_are_called() -> None:
    line = Line[One](10)
    a, b = one(1, capability="a"), one(2, capability="b")
    line.add(a)
    line.add(b)
    assert line.call(lambda capability: capability == "b", lambda _: True, 5) == [b]


def test_a_full_line_gives_back_its_last() -> None:
    line = Line[One](2)
    first, second, urgent = one(1), one(2), one(3, 9)
    line.add(first)
    line.add(second)
    assert line.add(urgent) is second
    newest = one(4)
    assert line.add(newest) is newest
    assert line.add(one(1, capability="other")) is None, "each capability has its own bound"


def test_the_same_waiter_stands_once_and_leaves_nothing_behind() -> None:
    line = Line[One](5)
    waiter = one(1)
    line.add(waiter)
    line.add(waiter)
    assert len(line) == 1
    line.leave(waiter)
    line.leave(waiter)
    assert len(line) == 0
    assert call(line, 1) == []


def test_a_new_task_waits_behind_those_that_want_the_same_workers_only() -> None:
    line = Line[One](5)
    line.add(one(1, worker="w"))
    assert line.is_before(one(2, worker="w").task)
    assert not line.is_before(one(2).task)
    assert not line.is_before(one(2, worker="v").task)
    assert not line.is_before(one(2, worker="w", capability="other").task)
