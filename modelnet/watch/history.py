"""The market's last ten minutes, by capability: bins of five seconds, each with what was awarded and for how much."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from modelnet.messages import Final, Transcript

__all__ = ["BINS", "BIN_S", "History"]

BIN_S = 5
BINS = 120

_CAPABILITIES = 64
"""So many have a history; one more takes the place of that which was asked for longest ago."""

_TIMES = 64
"""So many tasks' times are kept of each bin: the first, which is as good as any."""


@dataclass(slots=True)
class _Bin:
    start: int
    """Seconds since the epoch, a multiple of `BIN_S`."""
    awarded: int = 0
    unsold: int = 0
    bids: int = 0
    paid: int = 0
    low: int | None = None
    high: int | None = None
    completed: int = 0
    failed: int = 0
    times: list[float] = field(default_factory=list)
    version: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON values, short names: there are thousands of them."""
        return {
            "at": self.start,
            "n": self.awarded,
            "unsold": self.unsold,
            "bids": self.bids,
            "price": round(self.paid / self.awarded, 2) if self.awarded else None,
            "low": self.low,
            "high": self.high,
            "ok": self.completed,
            "bad": self.failed,
            "ms": round(median(self.times), 1) if self.times else None,
        }


class History:
    """Auctions and Finals that were heard, as they fell into bins."""

    def __init__(self) -> None:
        self._bins: dict[str, deque[_Bin]] = {}

    def auction(self, transcript: Transcript, at: float, version: int) -> None:
        """An auction that was held."""
        bin = self._bin(transcript.capability, at, version)
        bin.bids += len(transcript.bids)
        if transcript.winner is None or transcript.price is None:
            bin.unsold += 1
            return
        bin.awarded += 1
        bin.paid += transcript.price
        bin.low = transcript.price if bin.low is None else min(bin.low, transcript.price)
        bin.high = transcript.price if bin.high is None else max(bin.high, transcript.price)

    def ended(self, final: Final, at: float, version: int) -> None:
        """A task that ended."""
        bin = self._bin(final.capability, at, version)
        if final.status == "completed":
            bin.completed += 1
            if len(bin.times) < _TIMES:
                bin.times.append(final.timings.total_ms)
        elif final.status != "cancelled":  # as its tenant wanted it, or as a race does with who came second
            bin.failed += 1

    def since(self, version: int) -> dict[str, list[dict[str, Any]]]:
        """Bins that changed after a version, by capability, the oldest first."""
        found = {
            capability: [one.plain() for one in bins if one.version > version]
            for capability, bins in sorted(self._bins.items())
        }
        return {capability: bins for capability, bins in found.items() if bins}

    def _bin(self, capability: str, at: float, version: int) -> _Bin:
        bins = self._bins.get(capability)
        if bins is None:
            if len(self._bins) >= _CAPABILITIES:
                del self._bins[min(self._bins, key=lambda name: self._bins[name][-1].start)]
            bins = self._bins[capability] = deque(maxlen=BINS)
        start = int(at) // BIN_S * BIN_S
        found = next((one for one in reversed(bins) if one.start <= start), None)
        if found is None or found.start != start:
            place = next((n for n, one in enumerate(bins) if one.start > start), len(bins))
            if place < len(bins) == BINS:  # older than what is kept, or out of order: as good as its neighbour's
                found = bins[place]
            else:
                found = _Bin(start)
                bins.insert(place, found) if place < len(bins) else bins.append(found)
        found.version = version
        return found
