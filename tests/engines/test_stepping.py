"""The stepping thread: fair among members, asleep when idle, gone when left."""

import threading
import time

import pytest

from modelnet.engines.stepping import StepThread


class Member:
    """Steps `work` times, noting each in a list shared by all members."""

    def __init__(self, name: str, work: int, log: list[str]) -> None:
        self.name, self.work, self.log = name, work, log
        self.asked = 0
        self.done = threading.Event()
        if not work:
            self.done.set()

    def busy(self) -> bool:
        self.asked += 1
        return self.work > 0

    def step(self) -> None:
        self.work -= 1
        self.log.append(self.name)
        if not self.work:
            self.done.set()


def test_members_take_turns() -> None:
    log: list[str] = []
    thread = StepThread("test")
    gate = threading.Event()
    first, second = Member("a", 3, log), Member("b", 3, log)
    holder = Member("holder", 0, log)
    thread.join(holder)
    thread.call(gate.wait)  # hold the thread until both are there
    thread.join(first)
    thread.join(second)
    gate.set()
    assert first.done.wait(5)
    assert second.done.wait(5)
    assert log == ["a", "b"] * 3
    for member in (holder, first, second):
        thread.leave(member)


def test_it_sleeps_while_idle() -> None:
    member = Member("a", 0, [])
    thread = StepThread("test")
    thread.join(member)
    thread.call(time.monotonic).result(5)
    thread.call(time.monotonic).result(5)
    asked = member.asked
    # Nothing to wait for: that nothing happens shows only over time. A thread that spins asks thousands of times.
    time.sleep(0.05)
    assert member.asked <= asked + 1
    thread.leave(member)


def test_it_ends_with_its_last_member_and_starts_again() -> None:
    thread = StepThread("modelnet-test-thread")

    def threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "modelnet-test-thread"]

    for _ in range(2):
        member = Member("a", 1, [])
        thread.join(member)
        assert member.done.wait(5)
        (running,) = threads()
        thread.leave(member)
        running.join(5)
        assert not threads()


def test_a_call_brings_its_result_or_its_error_back() -> None:
    member = Member("a", 0, [])
    thread = StepThread("test")
    thread.join(member)
    assert thread.call(sum, [1, 2]).result(5) == 3
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0).result(5)
    thread.leave(member)
