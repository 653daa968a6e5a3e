"""Keys: whose a request is, without asking Redis each time, and for a while even while it is away."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from modelnet.errors import TenantsAway
from modelnet.store.tenants import KEY_PREFIX, Holder, Tenants

from .refusal import Refusal

__all__ = ["Guest", "Keys"]

log = structlog.get_logger("gateway")

FRESH_S = 5.0
"""A key that was revoked is served for so long at most, and so soon a new limit counts."""
STALE_S = 60.0
"""While Redis is away, keys that it knew are served for so long."""
KNOWN = 10_000
"""So many keys are remembered, wrong ones too: who tries many does not make this grow."""


@dataclass(frozen=True, slots=True)
class Guest:
    """Who makes a request."""

    tenant: str
    keys: Keys | None = None
    counted: bool = False

    async def used(self, tokens: int) -> None:
        """Count tokens against the tenant's limit, if it has one."""
        if self.counted and self.keys is not None and tokens:
            await self.keys.used(self.tenant, tokens)


@dataclass(slots=True)
class _Answer:
    at: float
    holder: Holder | None


class Keys:
    """What Redis said of keys lately."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._known: OrderedDict[str, _Answer] = OrderedDict()

    async def close(self) -> None:
        """Let go of Redis."""
        await self._tenants.close()

    async def guest(self, key: str) -> tuple[Guest, dict[str, str]]:
        """Who has this key, and headers that say what is left of its limits.

        Raises `Refusal`: 401 for a wrong key, 429 above a limit, 503 while it cannot be told.
        """
        if not key.startswith(KEY_PREFIX):
            raise _wrong()
        holder = await self._holder(key)
        if holder is None:
            raise _wrong()
        if not holder.allowance:
            return Guest(holder.tenant), {}
        try:
            admission = await self._tenants.admit(holder.tenant)
        except TenantsAway as error:  # its key was known a moment ago; what it asks for now is not counted
            log.warning("request_not_counted", tenant=holder.tenant, error=error.message)
            return Guest(holder.tenant), {}
        headers = dict[str, str]()
        for kind, bucket in (("requests", admission.requests), ("tokens", admission.tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(bucket.left)
                headers[f"x-ratelimit-reset-{kind}"] = f"{bucket.full_in_s:.3f}s"
        if admission.wait_s > 0:
            out = admission.requests is not None and admission.requests.left < 1
            kind = "requests" if out else "tokens"
            bucket = admission.requests if out else admission.tokens
            assert bucket is not None
            message = f"{holder.tenant} may ask for {bucket.limit} {kind} a minute: wait {admission.wait_s:.1f} s"
            raise Refusal(429, "rate_limit_exceeded", message, retry_after_s=admission.wait_s, headers=headers)
        return Guest(holder.tenant, self, counted=holder.allowance.tokens is not None), headers

    async def used(self, tenant: str, tokens: int) -> None:
        """Count tokens."""
        try:
            await self._tenants.used(tenant, tokens)
        except TenantsAway as error:
            log.warning("tokens_not_counted", tenant=tenant, tokens=tokens, error=error.message)

    async def _holder(self, key: str) -> Holder | None:
        now, known = time.monotonic(), self._known.get(key)
        if known is not None and now - known.at < FRESH_S:
            return known.holder
        try:
            holder = await self._tenants.holder(key)
        except TenantsAway as error:
            if known is not None and known.holder is not None and now - known.at < STALE_S:
                return known.holder
            raise Refusal(503, error.wire_code, "keys cannot be looked up now: try again", retry_after_s=1) from None
        self._known[key] = _Answer(now, holder)
        self._known.move_to_end(key)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return holder


def _wrong() -> Refusal:
    return Refusal(401, "invalid_api_key", "this is no key of this gateway, or no more: Authorization: Bearer KEY")
