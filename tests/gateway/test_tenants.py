"""Tenants at the gateway: keys, rates, funds, and Redis away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.metering import announce_metering
from modelnet.store.ledger import Ledger
from modelnet.store.tenants import Tenants
from tests.gateway.actor import Actor
from tests.gateway.doors import Gateway
from tests.network.conftest import store as store  # a Redis of the module's own
from tests.network.stage import Network, Store, fast
from workers.gateway import keys as gateway_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAY = [{"role": "user", "content": "one two three"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(nats_server: EmbeddedNats, store: Store) -> AsyncIterator[Network]:
    """A network with a ledger."""
    async with Network(fast(nats_server.url, redis_url=store.url)) as network:
        await network.negotiator()
        await network.ledger_worker()
        await network.join(Actor(network).worker)
        yield network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(network: Network) -> AsyncIterator[Gateway]:
    """One that asks for keys."""
    async with Gateway(network.config, gateway_keys="required") as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(store: Store) -> AsyncIterator[Tenants]:
    """The tenants."""
    async with Tenants(store.url) as tenants:
        yield tenants


def client(gateway: Gateway, key: str) -> Any:
    """OpenAI's client with a key."""
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


async def ask(client: Any, **options: Any) -> Any:
    """One answer, with its headers."""
    return await client.chat.completions.with_raw_response.create(**{"model": "auto", "messages": SAY, **options})


async def test_a_tenant_comes_in_with_its_key_and_pays(gateway: Gateway, network: Network, tenants: Tenants) -> None:
    await tenants.create("keyed")
    _, key = await tenants.add_key("keyed")
    answer = await ask(client(gateway, key))
    task = answer.headers["modelnet-task"]
    assert (await network.client.task(task, tenant="keyed").result()).tenant == "keyed"


@pytest.mark.parametrize("key", ["none", "mn-wrong", "mn-\xff", "x" * 4000])
async def test_a_wrong_key_is_refused(gateway: Gateway, key: str) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        headers = {b"authorization": f"Bearer {key}".encode("latin-1")}
        answer = await http.post("/v1/chat/completions", headers=headers, json={"messages": SAY})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_a_key_that_has_ended_is_refused_within_seconds(
    gateway: Gateway, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenants.create("former")
    id, key = await tenants.add_key("former")
    await ask(client(gateway, key))
    await tenants.drop_key("former", id)
    monkeypatch.setattr(gateway_keys, "FRESH_S", 0.0)
    with pytest.raises(openai.AuthenticationError):
        await ask(client(gateway, key))


async def test_requests_above_the_rate_are_refused_with_when_to_come_again(gateway: Gateway, tenants: Tenants) -> None:
    await tenants.create("slow")
    await tenants.limit("slow", "requests", 2)
    _, key = await tenants.add_key("slow")
    first = await ask(client(gateway, key))
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    await ask(client(gateway, key))
    with pytest.raises(openai.RateLimitError) as refused:
        await ask(client(gateway, key))
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_counted_when_they_are_known(gateway: Gateway, tenants: Tenants, stream: bool) -> None:
    name = f"wordy-{stream}"
    await tenants.create(name)
    await tenants.limit(name, "tokens", 6)  # the answer takes three and makes three
    _, key = await tenants.add_key(name)
    answer = await ask(client(gateway, key), stream=stream)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "6"
    if stream:
        async for _ in answer.parse():
            pass

    async def go_on() -> None:
        for _ in range(50):  # counted in the background: the first of these may still come in
            await ask(client(gateway, key))

    with pytest.raises(openai.RateLimitError, match="6 tokens a minute"):
        await go_on()


async def test_a_tenant_without_funds_is_told_as_openai_tells_it(
    gateway: Gateway, network: Network, tenants: Tenants, store: Store
) -> None:
    await tenants.create("poor")
    _, key = await tenants.add_key("poor")
    async with Ledger(store.url) as ledger:
        await ledger.grant("poor", 10, "first")
        await announce_metering(network.bus, "poor", metered=True)
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(client(gateway, key))
        assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
        paid = await ask(client(gateway, key), extra_body={"modelnet": {"budget": 8}})
        assert paid.headers["modelnet-price"] == "3"
        await ledger.limit("poor", "hour", 4)
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(client(gateway, key), extra_body={"modelnet": {"budget": 7}})
        assert refused.value.code == "rate_limit_exceeded"
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 3600


async def test_where_no_key_is_needed_one_that_is_given_still_counts(network: Network, tenants: Tenants) -> None:
    await tenants.create("known")
    _, key = await tenants.add_key("known")
    async with Gateway(network.config) as open_gateway:
        nobody = await ask(client(open_gateway, "EMPTY"))
        somebody = await ask(client(open_gateway, key))
        with pytest.raises(openai.AuthenticationError):
            await ask(client(open_gateway, "mn-wrong"))
    assert (await network.client.task(nobody.headers["modelnet-task"], tenant="default").result()).worker == "actor"
    assert (await network.client.task(somebody.headers["modelnet-task"], tenant="known").result()).worker == "actor"


async def test_with_redis_away_known_keys_are_served_for_a_while_and_new_ones_are_not(
    gateway: Gateway, tenants: Tenants, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenants.create("steady")
    _, key = await tenants.add_key("steady")
    _, unused = await tenants.add_key("steady")
    await ask(client(gateway, key))
    await store.kill()
    try:
        monkeypatch.setattr(gateway_keys, "FRESH_S", 0.0)
        await ask(client(gateway, key))
        with pytest.raises(openai.InternalServerError) as refused:
            await ask(client(gateway, unused))
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"] == "1"
        monkeypatch.setattr(gateway_keys, "STALE_S", 0.0)
        with pytest.raises(openai.InternalServerError):
            await ask(client(gateway, key))
    finally:
        await store.start()
    await ask(client(gateway, unused))
