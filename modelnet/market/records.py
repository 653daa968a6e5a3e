"""Track records: what one negotiator remembers of workers, by capability. Bounded; times are handed in."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, replace

from .calibration import Calibration, Cell
from .reputation import Estimate, Reputation, Source, outcome_weight

__all__ = ["Outcome", "TrackRecord", "TrackRecords"]

MOST = 100_000
"""Pairs of worker and capability that are remembered; the longest unheard of goes first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended, as verified."""

    worker: str
    capability: str
    task: str
    attempt: int
    source: Source
    passed: bool
    price: int
    """What it was awarded for, micro-credits."""
    usual_price: int | None = None
    """The capability's reference price without the worker's own history."""
    claimed_ms: tuple[float, float] | None = None
    """Its bid's median and 90th percentile, where the time says something about them."""
    actual_ms: float = 0.0
    load: int = 0
    """Class of its load when it bid."""
    tenant: str = ""
    """Whose task it was: ids are unique for each tenant."""
    expected_ms: float | None = None
    """The median of its time as corrected when it was awarded; None: not known."""

    @property
    def weight(self) -> float:
        """What it counts in the worker's reputation."""
        return outcome_weight(self.source, self.passed, self.price, self.usual_price)


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """One worker's record in one capability."""

    reputation: Reputation = field(default_factory=Reputation)
    calibration: Calibration = field(default_factory=Calibration)

    def after(self, outcome: Outcome, now: float) -> TrackRecord:
        """With one more outcome."""
        record = replace(self, reputation=self.reputation.after(outcome.passed, outcome.weight, now))
        if outcome.claimed_ms is None:
            return record
        told = (*outcome.claimed_ms, outcome.load, outcome.actual_ms)
        learned = self.calibration.after(*told, now, outcome.expected_ms)
        return replace(record, calibration=learned)

    def encode(self) -> str:
        """As JSON, to be kept elsewhere."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def decode(cls, text: str | bytes) -> TrackRecord:
        """The record in `text`; raises `ValueError`."""
        try:
            kept = json.loads(text)
            calibration = kept["calibration"]
            cells = {"overall": Cell(**calibration["overall"]), "loads": tuple(Cell(**c) for c in calibration["loads"])}
            return cls(Reputation(**kept["reputation"]), Calibration(**(calibration | cells)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no track record: {error}") from None


_UNKNOWN = TrackRecord()


class TrackRecords:
    """Records of workers, changed by outcomes alone."""

    def __init__(self, most: int = MOST) -> None:
        self._records: OrderedDict[tuple[str, str], TrackRecord] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._records)

    def of(self, worker: str, capability: str) -> TrackRecord:
        """A worker's record, an empty one if nothing is known."""
        return self._records.get((worker, capability), _UNKNOWN)

    def quality(self, worker: str, capability: str, claim: float | None, now: float) -> Estimate:
        """What its answers are expected to be worth, given what it claims."""
        return self.of(worker, capability).reputation.estimate(claim, now)

    def times_ms(
        self, worker: str, capability: str, p50_ms: float, p90_ms: float, load: int, now: float
    ) -> tuple[float, float]:
        """The median and 90th percentile to reckon with, from those that it claims."""
        return self.of(worker, capability).calibration.correct(p50_ms, p90_ms, load, now)

    def learn(self, outcome: Outcome, now: float) -> TrackRecord:
        """Note an outcome; the record as it then is."""
        record = self.of(outcome.worker, outcome.capability).after(outcome, now)
        self.put(outcome.worker, outcome.capability, record)
        return record

    def put(self, worker: str, capability: str, record: TrackRecord) -> None:
        """Take over a record that is kept elsewhere."""
        self._records[worker, capability] = record
        self._records.move_to_end((worker, capability))
        if len(self._records) > self._most:
            self._records.popitem(last=False)
