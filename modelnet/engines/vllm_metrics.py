"""What a `vllm serve` that others use as well has to do beside what we gave it: from its /metrics. Pure."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

__all__ = ["END_S", "Neighbours", "Others"]

FRESH_S = 1.0
"""A reading is taken again after this long."""
OLD_S = 3.0
"""And means nothing any more after this long."""
END_S = 2.0
"""So long a server may count a request that has ended, as one whose client went away; and a reading takes its time."""


@dataclass(frozen=True, slots=True)
class Others:
    """Requests of others, and the share of the cache that is used by all."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0


class Neighbours:
    """The last reading."""

    def __init__(self) -> None:
        self._others, self._at = Others(), float("-inf")

    def stale(self, now: float) -> bool:
        """Whether it is time for another reading."""
        return now - self._at > FRESH_S

    def at(self, now: float) -> Others:
        """What is known at this time."""
        return self._others if now - self._at <= OLD_S else Others()

    def learn(self, text: str, ours: int, now: float) -> None:
        """Take a reading in. `ours`: how many of the server's requests may be ours."""
        running, waiting, usage = (
            _total(text, name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        )
        others = max(int(running + waiting) - ours, 0)
        queued = min(int(waiting), others)
        self._others, self._at = Others(others - queued, queued, min(usage, 1.0)), now


def _total(text: str, name: str) -> float:
    """The sum of one of vLLM's gauges over its engines."""
    marker, total = f"vllm:{name}{{", 0.0
    for line in text.splitlines():
        if line.startswith(marker):
            with contextlib.suppress(ValueError):
                total += float(line.rpartition(" ")[2])
    return total
