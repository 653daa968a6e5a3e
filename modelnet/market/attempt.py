"""One attempt at a task: who has it, since when, and what it has earned. Pure: times are handed in."""

from __future__ import annotations

from dataclasses import dataclass

from modelnet.messages import Awarded, Settlement, Task

from .scoring import Terms, part_payment
from .settlement import settle

__all__ = ["Attempt"]


@dataclass(slots=True)
class Attempt:
    """An award, what is known of the work on it, and what it has earned."""

    number: int
    worker: str
    owner: str
    price: int
    auction: str | None
    contract: str | None
    continues: bool
    awarded_at: float | None = None
    """None: not known, as for one that an older negotiator gave away."""
    asked: bool = False
    """Whether its worker was asked if it has it, as it did not answer the award."""
    confirmed_at: float | None = None
    claimed_ms: tuple[float, float] | None = None
    """Its bid's median and 90th percentile; None for an attempt that another negotiator gave away."""
    usual_price: int | None = None
    load: int = 0
    expected_ms: float | None = None
    """That median as corrected by what was known of its worker then."""
    median_ms: float | None = None
    """How long its work was expected to run: what a part of its price is reckoned by."""
    wait_s: float = 0.0
    """How long it was expected to wait for a slot."""
    began_at: float | None = None
    """When its run began, as far as is known, or is expected to; None before it is confirmed."""
    answered: bool = False
    """Whether its output is there, and good."""
    deposit: int = 0
    """Held of its owner's: `price` is then the most that it is paid."""
    second_score: float = 0.0
    settlement: Settlement | None = None
    """What became of it, if that sets its price."""

    def overdue(self, now: float) -> bool:
        """Whether it has had the 90th percentile that its bid claimed."""
        if self.claimed_ms is None or self.awarded_at is None:
            return False
        return now - self.awarded_at > self.claimed_ms[1] / 1e3

    @classmethod
    def of(cls, entry: Awarded, submitted_at: float) -> Attempt:
        """One that another negotiator gave away, as far as the journal tells."""
        return cls(
            entry.attempt,
            entry.worker,
            entry.owner,
            entry.price,
            entry.auction,
            entry.contract,
            entry.continues,
            awarded_at=None if entry.after_ms is None else submitted_at + entry.after_ms / 1e3,
            median_ms=entry.median_ms,
            deposit=entry.deposit,
            second_score=entry.second_score or 0.0,
        )

    def must_have_begun(self, now: float) -> None:
        """Its worker runs it, or did: where nobody knows since when, since its award."""
        if self.began_at is None:
            self.began_at = now if self.awarded_at is None else self.awarded_at

    def part(self, run_ms: float) -> int | None:
        """What it has earned if it is stopped now; None if it was never confirmed."""
        if self.began_at is None or self.median_ms is None:
            return None
        if self.answered:
            return self.settlement.price if self.settlement else self.price
        # What a deposit can add is for answers.
        return part_payment(max(self.price - self.deposit, 0), run_ms=run_ms, median_ms=self.median_ms)

    def settled(self, task: Task, deadline: float, *, passed: bool, now: float) -> Settlement | None:
        """What it is paid by what became of it; None for one without a deposit."""
        if not self.deposit or self.auction is None or self.awarded_at is None:
            return None
        return settle(
            Terms.of(task, deadline - self.awarded_at),
            attempt=self.number,
            auction=self.auction,
            worker=self.worker,
            owner=self.owner,
            deposit=self.deposit,
            most=self.price,
            second_score=self.second_score,
            passed=passed,
            time_ms=max(min(now, deadline) - self.awarded_at, 0.0) * 1e3,
        )
