"""The campaign's kinds of tasks: what each is asked, and what each must answer. Pure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["KINDS", "Job", "draw", "echo", "story", "story_words"]

Json = dict[str, Any]

KINDS = {"echo": 55, "sum": 13, "story": 22, "chain": 5, "cancel": 5}
"""How often each kind is drawn. A chain calls another worker; a cancel is a story that its owner cancels."""


@dataclass(frozen=True, slots=True)
class Job:
    """A task to be published."""

    kind: str
    capability: str
    input: Json
    answer: Json
    """The one right output."""
    nominal_ms: float
    """What the handler takes by itself."""
    priority: int
    own_id: bool
    """Whether the publisher names the task, and so may publish it again."""
    late_reader: bool
    """Whether somebody reads the stream again when it has ended."""
    cancel_after: int = 1
    """Characters that the owner of a story reads before it cancels it."""


def echo(text: str) -> Json:
    """What `chaos.echo` answers."""
    return {"text": text[::-1], "digest": hashlib.sha256(text.encode()).hexdigest()}


def story_words(seed: int, words: int) -> Iterator[str]:
    """The words of a story, one by one."""
    for number in range(words):
        yield hashlib.sha256(f"{seed}.{number}".encode()).hexdigest()[: 3 + number % 7] + " "


def story(seed: int, words: int) -> Json:
    """What `chaos.story` answers."""
    return {"text": "".join(story_words(seed, words))}


def draw(chance: random.Random) -> Job:
    """The next task of a steady mix."""
    (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
    priority, own_id, late = chance.randrange(10), chance.random() < 0.3, chance.random() < 0.05

    def job(capability: str, input: Json, answer: Json, nominal_ms: float = 0.0) -> Job:
        return Job(kind, capability, input, answer, nominal_ms, priority, own_id, late)

    match kind:
        case "echo" | "chain":
            text = f"{chance.getrandbits(64):x} äöü " * chance.choice((1, 1, 1, 20, 200))
            return job(f"chaos.{kind}", {"text": text}, echo(text))
        case "sum":
            values = [chance.randrange(10**12) for _ in range(chance.randrange(1, 40))]
            return job("chaos.sum", {"values": values}, {"value": sum(values)})
    seed, words, pace_ms = chance.getrandbits(32), chance.randrange(20, 200), chance.choice((5, 15, 30))
    input = {"seed": seed, "words": words, "pace_ms": pace_ms}
    told = job("chaos.story", input, story(seed, words), float(words * pace_ms))
    return replace(told, cancel_after=chance.choice((1, 80, 300))) if kind == "cancel" else told
