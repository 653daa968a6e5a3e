"""Processor cores: where the threads of this process, and of those that it starts, may run.

An engine that computes on a processor gets cores of its own, and what else belongs to the network keeps off them: its
short bursts, tens for each task, would else come between the engine's steps. Linux alone can do this.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["cores_can_be_held", "keep_off", "keep_to", "keeping_off", "starting_on"]

_THREADS = Path("/proc/self/task")
_starting = threading.Lock()
"""The environment is the whole process's."""


def cores_can_be_held() -> bool:
    """Whether this system knows what is asked for here."""
    return hasattr(os, "sched_setaffinity") and _THREADS.is_dir()


def keep_to(cores: Collection[int]) -> None:
    """Every thread of this process, and what they start from now on. Raises `OSError` where there is none of these."""
    for _ in range(2):  # again for those that were started meanwhile by one whose turn had not come
        for thread in _THREADS.iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)


def keep_off(cores: Collection[int]) -> None:
    """Leave these cores to others, unless there are no more."""
    if cores and cores_can_be_held() and (rest := os.sched_getaffinity(0).difference(cores)):
        keep_to(rest)


@contextlib.contextmanager
def keeping_off(cores: Collection[int]) -> Iterator[None]:
    """As `keep_off`, for a while; what was started meanwhile keeps off them for good."""
    before = os.sched_getaffinity(0) if cores and cores_can_be_held() else None
    keep_off(cores)
    try:
        yield
    finally:
        if before is not None:
            keep_to(before)


@contextlib.contextmanager
def starting_on(cores: Collection[int]) -> Iterator[None]:
    """Processes that this thread starts meanwhile run on these cores, with an OpenMP thread for each; the threads of
    this process stay where this one was. None: nothing changes. Raises `OSError` if one is not there."""
    if not cores:
        yield
        return
    before, variable = os.sched_getaffinity(0), "OMP_NUM_THREADS"
    with _starting:
        threads = os.environ.get(variable)
        try:
            with contextlib.suppress(OSError):  # said below, in words
                os.sched_setaffinity(0, cores)
            if missing := sorted(set(cores) - os.sched_getaffinity(0)):
                raise OSError(f"there is no core {', '.join(map(str, missing))} for this process")
            os.environ[variable] = str(len(cores))
            yield
        finally:
            if threads is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = threads
            keep_to(before)  # those that were started here as well
