"""One example of a task, and the split that an item belongs to."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Example:
    """A task and its answer."""

    text: str
    """What the model reads."""
    answer: str
    """What the model is to write: digits, zero-padded to a fixed width."""
    value: str
    """What the network returns for it, after the output parser of modelnet.json."""
    form: str
    """The group under which its accuracy is reported."""


class Split(StrEnum):
    """What an item may be used for."""

    TRAIN = "train"
    DEV = "dev"
    """Held out, for choosing between recipes."""
    TEST = "test"
    """Held out, for the reported numbers only."""


def split_of(item: str, percent: int) -> Split:
    """The split of an item: `percent` of all for each held-out set, the rest for training; by the item's digest."""
    bucket = int.from_bytes(hashlib.sha256(item.encode()).digest()[:4], "big") % 100
    if bucket < percent:
        return Split.TEST
    return Split.DEV if bucket < 2 * percent else Split.TRAIN
