"""The line of those who wait: order, bounds, and who is called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from modelnet.market import Line, Pace, Place
from modelnet.messages import Selector, Task


@dataclass(eq=False)
class One:
    """Somebody who waits."""

    task: Task
    age: int
    place: Place | None = None


def one(
    age: int, priority: int = 5, capability: str = "a.b", worker: str | None = None, tenant: str = "default"
) -> One:
    require = Selector(worker=worker)
    return One(Task(capability=capability, input={}, priority=priority, require=require, tenant=tenant), age)


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


def test_tenants_take_turns() -> None:
    line = Line[One](100)
    flood = [one(n, tenant="flood") for n in range(20)]
    few = [one(100 + n, tenant="few") for n in range(3)]
    for waiter in (*flood, *few):
        line.add(waiter)
    called = call(line, 6)
    assert [waiter.task.tenant for waiter in called] == ["flood", "few"] * 3
    assert [waiter.age for waiter in called] == [0, 100, 1, 101, 2, 102]
    late = one(200, tenant="late")
    line.add(late)
    assert late in call(line, 2), "whoever comes late is not behind all who came before, nor before all"


def test_a_tenant_saves_up_no_turns() -> None:
    line = Line[One](100)
    for n in range(10):
        line.add(one(n, tenant="steady"))
    call(line, 8)
    for n in range(10):
        line.add(one(100 + n, tenant="idle"))
    assert Counter(waiter.task.tenant for waiter in call(line, 4)) == {"steady": 2, "idle": 2}


def test_priority_goes_before_turns() -> None:
    line = Line[One](100)
    flood = [one(n, 9, tenant="flood") for n in range(5)]
    for waiter in (*flood, one(9, 5, tenant="few")):
        line.add(waiter)
    assert call(line, 5) == flood


def test_who_tries_in_vain_keeps_its_place() -> None:
    line = Line[One](100)
    first, second = one(1), one(2)
    line.add(first)
    line.add(second)
    (called,) = call(line, 1)
    line.add(called)
    assert call(line, 2) == [first, second]


def test_the_flooders_last_gives_way_in_a_full_line() -> None:
    line = Line[One](10)
    flood = [one(n, tenant="flood") for n in range(10)]
    for waiter in flood:
        line.add(waiter)
    assert line.add(one(50, tenant="few")) is flood[-1]


def test_tasks_come_back_at_a_bounded_rate_and_in_time_to_expire() -> None:
    pace = Pace(least_s=1.0, rate=100.0)
    delays = [pace.delay(10.0, 60.0) for _ in range(300)]
    assert delays[0] == 1.0
    assert delays[299] == pytest.approx(1.0 + 2.99)
    assert pace.delay(10.0, 0.5) == 1.5
    assert pace.delay(100.0, 60.0) == 1.0, "time has passed"
    pace.worked_off(1000.0)
    assert [pace.delay(100.0, 60.0) for _ in range(2001)][-1] == pytest.approx(2.0, abs=0.02)
