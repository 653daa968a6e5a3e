"""What a server lets one do in a minute: configured limits, and what its answers say of its own. Pure: times handed in.

A provider counts requests and tokens; who goes over is answered 429, for everybody who shares the key. So what was sent
in the last minute is kept here, and so is until when the server wants to be left alone.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RateLimits", "Sent", "duration_s"]

MINUTE_S = 60.0
PATIENCE_S = 1.0
"""How long a server is left alone that says 429 and not for how long; twice that after each further one."""
LONGEST_S = 60.0
"""The longest such guess. What a server says itself may be longer."""
_NUMBER = re.compile(r"\d{1,12}(?:\.\d+)?")
_PART = re.compile(r"(\d{1,12}(?:\.\d+)?)(ms|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}


def duration_s(text: str) -> float | None:
    """Seconds in `6m0s`, `20ms`, `1.5`, as `x-ratelimit-reset-*` headers have them; None for anything else."""
    text = text.strip().lower()
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def retry_after_s(text: str, wall: float) -> float | None:
    """Seconds in a Retry-After header: a number, or a date. `wall`: the time now, since the epoch."""
    if (seconds := duration_s(text)) is not None:
        return seconds
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - wall, 0.0)
    except ValueError:
        return None


@dataclass(slots=True)
class Sent:
    """A request that counts towards a minute."""

    at: float
    tokens: int
    """What it may use; what it has used, once that is known."""


class RateLimits:
    """Whether another request may be sent. Times are of a monotonic clock, in seconds."""

    def __init__(self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> None:
        """None: as many as the server takes."""
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._sent: deque[Sent] = deque()
        self._until = 0.0
        self._refusals = 0
        self._left: tuple[int, float] | None = None
        """Tokens that the server said are left, and until when that holds."""

    def wait_s(self, tokens: int, now: float) -> float:
        """Seconds until a request of so many tokens, prompt and answer, may be sent; 0 for now.

        One that is larger than a whole minute's tokens may be sent once the minute is empty.
        """
        self._forget(now)
        wait = max(self._until - now, 0.0)
        if self._requests is not None and len(self._sent) >= self._requests:
            wait = max(wait, self._sent[-self._requests].at + MINUTE_S - now)
        if self._tokens is not None:
            used = sum(one.tokens for one in self._sent)
            for one in self._sent:
                if used + tokens <= self._tokens:
                    break
                used -= one.tokens
                wait = max(wait, one.at + MINUTE_S - now)
        if self._left is not None and self._left[0] < tokens:
            wait = max(wait, self._left[1] - now)
        return wait

    def send(self, tokens: int, now: float) -> Sent:
        """Note a request that goes out now, and what it may use. Correct its `tokens` once they are known."""
        sent = Sent(now, tokens)
        self._sent.append(sent)
        if self._left is not None:
            self._left = self._left[0] - tokens, self._left[1]
        return sent

    def answered(self, status: int, headers: Mapping[str, str], now: float, wall: float | None = None) -> None:
        """Learn from an answer. `headers` by lower-case name; `wall`: the time since the epoch, if not this one."""
        self._forget(now)
        self._left = self._remaining(headers, now) or self._left
        out_of_requests = self._spent(headers, "requests")
        if out_of_requests is not None:
            self._until = max(self._until, now + out_of_requests)
        if status not in (429, 503):
            self._refusals = 0
            return
        told = retry_after_s(headers.get("retry-after", ""), time.time() if wall is None else wall)
        if told is None:
            told = self._spent(headers, "tokens")
        if told is None:
            told = min(PATIENCE_S * 2**self._refusals, LONGEST_S)
        self._refusals += 1
        self._until = max(self._until, now + told)

    def _forget(self, now: float) -> None:
        while self._sent and self._sent[0].at <= now - MINUTE_S:
            self._sent.popleft()
        if self._left is not None and self._left[1] <= now:
            self._left = None

    @staticmethod
    def _remaining(headers: Mapping[str, str], now: float) -> tuple[int, float] | None:
        left = duration_s(headers.get("x-ratelimit-remaining-tokens", ""))
        reset = duration_s(headers.get("x-ratelimit-reset-tokens", ""))
        return None if left is None or reset is None else (int(left), now + reset)

    @staticmethod
    def _spent(headers: Mapping[str, str], what: str) -> float | None:
        """Seconds until there is more, if nothing is left of it."""
        if duration_s(headers.get(f"x-ratelimit-remaining-{what}", "")) != 0:
            return None
        return duration_s(headers.get(f"x-ratelimit-reset-{what}", ""))
