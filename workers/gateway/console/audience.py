"""Who looks, and what is kept from them: a tenant sees the network, and of tasks and money its own. Pure."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from workers.gateway.lobby import lobby_of, tenant_of

__all__ = ["NOBODY", "Audience", "audience_of"]

_SALT = secrets.token_bytes(16)
"""Others' tasks have names of this process's making: the same each time, and of no use elsewhere."""


@dataclass(frozen=True, slots=True)
class Audience:
    """Somebody who looks."""

    tenant: str | None
    """None: nobody knows who."""
    operator: bool = False
    """Whether everything is theirs to see: who needs no key is on the gateway's own machine."""

    def may_see(self, tenant: str | None) -> bool:
        """Whether what is this tenant's is theirs to see."""
        return self.operator or (tenant is not None and tenant == self.tenant)

    def frame(self, frame: dict[str, Any]) -> dict[str, Any]:
        """A frame of the view, without what is not for them."""
        if self.operator:
            return frame
        tasks, auctions = frame["tasks"], frame["auctions"]
        notes = {what: f"{what} is away" for what in frame["head"]["notes"]}
        return {
            **frame,
            "head": {**frame["head"], "notes": notes},
            "tasks": {
                "put": [self._task(row) for row in tasks["put"]],
                "gone": [key if self.may_see(key.partition("/")[0]) else _veiled(key) for key in tasks["gone"]],
            },
            "auctions": {"put": [self._auction(row) for row in auctions["put"]], "gone": auctions["gone"]},
            "ledger": None,
        }

    def _task(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.may_see(row["tenant"]):
            return row
        veiled = _veiled(row["key"])
        return {**row, "key": veiled, "task": veiled, "tenant": None, "parent": None, "note": ""}

    def _auction(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.may_see(row["tenant"]):
            return row
        return {**row, "task": _veiled(f"{row['tenant']}/{row['task']}"), "tenant": None}


NOBODY = Audience(None)


def audience_of(request: Request) -> Audience:
    """Who asks, on a path that is not public: where no key is needed, whoever comes without one has the machine."""
    config, tenant = lobby_of(request).config, tenant_of(request)
    return Audience(tenant, operator=not config.gateway_keys_required and tenant == config.tenant)


def _veiled(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=6, key=_SALT).hexdigest()
