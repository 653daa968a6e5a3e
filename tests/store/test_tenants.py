"""Tenants on a real Redis: keys, and what may be asked for in a minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from modelnet.bus.embedded import EmbeddedRedis
from modelnet.errors import TenantExists, TenantsAway, UnknownTenant, UsageError
from modelnet.store.tenants import Allowance, Holder, Tenants
from tests.store.clock import Clock

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture(loop_scope="module")
async def tenants(redis_server: EmbeddedRedis, clock: Clock) -> AsyncIterator[Tenants]:
    """None yet."""
    async with Redis.from_url(redis_server.url) as redis:
        await redis.flushall()
    async with Tenants(redis_server.url, clock=clock) as tenants:
        yield tenants


async def test_a_key_is_found_and_nothing_in_redis_says_it(tenants: Tenants, redis_server: EmbeddedRedis) -> None:
    await tenants.create("acme")
    id, key = await tenants.add_key("acme", "laptop")
    assert await tenants.holder(key) == Holder("acme", Allowance())
    assert await tenants.holder(key[:-1]) is None
    async with Redis.from_url(redis_server.url) as redis:
        stored = b"".join([await redis.dump(name) or b"" for name in await redis.keys()])
    assert key.encode() not in stored
    assert key.removeprefix("mn-").encode() not in stored
    shown = await tenants.tenant("acme")
    assert [(one.id, one.label) for one in shown.keys] == [(id, "laptop")]


async def test_a_key_ends_alone_and_all_end_with_their_tenant(tenants: Tenants) -> None:
    await tenants.create("acme")
    (first, one), (_, two), (_, three) = [await tenants.add_key("acme") for _ in range(3)]
    await tenants.drop_key("acme", first)
    assert await tenants.holder(one) is None
    assert await tenants.holder(two) is not None
    await tenants.revoke("acme")
    assert [await tenants.holder(key) for key in (two, three)] == [None, None]
    assert (await tenants.tenant("acme")).revoked_at is not None
    _, again = await tenants.add_key("acme")
    assert await tenants.holder(again) is not None
    assert (await tenants.tenant("acme")).revoked_at is None


async def test_what_is_not_there_is_said(tenants: Tenants) -> None:
    await tenants.create("acme")
    with pytest.raises(TenantExists):
        await tenants.create("acme")
    with pytest.raises(UnknownTenant):
        await tenants.add_key("nobody")
    with pytest.raises(UnknownTenant):
        await tenants.drop_key("acme", "00000000")
    with pytest.raises(UnknownTenant):
        await tenants.tenant("nobody")
    with pytest.raises(UsageError):
        await tenants.limit("acme", "tokens", -1)
    assert [one.name for one in await tenants.all()] == ["acme"]


async def test_requests_are_let_in_until_a_minutes_are_used_and_then_evenly(tenants: Tenants, clock: Clock) -> None:
    await tenants.create("acme")
    await tenants.limit("acme", "requests", 60)
    admitted = await asyncio.gather(*(tenants.admit("acme") for _ in range(100)))
    assert sum(one.wait_s == 0 for one in admitted) == 60
    refused = await tenants.admit("acme")
    assert refused.wait_s == pytest.approx(1.0)
    assert refused.requests is not None
    assert (refused.requests.limit, refused.requests.left) == (60, 0)
    clock.now += 2
    assert [(await tenants.admit("acme")).wait_s == 0 for _ in range(3)] == [True, True, False]


async def test_tokens_are_owed_when_an_answer_was_longer_than_was_left(tenants: Tenants, clock: Clock) -> None:
    await tenants.create("acme")
    await tenants.limit("acme", "tokens", 600)
    assert (await tenants.admit("acme")).wait_s == 0
    await tenants.used("acme", 900)
    refused = await tenants.admit("acme")
    assert refused.wait_s == pytest.approx(30.1)
    clock.now += 31
    assert (await tenants.admit("acme")).wait_s == 0
    await tenants.limit("acme", "tokens", None)
    assert await tenants.admit("acme") == type(refused)(0.0, None, None)


async def test_with_redis_away_it_is_said() -> None:
    async with Tenants("redis://127.0.0.1:1/0") as tenants:
        with pytest.raises(TenantsAway, match=r"127\.0\.0\.1:1"):
            await tenants.holder("mn-x")
