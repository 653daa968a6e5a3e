"""One task's journal as its writer sees it: one entry on its way at a time, each on the sequence of the one before.

Pure: `Write` commands out, what the server said in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from modelnet.messages import Awarded, Final, Planned, Waiting

from .commands import Write

__all__ = ["Entry", "JournalWriter"]

Entry = Awarded | Planned | Waiting | Final


class JournalWriter:
    """Entries in order. What waits can still be taken back."""

    def __init__(self) -> None:
        self.sequence = 0
        """Of the last entry known to stand."""
        self.outstanding: Entry | None = None
        self._queue: deque[Entry] = deque()

    @property
    def idle(self) -> bool:
        """Whether all that was decided stands."""
        return self.outstanding is None and not self._queue

    def write(self, entry: Entry) -> list[Write]:
        """Append an entry once those before it are stored."""
        if self.outstanding is not None:
            self._queue.append(entry)
            return []
        self.outstanding = entry
        return [Write(entry, self.sequence)]

    def stored(self, sequence: int) -> Entry | None:
        """The outstanding entry stands; returns it. `next` goes on."""
        entry, self.outstanding = self.outstanding, None
        self.sequence = sequence
        return entry

    def next(self) -> list[Write]:
        """Write what waits."""
        return self.write(self._queue.popleft()) if self._queue and self.outstanding is None else []

    def keep(self, wanted: Callable[[Entry], bool]) -> None:
        """Take back what waits, unless it is wanted."""
        self._queue = deque(filter(wanted, self._queue))
