"""Reference: where a body lies that is too large to travel in a message, and what it takes to read it."""

from __future__ import annotations

from pydantic import Field

from .base import Digest, Part

__all__ = ["Reference"]


class Reference(Part):
    """A body in the object store, in encrypted chunks. Whoever holds the reference can read it, nobody else."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}$",
        description="<tenant>.<task>.<object>: its chunks are the messages body.<name>.<n>, n from 1.",
    )
    size: int = Field(ge=0, description="Bytes of the body.")
    chunks: int = Field(ge=0, description="How many chunks it lies in.")
    digest: Digest = Field(description="SHA-256 of the body.")
    key: str = Field(
        pattern=r"^[A-Za-z0-9_-]{43}=$",
        description="Key of XSalsa20-Poly1305 (NaCl secretbox), 32 bytes in URL-safe base64; the nonce of chunk n is "
        "n, 24 bytes, big-endian.",
    )
    media_type: str = Field(default="application/json", max_length=128)
