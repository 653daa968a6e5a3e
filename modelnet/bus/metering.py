"""Who is charged, as the bus knows it: one entry a metered tenant in the catalogue, so that nobody need ask Redis.

The ledger decides; its entries here are copies, put right by every ledger worker. A change reaches a process that
listens at once, and after `refresh` in any case.
"""

from __future__ import annotations

import contextlib

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.errors import ConnectionFailed
from modelnet.messages import Metering

from . import subjects
from .replay import read_all
from .streams import CATALOGUE

__all__ = ["MeteredTenants", "announce_metering"]


async def announce_metering(nc: Client, tenant: str, *, metered: bool) -> None:
    """Tell all negotiators whether a tenant is charged. Raises `ConnectionFailed`."""
    said = Metering(tenant=tenant, metered=metered)
    try:
        await nc.jetstream().publish(subjects.metering(tenant), said.encode(), timeout=5)
    except (nats.errors.Error, nats.js.errors.Error) as error:
        raise ConnectionFailed(f"the catalogue does not take that {tenant} is metered: {error}") from None


class MeteredTenants:
    """The tenants that are charged, `tenant in metered`. Empty until it was refreshed."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._tenants = set[str]()
        self._news: dict[str, bool] | None = None
        """What was heard while the catalogue is read: it is newer than what is read."""

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._tenants

    def __len__(self) -> int:
        return len(self._tenants)

    async def listen(self) -> None:
        """Hear of changes from now on."""
        await self._nc.subscribe(subjects.metering("*"), cb=self._hear)

    async def refresh(self) -> None:
        """Read all anew, unless that is under way. Raises `ConnectionFailed`."""
        if self._news is not None:
            return
        self._news = {}
        try:
            found = dict[str, bool]()
            async for stored in read_all(self._nc, f"KV_{CATALOGUE}", subjects.metering("*")):
                with contextlib.suppress(ValidationError):
                    said = Metering.decode(stored.body)
                    found[said.tenant] = said.metered
            found |= self._news
        finally:
            self._news = None
        self._tenants = {tenant for tenant, metered in found.items() if metered}

    async def _hear(self, msg: Msg) -> None:
        try:
            said = Metering.decode(msg.data)
        except ValidationError:
            return
        if msg.subject != subjects.metering(said.tenant):
            return
        if self._news is not None:
            self._news[said.tenant] = said.metered
        (self._tenants.add if said.metered else self._tenants.discard)(said.tenant)
