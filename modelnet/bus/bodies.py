"""Inputs and outputs of any size: small ones travel in messages, large ones through the object store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client
from pydantic import ValidationError
from pydantic_core import to_json

from modelnet.errors import MalformedInput
from modelnet.messages import Reference
from modelnet.settings import Settings

from . import objects

__all__ = ["Bodies", "as_value"]

BINARY_LIVE_S = 24 * 3600.0
"""A binary value is kept for the longest deadline there is, and 48 h."""

_VALUE = "$object"


class Bodies:
    """The bounds of one connection's settings, and the store behind them."""

    def __init__(self, nc: Client, config: Settings) -> None:
        self._nc, self._inline, self._limit = nc, config.max_body_bytes, config.max_object_bytes

    async def store(self, value: dict[str, Any], tenant: str, task: str, live_s: float) -> Reference | None:
        """A reference to a value too large for a message; None if it can travel in one.

        Raises `TooLarge`, `BusFull`, `ConnectionFailed`.
        """
        body = to_json(value)
        if len(body) <= self._inline:
            return None
        return await objects.put(self._nc, body, tenant=tenant, task=task, live_s=live_s, limit=self._limit)

    async def fetch(self, reference: Reference) -> dict[str, Any]:
        """The value behind a reference. Raises `ObjectLost`, `TooLarge`, `ConnectionFailed`."""
        return await objects.get_json(self._nc, reference, limit=self._limit)

    async def put(self, data: bytes, tenant: str, media_type: str) -> dict[str, Any]:
        """Store bytes; the JSON value that stands for them in inputs and outputs."""
        reference = await objects.put(
            self._nc,
            data,
            tenant=tenant,
            task="binary",
            live_s=BINARY_LIVE_S,
            limit=self._limit,
            media_type=media_type,
        )
        return as_value(reference)

    async def get(self, value: Mapping[str, Any]) -> bytes:
        """The bytes that a JSON value stands for. Raises `MalformedInput` if it stands for none."""
        try:
            reference = Reference.model_validate_json(await asyncio.to_thread(to_json, value[_VALUE]))
        except (KeyError, TypeError, ValidationError):
            raise MalformedInput(f"this value is no {_VALUE!r}") from None
        return await objects.get(self._nc, reference, limit=self._limit)


def as_value(reference: Reference) -> dict[str, Any]:
    """How a stored object is spelled inside a JSON body."""
    return {_VALUE: reference.to_dict()}
