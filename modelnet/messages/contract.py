"""Contract: the JSON Schemas of a capability's input and output, identified by their digest."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

from pydantic import Field

from .base import Digest, Message, Pattern

__all__ = ["Contract", "digest_of"]


def digest_of(value: Any) -> str:
    """SHA-256 over the value's JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class Contract(Message):
    """What a capability takes and gives, as two JSON Schemas (2020-12).

    A property of the input schema marked `"x-public": true` is shown to every bidder, because the price may depend on
    it (`max_tokens`); all else of the input reaches bidders as its shape only.
    """

    capability: Pattern = Field(description="The capability, or the prefix, it was announced for.")
    description: str = Field(default="", description="One line for people who list capabilities.")
    input: dict[str, Any] = Field(default_factory=dict, description="JSON Schema of the input.")
    output: dict[str, Any] = Field(default_factory=dict, description="JSON Schema of the output.")

    @cached_property
    def digest(self) -> Digest:
        """Identity of the two schemas; the same whoever announces them."""
        return digest_of({"input": self.input, "output": self.output})
