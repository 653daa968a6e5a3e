"""Speeds as an engine measures them itself, smoothed. Written by the engine's thread, read by any."""

from dataclasses import dataclass

__all__ = ["Meter"]

# Weight of a new observation: after 20 of them the old mean counts for an eighth.
_WEIGHT = 0.1


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)


@dataclass(slots=True)
class Meter:
    """Exponentially weighted means. Times in seconds."""

    ttft_s: float | None = None
    token_s: float | None = None
    prefill_tokens_per_s: float | None = None
    prefix_hit_rate: float | None = None

    def first_token(self, seconds: float) -> None:
        """From arrival to the first token."""
        self.ttft_s = _blend(self.ttft_s, seconds)

    def token(self, seconds: float) -> None:
        """From one token of a request to its next."""
        self.token_s = _blend(self.token_s, seconds)

    def prefill(self, tokens: int, seconds: float) -> None:
        """Prompt tokens computed, and how long that took."""
        if tokens > 0 and seconds > 0:
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, tokens / seconds)

    def prefix(self, asked: int, found: int) -> None:
        """Prompt tokens looked up in the prefix cache, and those found."""
        if asked > 0:
            self.prefix_hit_rate = _blend(self.prefix_hit_rate, found / asked)

    @property
    def ttft_ms(self) -> float | None:
        return None if self.ttft_s is None else self.ttft_s * 1e3

    @property
    def decode_tokens_per_s(self) -> float | None:
        return 1.0 / self.token_s if self.token_s else None
