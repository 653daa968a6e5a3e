"""PrefixSecret: what negotiators make the keys of prefix hashes from."""

from __future__ import annotations

from pydantic import Field

from .base import Message

__all__ = ["PrefixSecret"]


class PrefixSecret(Message):
    """Kept in the catalogue under `secret.prefix`, by the first negotiator there was. Nobody else need read it: who has
    it can try out what prompts a BidRequest's hashes may be of."""

    secret: bytes = Field(description="32 random bytes, in URL-safe base64.", repr=False)
