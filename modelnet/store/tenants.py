"""Tenants of the gateway in Redis: their keys, and how much they may ask for in a minute. Scripts: `tenants.lua`.

A key is 256 random bits, and kept as its SHA-256. Slow or salted hashes protect secrets that people choose, which can
be guessed; here there is nothing to guess, and a hash that is looked up for each request must be quick. What a tenant
may spend is the ledger's.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Literal

from modelnet.errors import TenantExists, TenantsAway, UnknownTenant, UsageError

from .connection import ScriptedStore

__all__ = ["KEY_PREFIX", "Admission", "Allowance", "Bucket", "Holder", "Key", "Tenant", "Tenants"]

KEY_PREFIX = "mn-"
"""What every key begins with, so that one that was published by mistake can be searched for."""

Kind = Literal["requests", "tokens"]

_PREFIX = "modelnet:{tenants}:"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a tenant may ask for in a minute; None: no limit."""

    requests: int | None = None
    tokens: int | None = None
    """Of prompts and answers together."""

    def __bool__(self) -> bool:
        return self.requests is not None or self.tokens is not None


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a key is."""

    tenant: str
    allowance: Allowance


@dataclass(frozen=True, slots=True)
class Bucket:
    """One of a tenant's limits as it stands."""

    limit: int
    """A minute."""
    left: int
    full_in_s: float


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a request is let in."""

    wait_s: float
    """0: it is. Else it would be after so long."""
    requests: Bucket | None
    tokens: Bucket | None


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without what it says."""

    id: str
    label: str
    created_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as it stands."""

    name: str
    created_at: float
    """Seconds since the epoch."""
    revoked_at: float | None
    allowance: Allowance
    keys: tuple[Key, ...]
    """The oldest first."""


class Tenants(ScriptedStore):
    """A connection to the tenants, made when first used. Every method raises `TenantsAway` while Redis is away."""

    away, is_away = TenantsAway, "the tenants cannot be looked up"
    script, prefix = "tenants.lua", _PREFIX

    # ------------------------------------------------------------------ who they are

    async def create(self, name: str) -> None:
        """Make a tenant. Raises `TenantExists`."""
        if await self._call("create", name) == "exists":
            raise TenantExists(f"there is a tenant {name!r} already")

    async def limit(self, name: str, kind: Kind, most: int | None) -> None:
        """Bound what a tenant may ask for in a minute; None: no bound. Raises `UnknownTenant`."""
        if most is not None and not 0 <= most <= 2**53:
            raise UsageError(f"a limit is between 0 and {2**53}, not {most}")
        self._known(name, await self._call("limit", name, kind, "" if most is None else most))

    async def add_key(self, name: str, label: str = "") -> tuple[str, str]:
        """A new key: its id, and what it says, which nobody can tell again. Raises `UnknownTenant`."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        while True:
            id = secrets.token_hex(4)
            done = await self._call("add_key", name, id, digest_of_key(key), label)
            if done != "exists":
                self._known(name, done)
                return id, key

    async def drop_key(self, name: str, id: str) -> None:
        """End a key. Raises `UnknownTenant` if there is none of this id."""
        if await self._call("drop_key", name, id) == "unknown":
            raise UnknownTenant(f"{name} has no key {id!r}: `modelnet tenant show {name}` lists them")

    async def revoke(self, name: str) -> None:
        """End all of a tenant's keys. Raises `UnknownTenant`."""
        self._known(name, await self._call("revoke", name))

    async def tenant(self, name: str) -> Tenant:
        """One tenant. Raises `UnknownTenant`."""
        found = [one for one in await self._read_all([name]) if one is not None]
        if not found:
            raise self._unknown(name)
        return found[0]

    async def all(self) -> list[Tenant]:
        """All of them, by name; those that were revoked too."""
        names = sorted(await self._read(self._redis.smembers(f"{_PREFIX}names")))
        return [one for one in await self._read_all(names) if one is not None]

    async def _read_all(self, names: list[str]) -> list[Tenant | None]:
        pipeline = self._redis.pipeline(transaction=True)
        for name in names:
            pipeline.hgetall(f"{_PREFIX}tenant:{name}")
            pipeline.hgetall(f"{_PREFIX}keys:{name}")
        found = await self._read(pipeline.execute()) if names else []
        return [
            _tenant(name, *pair) for name, pair in zip(names, zip(found[::2], found[1::2], strict=True), strict=True)
        ]

    # ------------------------------------------------------------------ what they ask for

    async def holder(self, key: str) -> Holder | None:
        """Whose a key is; None if it is nobody's, or no more."""
        found = await self._call("find", digest_of_key(key))
        if not found:
            return None
        name, requests, tokens = found
        return Holder(name, Allowance(_number(requests), _number(tokens)))

    async def admit(self, name: str) -> Admission:
        """Count a request, if the tenant may make one now."""
        wait_ms, *buckets = await self._call("admit", name)
        requests, tokens = (
            None if limit == "" else Bucket(limit, left, full_in_ms / 1e3)
            for limit, left, full_in_ms in (buckets[:3], buckets[3:])
        )
        return Admission(wait_ms / 1e3, requests, tokens)

    async def used(self, name: str, tokens: int) -> None:
        """Count tokens. How many there will be is not known before: a tenant may so owe some, and waits for longer."""
        await self._call("used", name, tokens)

    def _known(self, name: str, done: str) -> None:
        if done == "unknown":
            raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownTenant:
        return UnknownTenant(f"no tenant {name!r}: `modelnet tenant create {name}` makes one")


def digest_of_key(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _number(text: str | int) -> int | None:
    return None if text == "" else int(text)


def _tenant(name: str, fields: dict[str, str], keys: dict[str, str]) -> Tenant | None:
    if not fields:
        return None
    said = [(id, json.loads(one)) for id, one in keys.items()]
    revoked = fields.get("revoked")
    return Tenant(
        name=name,
        created_at=int(fields["created"]) / 1e3,
        revoked_at=None if revoked is None else int(revoked) / 1e3,
        allowance=Allowance(_number(fields.get("requests", "")), _number(fields.get("tokens", ""))),
        keys=tuple(
            sorted((Key(id, one["label"], one["created"] / 1e3) for id, one in said), key=lambda k: k.created_at)
        ),
    )
