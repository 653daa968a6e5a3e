"""The keys of prefix hashes: one a tenant, the same with every negotiator."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

import structlog

from modelnet.bus.catalogue import Catalogue
from modelnet.errors import ConnectionFailed
from modelnet.prefix import tenant_key

__all__ = ["PrefixKeys"]

log = structlog.get_logger("negotiator")

REMEMBERED = 4096
"""Tenants whose keys are kept."""


class PrefixKeys:
    """Made from the network's secret: the one that was set, else the one in the catalogue."""

    def __init__(self, catalogue: Catalogue, secret: str) -> None:
        self._catalogue, self._given = catalogue, bool(secret)
        self._secret = hashlib.blake2b(secret.encode(), digest_size=32).digest() if secret else os.urandom(32)
        self._key = lru_cache(maxsize=REMEMBERED)(tenant_key)

    async def refresh(self) -> None:
        """Agree with the others. A catalogue that was lost learns the secret that is in use from whoever comes first;
        where it does not answer, hashes match those of fewer requests for a while, and nothing else is amiss."""
        if self._given:
            return
        try:
            self._secret = await self._catalogue.prefix_secret(self._secret)
        except ConnectionFailed as error:
            log.warning("prefix_secret_unknown", reason=error.message)

    def of(self, tenant: str) -> bytes:
        """A tenant's key."""
        return self._key(self._secret, tenant)
