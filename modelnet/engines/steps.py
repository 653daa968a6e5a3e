"""How long an engine's steps take, learned from those it makes. Pure.

    seconds = base + per_decode · requests decoding + per_prefill · prompt tokens computed + per_held · tokens held

Steps that are alike fall into one cell, which keeps means of what they were and took, and the fit is over cells, each
by its relative error. So thousands of steps of one kind, as an engine under steady load makes, do not drown the few of
another that a prediction needs, nothing is forgotten because it was not seen for a while, and a step that took ten
times as long because the machine was busy elsewhere counts as an ordinary one. bench/steps.py
compares this with recursive least squares and with medians of cells alone, on recorded steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median_low

__all__ = ["Pace", "StepModel"]

_KEPT = 1 / 32
"""Weight of a new step in a cell that has had many."""

_RECENT = 5
"""Of the last so many steps of a cell the median is what counts: one that was held up does not, a change soon does."""

_RECALLED = 4
"""Steps that a cell of an earlier run counts for."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a step costs, in seconds."""

    base: float
    per_decode: float
    per_prefill: float
    per_held: float = 0.0

    def step_s(self, decoding: float, prefill: float = 0.0, held: float = 0.0) -> float:
        """A step of so many requests that decode, prompt tokens computed, and tokens held in the cache."""
        return self.base + self.per_decode * decoding + self.per_prefill * prefill + self.per_held * held


@dataclass(slots=True)
class _Cell:
    """Means of steps that are alike."""

    count: int = 0
    means: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    """Requests decoding, prompt tokens, tokens held, seconds."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def learn(self, step: Sequence[float]) -> None:
        self.count += 1
        self.recent.append(step[3])
        share = max(1 / self.count, _KEPT)
        for n, value in enumerate((*step[:3], median_low(self.recent))):
            self.means[n] += share * (value - self.means[n])


class StepModel:
    """Learns on the thread that steps, tells on any."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int, int], _Cell] = {}
        self._lock = threading.Lock()
        self._pace: Pace | None = None
        self._learned = self._stale = 0

    def learn(self, decoding: int, prefill: int, held: int, seconds: float) -> None:
        """Note a step: requests that decoded, prompt tokens computed, tokens in the cache, and how long it took."""
        if seconds <= 0 or decoding + prefill <= 0:
            return
        key = decoding.bit_length(), prefill.bit_length(), held.bit_length()
        with self._lock:
            self._cells.setdefault(key, _Cell()).learn((decoding, prefill, held, seconds))
            self._learned += 1
            self._stale += 1

    def pace(self) -> Pace | None:
        """What steps cost now; None before the first."""
        with self._lock:
            # A fit is some thousand steps of Python: not for each bid.
            if self._stale and (self._pace is None or self._stale >= min(32, 1 + self._learned // 8)):
                self._pace, self._stale = _fit(self._cells.values()), 0
            return self._pace

    def save(self) -> list[list[float]]:
        """What was learned, as plain numbers."""
        with self._lock:
            return [[*key, cell.count, *cell.means] for key, cell in sorted(self._cells.items())]

    def recall(self, saved: Iterable[Sequence[float]]) -> None:
        """Begin with what an earlier run has saved; what this one sees counts in full from its first step on.

        Raises `ValueError` or `TypeError` for what `save` did not give.
        """
        cells = {}
        for decoding, prefill, held, count, *means in saved:
            if len(means) != 4 or min(means) < 0 or means[3] <= 0:
                raise ValueError("a cell is three classes, a count and four means")
            cells[int(decoding), int(prefill), int(held)] = _Cell(min(int(count), _RECALLED), [float(m) for m in means])
        with self._lock:
            self._cells = {**cells, **self._cells}
            self._pace, self._stale = None, 1 if self._cells else 0


def _fit(cells: Iterable[_Cell]) -> Pace | None:
    """Least squares of the relative error, with no cost below zero: a cost that comes out negative is taken as nought,
    and the others are fitted again."""
    rows = [((1.0, *cell.means[:3]), cell.means[3], min(cell.count, 16)) for cell in cells if cell.means[3] > 0]
    if not rows:
        return None
    used = [0, 1, 2, 3]
    while used:
        found = _solve(rows, used)
        if found is None:
            used.pop()
            continue
        lowest = min(range(len(used)), key=lambda n: found[n])
        if found[lowest] >= 0:
            costs = [0.0] * 4
            for n, column in enumerate(used):
                costs[column] = found[n]
            return Pace(*costs)
        del used[lowest]
    return None


def _solve(rows: Sequence[tuple[tuple[float, ...], float, int]], used: Sequence[int]) -> list[float] | None:
    """Weighted normal equations by elimination; None where they have no one solution."""
    size = len(used)
    scale = [max(row[0][column] for row in rows) or 1.0 for column in used]
    table = [[0.0] * (size + 1) for _ in range(size)]
    for x, seconds, weight in rows:
        share = weight / seconds**2
        scaled = [x[column] / scale[n] for n, column in enumerate(used)]
        for i in range(size):
            for j in range(size):
                table[i][j] += share * scaled[i] * scaled[j]
            table[i][size] += share * scaled[i] * seconds
    for i in range(size):
        # A trace of ridge: what the steps seen so far do not tell apart is shared.
        table[i][i] *= 1 + 1e-6
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(table[row][i]))
        if abs(table[pivot][i]) < 1e-12 * (abs(table[i][i]) + 1):
            return None
        table[i], table[pivot] = table[pivot], table[i]
        for row in range(size):
            if row != i:
                factor = table[row][i] / table[i][i]
                for column in range(i, size + 1):
                    table[row][column] -= factor * table[i][column]
    return [table[n][size] / table[n][n] / scale[n] for n in range(size)]
