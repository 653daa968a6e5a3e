"""Metering: whether a tenant's tasks are charged, as negotiators must know before they ask the ledger for anything."""

from __future__ import annotations

from pydantic import Field

from .base import Identifier, Message

__all__ = ["Metering"]


class Metering(Message):
    """Kept in the catalogue under `metering.<tenant>`, a copy of what the ledger says; a tenant without one is free."""

    tenant: Identifier
    metered: bool = Field(description="Whether the tenant's money must be held before a task of it is awarded.")
