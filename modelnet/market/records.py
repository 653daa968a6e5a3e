"""Track records: what one negotiator remembers of workers, by capability. Bounded; times are handed in."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, replace

from .calibration import LOADS, Calibration, Cell
from .reputation import Estimate, Reputation, Source, outcome_weight

__all__ = ["Outcome", "TrackRecord", "TrackRecords"]

MOST = 100_000
"""Pairs of worker and capability that are remembered; the longest unheard of goes first."""


_HUGE = 1e12
_FACTORS = 700.0
"""Logarithm of the largest factor by which a claim of time is off."""


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
        calibration = self.calibration
        if outcome.claimed_ms is not None:
            told = (*outcome.claimed_ms, outcome.load, outcome.actual_ms)
            calibration = calibration.after(*told, now, outcome.expected_ms)
        return TrackRecord(self.reputation.after(outcome.passed, outcome.weight, now), calibration)

    def on_clock(self, ahead_s: float, now: float) -> TrackRecord:
        """The same by a clock that is so far ahead and says `now`; nothing was seen after that."""
        return TrackRecord(
            replace(self.reputation, at=min(self.reputation.at + ahead_s, now)),
            replace(self.calibration, at=min(self.calibration.at + ahead_s, now)),
        )

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
            record = cls(Reputation(**kept["reputation"]), Calibration(**(calibration | cells)))
            if record.is_sound():
                return record
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no track record: {error}") from None
        raise ValueError("no track record: a number is out of range")

    def is_sound(self) -> bool:
        """Whether all numbers are such as outcomes lead to: what was kept elsewhere may be anything."""
        known, times = self.reputation, self.calibration
        cells = (times.overall, *times.loads)
        counts = (known.good, known.bad, known.passed, known.failed, times.count, times.covered, times.covered_claim)
        return (
            len(times.loads) == LOADS
            and all(0 <= count <= _HUGE for count in (*counts, *(cell.count for cell in cells)))
            and all(abs(time) <= _HUGE for time in (known.at, times.at))
            and all(0 <= loss <= _HUGE for loss in (times.loss, times.loss_claim))
            and all(abs(cell.bias) <= _FACTORS and 0 <= cell.variance <= _FACTORS**2 for cell in cells)
        )


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
