"""Calibration: what a worker's claims of time are worth, and what they are corrected to. Pure.

A worker claims median and 90th percentile of its time to complete. From what its tasks did take the negotiator learns
the bias and the spread of ln(actual / claimed), over all and at each load, and bids with the corrected log-normal. So
claims carry what only the worker knows (this task is long, its prefix is cached) and a constant lie carries nothing.

What was learned fades once no outcome comes any more. Else a worker that was slow for a while and has no rival would
stay without the task that could show it to be quick again. A liar may keep still to be believed anew: that costs it the
income of that time, and what it gains is learned from as a newcomer's tasks are.

Claims are scored by the pinball loss, which is least on average for the true quantile; here of the logarithm of the
time, so that long tasks do not outweigh short ones (Gneiting & Raftery, JASA 102, 2007; Gneiting, JASA 106, 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

__all__ = ["LOADS", "Calibration", "Cell", "load_class", "pinball"]

LOADS = 4
"""Classes of load: idle, one task running, two or three, four or more."""

MEMORY = 50
"""The last so many outcomes count about alike; older ones fade."""

FRESH_S = 300.0
"""So long after an outcome all that was learned stands: a worker in use forgets nothing."""

HALF_LIFE_S = 600.0
"""From then on the learned bias, and what the outcomes count, halve in each such time. A factor of 20 is one of 4.5
after a quarter of an hour and 1.5 after 35 minutes; a worker that is slow indeed gets a few tasks in that time."""

_LOAD_PRIOR = 8.0
"""What is known over all loads counts as so many outcomes at each."""

_SPREAD_PRIOR = 8.0
"""A claimed spread counts as so many outcomes, less with each that comes in."""

_UNLEARNED = 1.0
"""An unbiased claim counts as so many outcomes."""

_SURPRISE = 1.5
"""Most that one outcome counts for, off what was expected: a factor of 4.5. A machine that stood still for a minute
must not be taken for a slow one."""

_WIDEST = 1.2
"""Largest deviation that is reckoned with, unless the worker claims a larger one: a 90th percentile of 4.7 medians.
Times of two kinds look wider, and a log-normal that wide would fear a lateness that never comes."""

_Z90 = NormalDist().inv_cdf(0.9)


def load_class(running: int) -> int:
    """Class of a worker's load by how many tasks it runs."""
    return min(max(running, 0).bit_length(), LOADS - 1)


def pinball(level: float, claimed_ms: float, actual_ms: float) -> float:
    """Pinball loss of a claimed quantile of the time, on the logarithm of time: 0 at best."""
    over = math.log(actual_ms / claimed_ms)
    return max(level * over, (level - 1) * over)


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean and variance of ln(actual / claimed median); the last `MEMORY` outcomes weigh most, and none too much (as
    Huber's estimator has it, Annals of Mathematical Statistics 35, 1964)."""

    count: float = 0.0
    """Outcomes, less what has faded of them."""
    bias: float = 0.0
    variance: float = 0.0

    def faded(self, kept: float) -> Cell:
        """With this share of what was known: the mean goes back to 0, which is the claim."""
        return self if kept == 1.0 else Cell(self.count * kept, self.bias * kept, self.variance)

    def after(self, error: float) -> Cell:
        """With one more outcome (West's incremental mean and variance, with a floor under the newest's weight)."""
        share = max(1 / (self.count + 1), 1 / MEMORY)
        off = min(max(error - self.bias, -_SURPRISE), _SURPRISE)
        return Cell(self.count + 1, self.bias + share * off, (1 - share) * (self.variance + share * off * off))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned of one worker's claims in one capability: all there is to keep."""

    at: float = 0.0
    """When the last outcome came: seconds; only differences matter."""
    count: int = 0
    """Outcomes ever."""

    overall: Cell = field(default_factory=Cell)
    loads: tuple[Cell, ...] = field(default_factory=lambda: (Cell(),) * LOADS)
    covered: int = 0
    """Tasks that took no longer than the corrected 90th percentile, of `count`."""
    covered_claim: int = 0
    """The same of the percentile claimed."""
    loss: float = 0.0
    """Mean pinball loss of the corrected median and 90th percentile."""
    loss_claim: float = 0.0
    """The same of those claimed."""

    def correct(self, p50_ms: float, p90_ms: float, load: int, now: float) -> tuple[float, float]:
        """The median and 90th percentile to reckon with, from those claimed. `load`: a `load_class`."""
        kept = self._kept(now)
        overall, here = self.overall.faded(kept), self.loads[load].faded(kept)
        count = overall.count
        if not count:
            return p50_ms, max(p90_ms, p50_ms)
        believed = overall.bias * count / (count + _UNLEARNED)
        bias = (here.count * here.bias + _LOAD_PRIOR * believed) / (here.count + _LOAD_PRIOR)
        claimed = min(math.log(max(p90_ms / p50_ms, 1.0)) / _Z90, 2 * _Z90)
        prior = _SPREAD_PRIOR * _SPREAD_PRIOR / (_SPREAD_PRIOR + count)
        variance = (count * overall.variance + prior * claimed**2) / (count + prior)
        # What is predicted is a draw around a mean that is itself estimated, as is the variance. With less than one
        # outcome the doubt fades as the estimate does, so that the claim is all that is left.
        doubt = 2 * min(count, 1 / min(count, MEMORY))
        deviation = min(math.sqrt(variance * (1 + doubt)), max(_WIDEST, claimed))
        median = p50_ms * math.exp(bias)
        return median, median * math.exp(_Z90 * deviation)

    def after(
        self, p50_ms: float, p90_ms: float, load: int, actual_ms: float, now: float, expected_ms: float | None = None
    ) -> Calibration:
        """With one more task that took `actual_ms` where those quantiles had been claimed. One that comes late, stamped
        before the last, counts as if it were of that time.

        `expected_ms`: the median as it was corrected when the task was given away. All tasks that were running when a
        machine stood still are late by that one event: together they surprise no more than one of them.
        """
        actual_ms = max(actual_ms, 1e-3)
        error = math.log(actual_ms / p50_ms)
        if expected_ms is not None:
            expected = math.log(expected_ms / p50_ms)
            error = min(max(error, expected - _SURPRISE), expected + _SURPRISE)
        median, high = self.correct(p50_ms, p90_ms, load, now)
        share = 1 / (self.count + 1)
        loss = (pinball(0.5, median, actual_ms) + pinball(0.9, high, actual_ms)) / 2
        claim = (pinball(0.5, p50_ms, actual_ms) + pinball(0.9, max(p90_ms, p50_ms), actual_ms)) / 2
        kept = self._kept(now)
        loads = [cell.faded(kept) for cell in self.loads]
        loads[load] = loads[load].after(error)
        return Calibration(
            at=max(now, self.at),
            count=self.count + 1,
            overall=self.overall.faded(kept).after(error),
            loads=tuple(loads),
            covered=self.covered + (actual_ms <= high),
            covered_claim=self.covered_claim + (actual_ms <= p90_ms),
            loss=self.loss + share * (loss - self.loss),
            loss_claim=self.loss_claim + share * (claim - self.loss_claim),
        )

    @property
    def coverage(self) -> float | None:
        """Share of tasks within the corrected 90th percentile; near 0.9 if it is right. None before the first."""
        return self.covered / self.count if self.count else None

    def bias(self, now: float) -> float:
        """Factor by which tasks take longer than the claimed median, as far as that is still known."""
        return math.exp(self.overall.bias * self._kept(now))

    def _kept(self, now: float) -> float:
        return math.pow(0.5, max(now - self.at - FRESH_S, 0.0) / HALF_LIFE_S)
