"""Threads that compute a model are held on the core that they are on, for as long as they get it.

A model on a CPU computes in a thread that hardly rests. Where other processes want a core for a moment now and then, as
a worker and its network do for every message, the kernel moves that thread out of their way, and each time it goes on
with cold caches. Held, it stays, and they run beside it. If it has to wait for the core instead, as where another such
thread was held there too, it is let go, so that the kernel finds it a better one; and so it is when it rests.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ["CoreHolds", "Cores", "Usage"]

BUSY_NS, REST_NS = 200_000_000, 20_000_000
"""A thread that ran for so long since the last look is held; one that ran for less than that is let go."""
CROWDED = 0.25
"""One that waited for the core for this share of the time that it wanted it is let go, too."""


class Usage(NamedTuple):
    """A thread's use of the machine until now, in nanoseconds, and the core that it ran on last."""

    ran: int
    waited: int
    """While it could have run."""
    core: int


class Cores(Protocol):
    """The machine's side. All raise `OSError` for a thread that has ended, or where the system does not tell."""

    def usage(self, thread: int) -> Usage: ...

    def allowed(self, thread: int) -> frozenset[int]:
        """The cores that a thread may run on."""

    def allow(self, thread: int, cores: frozenset[int]) -> None: ...


class _Linux:
    def usage(self, thread: int) -> Usage:
        folder = Path(f"/proc/{thread}")
        ran, waited, _ = map(int, (folder / "schedstat").read_text().split())
        # From the field behind the name, which may hold anything: proc_pid_stat(5), field 39 of all.
        return Usage(ran, waited, int((folder / "stat").read_text().rpartition(")")[2].split()[36]))

    def allowed(self, thread: int) -> frozenset[int]:
        return frozenset(os.sched_getaffinity(thread))

    def allow(self, thread: int, cores: frozenset[int]) -> None:
        os.sched_setaffinity(thread, cores)


@dataclass(slots=True)
class _Thread:
    used: Usage
    free: frozenset[int]
    """Where it may run when it is not held."""
    held: frozenset[int] | None = None


class CoreHolds:
    """The threads of one engine."""

    def __init__(self, cores: Cores | None = None) -> None:
        self.cores = cores or _Linux()
        self._threads: dict[int, _Thread] = {}

    def look(self, threads: Collection[int]) -> None:
        """Hold those that were busy since the last look, and let go those that rested or had to wait. Every second or
        so, with the ids of all threads that are there now."""
        self._threads = {id: known for id, known in self._threads.items() if id in threads}
        for id in threads:
            try:
                self._look_at(id)
            except (OSError, ValueError, IndexError):
                self._threads.pop(id, None)

    def _look_at(self, id: int) -> None:
        used, allowed = self.cores.usage(id), self.cores.allowed(id)
        known = self._threads.get(id)
        if known is None:
            self._threads[id] = _Thread(used, allowed)
            return
        ran, waited = used.ran - known.used.ran, used.waited - known.used.waited
        known.used = used
        if allowed != (known.held or known.free):  # somebody else has said where it is to run
            known.free, known.held = allowed, None
        elif known.held is None:
            if ran >= BUSY_NS and len(allowed) > 1:
                self._allow(id, known, frozenset({used.core}))
        elif ran < REST_NS or waited > CROWDED * (ran + waited):
            self._allow(id, known, None)

    def _allow(self, id: int, known: _Thread, held: frozenset[int] | None) -> None:
        self.cores.allow(id, held or known.free)
        known.held = held
