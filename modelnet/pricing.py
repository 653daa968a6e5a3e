"""Prices by the token, from what bidders learn of an input: how large it is, and how long the answer may be. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelnet.contracts import sketch
from modelnet.messages import Features

__all__ = ["TokenPrice"]

BYTES_PER_TOKEN = 3
"""Of a prompt, or of an input whose contract marks none: a token of English is about four bytes, of most other scripts
two or three."""


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Micro-credits for a task, rounded up. What an answer did use is not known before it: the most that it may use is
    charged."""

    per_task: float = 0.0
    per_input_token: float = 0.0
    per_output_token: float = 0.0
    default_tokens: int = 256
    """Of an answer for which no most was said."""

    def __call__(self, features: Features) -> int:
        """The price for an input of these features. Raises `ValueError` if they don't tell."""
        answers = self._answer_tokens(features) if self.per_output_token else 0
        size = features.input_bytes if features.prompt_bytes is None else features.prompt_bytes
        tokens = -(-size // BYTES_PER_TOKEN)
        return math.ceil(self.per_task + tokens * self.per_input_token + answers * self.per_output_token)

    def _answer_tokens(self, features: Features) -> int:
        if features.shape is None:
            raise ValueError("the input is too large for its shape to be told")
        value = sketch(features.shape)
        return int(value.get("max_tokens") or self.default_tokens) * int(value.get("n") or 1)
