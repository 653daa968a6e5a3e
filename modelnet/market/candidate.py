"""A worker that could take a task, with what is known of it. Pure: times are handed in."""

from __future__ import annotations

from dataclasses import dataclass

from modelnet.messages import Bid

from .calibration import Calibration
from .scoring import Offered

__all__ = ["Candidate"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could take a task."""

    worker: str
    owner: str
    contract: str
    quality: float
    """The negotiator's estimate."""
    model: str | None = None
    continues: bool = False
    """Whether it can go on from another attempt's text, and another from its own."""
    mean_quality: float | None = None
    """Mean of the estimate whose lower bound `quality` is; None: the bound is all that is known."""
    cases: float = 0.0
    """Decayed outcomes behind it."""
    load: int = 0
    """Class of its load, as of its last beat."""
    calibration: Calibration | None = None
    """Of its claims of time; None: they are taken as they are."""

    def offering(self, bid: Bid, now: float) -> Offered:
        """A bid of this worker, with what is known of it now."""
        times_ms = None
        if self.calibration is not None:
            times_ms = self.calibration.correct(bid.p50_ms, bid.p90_ms, self.load, now)
        return Offered(bid, self.owner, self.quality, self.mean_quality, self.cases, times_ms)
