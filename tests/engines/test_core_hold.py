"""Which threads are held on a core, and when they are let go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from modelnet.engines.core_hold import CoreHolds, Usage

ALL = frozenset({0, 1, 2})
SECOND = 1_000_000_000


@dataclass
class Machine:
    """Cores on which threads run as a test says."""

    used: dict[int, Usage] = field(default_factory=dict)
    bound: dict[int, frozenset[int]] = field(default_factory=dict)
    free: frozenset[int] = ALL

    def usage(self, thread: int) -> Usage:
        if thread not in self.used:
            raise ProcessLookupError(thread)
        return self.used[thread]

    def allowed(self, thread: int) -> frozenset[int]:
        return self.bound.get(thread, self.free)

    def allow(self, thread: int, cores: frozenset[int]) -> None:
        self.bound[thread] = cores

    def pass_time(self, thread: int, *, ran: float, waited: float = 0.0, core: int = 0) -> None:
        """`ran`, `waited`: seconds."""
        before = self.used.get(thread, Usage(0, 0, 0))
        self.used[thread] = Usage(before.ran + int(ran * SECOND), before.waited + int(waited * SECOND), core)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def holds(machine: Machine) -> CoreHolds:
    return CoreHolds(machine)


def look(holds: CoreHolds, machine: Machine, *, ran: float, waited: float = 0.0, core: int = 0) -> frozenset[int]:
    """Where thread 7 may run after one more look."""
    machine.pass_time(7, ran=ran, waited=waited, core=core)
    holds.look([7])
    return machine.allowed(7)


def test_a_busy_thread_is_held_where_it_is_until_it_rests(holds: CoreHolds, machine: Machine) -> None:
    assert look(holds, machine, ran=50.0, core=2) == ALL, "it is not known yet since when it ran for that"
    assert look(holds, machine, ran=0.1, core=2) == ALL
    assert look(holds, machine, ran=0.9, core=2) == {2}
    assert look(holds, machine, ran=0.9, core=2) == {2}
    assert look(holds, machine, ran=0.05, core=2) == {2}, "it is busy still"
    assert look(holds, machine, ran=0.0, core=2) == ALL


def test_one_that_must_wait_for_its_core_is_let_go_and_held_where_it_is_then(
    holds: CoreHolds, machine: Machine
) -> None:
    look(holds, machine, ran=0.0)
    assert look(holds, machine, ran=0.8, core=0) == {0}
    assert look(holds, machine, ran=0.8, waited=0.2, core=0) == {0}, "others may run there now and then"
    assert look(holds, machine, ran=0.5, waited=0.5, core=0) == ALL
    assert look(holds, machine, ran=0.9, core=1) == {1}


def test_where_there_is_one_core_it_is_left_alone(holds: CoreHolds, machine: Machine) -> None:
    machine.free = frozenset({1})
    look(holds, machine, ran=0.0)
    look(holds, machine, ran=0.9, core=1)
    assert not machine.bound


def test_what_somebody_else_says_of_its_cores_stands(holds: CoreHolds, machine: Machine) -> None:
    look(holds, machine, ran=0.0)
    assert look(holds, machine, ran=0.9, core=0) == {0}
    machine.bound[7] = frozenset({1, 2})
    assert look(holds, machine, ran=0.9, core=1) == {1, 2}
    assert look(holds, machine, ran=0.9, core=1) == {1}
    assert look(holds, machine, ran=0.0, core=1) == {1, 2}


def test_each_has_a_core_of_its_own_and_one_that_is_gone_is_forgotten(holds: CoreHolds, machine: Machine) -> None:
    for ran in (0.0, 0.9):
        machine.pass_time(7, ran=ran, core=0)
        machine.pass_time(8, ran=ran, core=1)
        holds.look([7, 8])
    assert machine.bound == {7: frozenset({0}), 8: frozenset({1})}
    del machine.used[8]
    holds.look([7, 8])
    holds.look([7])
    machine.bound.clear()
    machine.pass_time(8, ran=9.0)  # another of the same id
    holds.look([7, 8])
    assert 8 not in machine.bound


def test_a_system_that_does_not_tell_is_no_trouble() -> None:
    class Silent(Machine):
        def usage(self, thread: int) -> Usage:
            raise FileNotFoundError("/proc/7/schedstat")

    machine = Silent()
    holds = CoreHolds(machine)
    holds.look([7])
    holds.look([7])
    assert not machine.bound


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes, and says so now and then."""
    code = "while True:\n sum(range(10**6))\n print(flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds nothing to cores")
def test_a_process_that_computes_is_held_on_the_core_that_it_runs_on(busy: subprocess.Popen[bytes]) -> None:
    before = os.sched_getaffinity(busy.pid)
    if len(before) < 2:
        pytest.skip("there is one core")
    holds = CoreHolds()
    holds.look([busy.pid])
    assert busy.stdout is not None
    for line, _ in enumerate(busy.stdout):
        if line % 50 == 49:  # each is some ten ms of work
            holds.look([busy.pid])
            if len(now := os.sched_getaffinity(busy.pid)) == 1:
                break
    assert now < before
