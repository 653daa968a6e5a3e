"""Deposits on a real Redis: what a worker's owner puts up for a task, and who gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from modelnet.bus.embedded import EmbeddedRedis
from modelnet.errors import UsageError
from modelnet.store.ledger import Books, Ledger

pytestmark = pytest.mark.asyncio(loop_scope="module")

W = {"auction": "a1", "worker": "w", "owner": "o"}


@pytest_asyncio.fixture(loop_scope="module")
async def ledger(redis_server: EmbeddedRedis) -> AsyncIterator[Ledger]:
    """A tenant with 5,000, an owner with 800 who lets `w` put up 500 of it, and a task that 1,000 are held for."""
    async with Redis.from_url(redis_server.url) as redis:
        await redis.flushall()
    async with Ledger(redis_server.url) as ledger:
        await ledger.grant("t", 5_000, "g")
        await ledger.grant("o", 800, "g")
        await ledger.allow_deposits("o", "w", 500)
        assert await ledger.hold("t", "k", 1_000, deadline_s=60) is None
        yield ledger
        assert (await ledger.books()).imbalance == 0


def standing(books: Books) -> dict[str, tuple[int, int]]:
    """Balance and held of each account."""
    return {account.name: (account.balance, account.held) for account in books.accounts}


async def test_it_is_held_once_and_returns_with_the_price(ledger: Ledger) -> None:
    assert [await ledger.deposit("t", "k", 300, **W) for _ in range(2)] == ["held", "held"]
    assert standing(await ledger.books()) == {"o": (500, 300), "t": (4_000, 1_000)}
    (hold,) = await ledger.holds("o")
    assert (hold.task, hold.amount, hold.tenant, hold.worker) == ("k", 300, "t", "w")
    assert (await ledger.account("o")).holds == 1
    assert await ledger.settle("t", "k", "o", 40) == 40
    assert standing(await ledger.books()) == {"o": (840, 0), "t": (4_960, 0)}
    assert await ledger.holds("o") == []


async def test_what_is_lost_of_it_goes_to_the_tenant_once(ledger: Ledger) -> None:
    await ledger.deposit("t", "k", 300, **W)
    for _ in range(2):
        assert await ledger.settle("t", "k", "other", 70, {("a1", "w"): 120}) == 70
    assert standing(await ledger.books()) == {"o": (680, 0), "other": (70, 0), "t": (5_050, 0)}
    forfeit, _ = await ledger.statement("o")
    assert (forfeit.kind, forfeit.amount, forfeit.balance, forfeit.task, forfeit.other) == (
        "forfeit", -120, 680, "k", "t",
    )  # fmt: skip
    compensation, payment, _ = await ledger.statement("t")
    assert (payment.kind, compensation.kind, compensation.amount, compensation.balance) == (
        "payment", "compensation", 120, 5_050,
    )  # fmt: skip


async def test_no_more_is_lost_than_was_put_up(ledger: Ledger) -> None:
    await ledger.deposit("t", "k", 300, **W)
    await ledger.settle("t", "k", "", 0, {("a1", "w"): 10_000, ("a1", "nobody"): 50})
    assert standing(await ledger.books()) == {"o": (500, 0), "t": (5_300, 0)}


async def test_a_release_returns_it(ledger: Ledger) -> None:
    await ledger.deposit("t", "k", 300, **W)
    await ledger.release("t", "k")
    assert standing(await ledger.books()) == {"o": (800, 0), "t": (5_000, 0)}


async def test_several_owners_of_one_task(ledger: Ledger) -> None:
    await ledger.grant("p", 100, "g")
    await ledger.allow_deposits("p", "v", 100)
    await ledger.deposit("t", "k", 300, **W)
    await ledger.deposit("t", "k", 100, auction="a2", worker="v", owner="p")
    await ledger.settle("t", "k", "p", 60, {("a1", "w"): 300})
    assert standing(await ledger.books()) == {"o": (500, 0), "p": (160, 0), "t": (5_240, 0)}


async def test_nobody_puts_up_the_money_of_an_owner_that_did_not_allow_it(ledger: Ledger) -> None:
    assert await ledger.deposit("t", "k", 300, auction="a1", worker="stranger", owner="o") == "not_allowed"
    assert await ledger.deposit("t", "k", 501, **W) == "not_allowed"
    assert await ledger.depositors("o") == {"w": 500}
    await ledger.allow_deposits("o", "w", None)
    assert await ledger.deposit("t", "k", 1, **W) == "not_allowed"
    assert await ledger.depositors("o") == {}
    with pytest.raises(UsageError):
        await ledger.allow_deposits("o", "w", -1)


async def test_not_more_than_the_owner_has(ledger: Ledger) -> None:
    await ledger.allow_deposits("o", "w", 5_000)
    assert await ledger.deposit("t", "k", 801, **W) == "no_funds"
    assert await ledger.deposit("t", "k", 800, **W) == "held"


async def test_only_for_a_task_that_money_is_held_for(ledger: Ledger) -> None:
    assert await ledger.deposit("t", "unheld", 10, **W) == "no_hold"
    await ledger.release("t", "k")
    assert await ledger.deposit("t", "k", 10, **W) == "no_hold"
    assert standing(await ledger.books()) == {"o": (800, 0), "t": (5_000, 0)}
