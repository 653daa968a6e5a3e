"""Conversations of several turns behind a few system prompts that they share: what bench/affinity.py asks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

__all__ = ["Conversation", "Trace", "conversations", "words"]

_WORDS = "the quick brown fox jumps over a lazy dog and some cat sat on that mat".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Trace:
    """How much is asked."""

    conversations: int
    turns: int
    systems: int
    """Different system prompts."""
    system_bytes: int
    turn_bytes: int
    """Of what a user says in one turn, on average."""
    answer_tokens: int
    arrivals_per_s: float
    """Conversations that begin, in a second."""
    think_s: float
    """From an answer to the next turn, on average."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one user will say, and when."""

    number: int
    at: float
    system: int
    system_text: str
    says: tuple[str, ...]
    thinks: tuple[float, ...]
    """Seconds before each turn but the first."""

    def messages(self, answers: list[str]) -> list[dict[str, Any]]:
        """The conversation after so many answers, the user's next words last."""
        found = [{"role": "system", "content": self.system_text}]
        for said, answer in zip(self.says, answers, strict=False):
            found += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        return [*found, {"role": "user", "content": self.says[len(answers)]}]


def words(chance: random.Random, size: int) -> str:
    """Text of about so many bytes."""
    out, length = [], 0
    while length < size:
        out.append(chance.choice(_WORDS))
        length += len(out[-1]) + 1
    return " ".join(out)


def conversations(trace: Trace, seed: int, salt: str) -> list[Conversation]:
    """The same for the same seed, but for `salt`, with which every text begins: so that a run finds nothing of the last
    in a cache."""
    chance = random.Random(seed)
    systems = [f"{salt} {n} " + words(chance, trace.system_bytes) for n in range(trace.systems)]
    found, at = [], 0.0
    for number in range(trace.conversations):
        at += chance.expovariate(trace.arrivals_per_s)
        system = min(int(chance.paretovariate(1.2)) - 1, trace.systems - 1)
        says = tuple(
            words(chance, max(int(trace.turn_bytes * chance.lognormvariate(-0.125, 0.5)), 8))
            for _ in range(trace.turns)
        )
        thinks = tuple(chance.expovariate(1 / trace.think_s) for _ in range(trace.turns - 1))
        found.append(Conversation(number, at, system, systems[system], says, thinks))
    return found
