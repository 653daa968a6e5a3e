"""DeadLetter: a message that could not be parsed or handled, whole, with the reason."""

from __future__ import annotations

from pydantic import Field

from .base import Message

__all__ = ["DeadLetter"]


class DeadLetter(Message):
    """What arrived, where, and why it was given up."""

    subject: str
    reason: str
    headers: dict[str, str] = Field(default_factory=dict)
    body: bytes = Field(description="The message as it came, base64 in JSON.")
    cut_from: int | None = Field(default=None, ge=1, description="Bytes it had, if the body is only its beginning.")
