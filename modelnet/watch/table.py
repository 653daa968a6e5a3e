"""Rows by key, bounded, that know since which version they are as they are: so that a viewer is sent what changed.

A viewer keeps the version that it has seen. However long it was away, what it lacks follows from the rows themselves:
nothing waits for it anywhere.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Changes", "Row", "Table"]

Row = dict[str, Any]
"""Plain JSON values."""

_GONE = 4096
"""So many removed keys are remembered; who missed more is sent everything."""


class Changes(NamedTuple):
    """What became of a table since a version."""

    put: list[Row]
    """Rows that are new or changed, the oldest first."""
    gone: list[str]
    """Keys of rows that are there no more."""


class Table:
    """At most `most` rows. What is put twice keeps its place."""

    def __init__(self, most: int, *, expendable: Callable[[Row], bool] = lambda row: False) -> None:
        """`expendable`: rows that go before the oldest, if one is among the oldest hundred."""
        self.most = most
        self._expendable = expendable
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._changed: dict[str, int] = {}
        self._gone: deque[tuple[int, str]] = deque(maxlen=_GONE)
        self._forgotten = 0
        """Removals up to this version may have been forgotten."""

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def get(self, key: str) -> Row | None:
        """The row of this key."""
        return self._rows.get(key)

    def rows(self) -> list[Row]:
        """All rows, the oldest first."""
        return list(self._rows.values())

    def put(self, key: str, fields: Mapping[str, Any], version: int) -> None:
        """Set fields of a row, or make it; what changes nothing is no change."""
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= self.most:
                self.drop(self._next_to_go(), version)
            self._rows[key] = dict(fields)
        elif all(row.get(name) == value for name, value in fields.items()):
            return
        else:
            self._rows[key] = {**row, **fields}  # who was given the old one keeps it
        self._changed[key] = version

    def drop(self, key: str, version: int) -> None:
        """Remove a row, if there is one."""
        if self._rows.pop(key, None) is not None:
            del self._changed[key]
            if len(self._gone) == _GONE:
                self._forgotten = self._gone[0][0]
            self._gone.append((version, key))

    def since(self, version: int) -> Changes | None:
        """What changed after a version; None if that cannot be told any more."""
        if version < self._forgotten:
            return None
        put = [row for key, row in self._rows.items() if self._changed[key] > version]
        gone = {key for at, key in self._gone if at > version and key not in self._rows}
        return Changes(put, sorted(gone))

    def _next_to_go(self) -> str:
        for number, (key, row) in enumerate(self._rows.items()):
            if number == 100:
                break
            if self._expendable(row):
                return key
        return next(iter(self._rows))
