"""The ledger on a real Redis: what each operation does, once and again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from modelnet.bus.embedded import EmbeddedRedis
from modelnet.errors import GrantConflict, LedgerAway, NoFunds, UnknownAccount, UsageError
from modelnet.store.ledger import MARGIN_S, MAX_AMOUNT, Books, Ledger
from tests.store.clock import NOON, Clock

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture(loop_scope="module")
async def ledger(redis_server: EmbeddedRedis, clock: Clock) -> AsyncIterator[Ledger]:
    """An empty ledger."""
    async with Redis.from_url(redis_server.url) as redis:
        await redis.flushall()
    async with Ledger(redis_server.url, clock=clock) as ledger:
        yield ledger
        assert (await ledger.books()).imbalance == 0


def standing(books: Books) -> dict[str, tuple[int, int]]:
    """Balance and held of each account."""
    return {account.name: (account.balance, account.held) for account in books.accounts}


async def test_a_price_is_paid_out_of_the_hold_and_the_rest_returns(ledger: Ledger) -> None:
    assert await ledger.grant("t", 5_000, "g") == 5_000
    assert await ledger.hold("t", "k", 1_000, deadline_s=60) is None
    assert standing(await ledger.books()) == {"t": (4_000, 1_000)}
    (hold,) = await ledger.holds("t")
    assert (hold.task, hold.amount, hold.taken_at) == ("k", 1_000, NOON)
    assert await ledger.settle("t", "k", "o", 30) == 30
    books = await ledger.books()
    assert standing(books) == {"o": (30, 0), "t": (4_970, 0)}
    assert books.minted == 5_000
    assert await ledger.holds("t") == []
    spent, granted = await ledger.statement("t")
    assert (spent.kind, spent.amount, spent.balance, spent.task, spent.other) == ("payment", -30, 4_970, "k", "o")
    assert (granted.kind, granted.amount, granted.balance, granted.other) == ("grant", 5_000, 5_000, "g")
    (earned,) = await ledger.statement("o")
    assert (earned.kind, earned.amount, earned.task, earned.other) == ("earning", 30, "k", "t")


async def test_a_release_returns_all_and_says_nothing_in_the_statement(ledger: Ledger) -> None:
    await ledger.grant("t", 1_000, "g")
    await ledger.hold("t", "k", 1_000, deadline_s=60)
    assert await ledger.release("t", "k") == 0
    assert standing(await ledger.books()) == {"t": (1_000, 0)}
    assert len(await ledger.statement("t")) == 1


async def test_everything_twice_is_once(ledger: Ledger) -> None:
    for _ in range(2):
        await ledger.grant("t", 2_000, "g")
        assert await ledger.hold("t", "k", 1_000, deadline_s=60) is None
    assert standing(await ledger.books()) == {"t": (1_000, 1_000)}
    for _ in range(2):
        assert await ledger.settle("t", "k", "o", 400) == 400
        assert await ledger.settle("t", "k", "another", 900) == 400
        assert await ledger.release("t", "k") == 400
        await ledger.grant("t", 2_000, "g")
    assert standing(await ledger.books()) == {"o": (400, 0), "t": (1_600, 0)}


async def test_the_end_may_come_before_the_hold(ledger: Ledger) -> None:
    await ledger.grant("t", 2_000, "g")
    assert await ledger.settle("t", "k", "o", 10) == 0
    assert await ledger.release("t", "j") == 0
    for task in ("k", "j"):
        refused = await ledger.hold("t", task, 1_000, deadline_s=60)
        assert refused is not None
        assert refused.code == "task_ended"
        assert task in refused.message
    assert standing(await ledger.books()) == {"t": (2_000, 0)}


async def test_nobody_is_paid_more_than_was_held(ledger: Ledger) -> None:
    await ledger.grant("t", 100, "g")
    await ledger.hold("t", "k", 60, deadline_s=60)
    assert await ledger.settle("t", "k", "o", 90) == 60
    assert standing(await ledger.books()) == {"o": (60, 0), "t": (40, 0)}


async def test_who_works_for_itself_pays_itself(ledger: Ledger) -> None:
    await ledger.grant("t", 100, "g")
    await ledger.hold("t", "k", 100, deadline_s=60)
    assert await ledger.settle("t", "k", "t", 70) == 70
    assert standing(await ledger.books()) == {"t": (100, 0)}
    earned, spent, _ = await ledger.statement("t")
    assert (spent.amount, spent.balance, earned.amount, earned.balance) == (-70, 30, 70, 100)


async def test_without_money_there_is_no_hold_and_the_reason_says_what_is_missing(ledger: Ledger) -> None:
    await ledger.grant("t", 1_500, "g")
    await ledger.hold("t", "k", 1_000, deadline_s=60)
    refused = await ledger.hold("t", "j", 1_000, deadline_s=60)
    assert refused is not None
    assert refused.code == "no_funds"
    assert refused.message == (
        "t has 500 micro-credits and 1000 more held for 1 of its tasks; this task's budget is 1000: lower it, wait for"
        " those to end, or add to the account with `modelnet credit t 500`"
    )
    await ledger.release("t", "k")
    assert await ledger.hold("t", "j", 1_000, deadline_s=60) is None, "a refusal is no end"


async def test_nothing_at_all_can_be_held_and_paid(ledger: Ledger) -> None:
    await ledger.grant("t", 0, "g")
    assert await ledger.hold("t", "k", 0, deadline_s=60) is None
    assert await ledger.settle("t", "k", "o", 0) == 0
    assert standing(await ledger.books()) == {"t": (0, 0)}


# ---------------------------------------------------------------------- grants


async def test_a_grant_is_known_by_its_id(ledger: Ledger) -> None:
    await ledger.grant("t", 100, "g")
    with pytest.raises(GrantConflict, match="of 100 and not 200"):
        await ledger.grant("t", 200, "g")
    assert await ledger.grant("u", 200, "g") == 200


async def test_what_is_free_can_be_taken_out(ledger: Ledger) -> None:
    await ledger.grant("t", 100, "g")
    await ledger.hold("t", "k", 60, deadline_s=60)
    with pytest.raises(NoFunds, match="has 40"):
        await ledger.grant("t", -41, "w")
    assert await ledger.grant("t", -40, "w") == 0
    assert await ledger.grant("t", -40, "w") == 0
    assert (await ledger.statement("t"))[0].kind == "withdrawal"
    assert (await ledger.books()).minted == 60


async def test_sums_stay_below_what_is_counted_exactly(ledger: Ledger) -> None:
    for amount in (MAX_AMOUNT + 1, -MAX_AMOUNT - 1):
        with pytest.raises(UsageError):
            await ledger.grant("t", amount, f"g{amount}")
    assert await ledger.grant("t", MAX_AMOUNT, "all") == MAX_AMOUNT
    with pytest.raises(UsageError, match="could not be counted"):
        await ledger.grant("u", 1, "one more")
    assert await ledger.hold("t", "k", MAX_AMOUNT, deadline_s=60) is None
    assert await ledger.settle("t", "k", "o", MAX_AMOUNT - 1) == MAX_AMOUNT - 1
    assert standing(await ledger.books()) == {"o": (MAX_AMOUNT - 1, 0), "t": (1, 0)}


# ---------------------------------------------------------------------- limits


async def test_a_limit_counts_what_is_spent_and_held_in_its_window(ledger: Ledger, clock: Clock) -> None:
    await ledger.grant("t", 10_000, "g")
    await ledger.limit("t", "hour", 1_000)
    await ledger.hold("t", "k", 600, deadline_s=60)
    refused = await ledger.hold("t", "j", 500, deadline_s=60)
    assert refused is not None
    assert refused.code == "over_limit"
    assert "600 are spent or held" in refused.message
    assert "wait 60 min" in refused.message
    assert "--per-hour 1100" in refused.message
    await ledger.settle("t", "k", "o", 100)
    assert await ledger.hold("t", "j", 500, deadline_s=60) is None, "only the price was spent"
    assert [limit.spent for limit in (await ledger.account("t")).limits] == [600, 600]
    clock.now += 3_600
    assert await ledger.hold("t", "i", 1_000, deadline_s=60) is None
    await ledger.release("t", "j")
    assert [limit.spent for limit in (await ledger.account("t")).limits] == [1_000, 1_100]
    assert standing(await ledger.books()) == {"o": (100, 0), "t": (8_900, 1_000)}


async def test_a_limit_can_be_taken_away(ledger: Ledger) -> None:
    await ledger.grant("t", 1_000, "g")
    await ledger.limit("t", "day", 10)
    assert await ledger.hold("t", "k", 11, deadline_s=60) is not None
    await ledger.limit("t", "day", None)
    assert await ledger.hold("t", "k", 11, deadline_s=60) is None
    with pytest.raises(UsageError):
        await ledger.limit("t", "day", -1)


# ---------------------------------------------------------------------- accounts


async def test_who_was_credited_or_limited_is_metered_and_who_only_earns_is_not(ledger: Ledger) -> None:
    await ledger.grant("t", 100, "g")
    await ledger.limit("u", "day", 10)
    await ledger.hold("t", "k", 50, deadline_s=60)
    await ledger.settle("t", "k", "o", 50)
    assert await ledger.metered() == {"t", "u"}
    assert not (await ledger.account("o")).metered
    assert await ledger.grant("o", -50, "payout") == 0
    await ledger.free("t")
    assert await ledger.metered() == {"u"}
    assert (await ledger.account("t")).balance == 50
    with pytest.raises(UnknownAccount, match="modelnet credit x"):
        await ledger.account("x")


async def test_a_hold_is_due_some_time_after_its_deadline(ledger: Ledger, clock: Clock) -> None:
    await ledger.grant("t", 100, "g")
    await ledger.hold("t", "k", 10, deadline_s=60)
    await ledger.hold("t", "j", 10, deadline_s=600)
    clock.now += 60 + MARGIN_S - 1
    assert await ledger.due() == []
    clock.now += 1
    assert await ledger.due() == [("t", "k")]
    await ledger.postpone("t", "k", 10)
    assert await ledger.due() == []
    clock.now += 10
    assert await ledger.due() == [("t", "k")]
    await ledger.release("t", "k")
    await ledger.postpone("t", "k", 10)
    clock.now += 10_000
    assert await ledger.due() == [("t", "j")]


async def test_what_has_ended_is_kept_for_a_week(ledger: Ledger, redis_server: EmbeddedRedis) -> None:
    await ledger.grant("t", 100, "g")
    await ledger.hold("t", "k", 10, deadline_s=60)
    async with Redis.from_url(redis_server.url) as redis:
        assert await redis.ttl("modelnet:{ledger}:hold:t:k") == -1, "an open hold never goes by itself"
        await ledger.release("t", "k")
        assert 604_790 < await redis.ttl("modelnet:{ledger}:hold:t:k") <= 604_800


# ---------------------------------------------------------------------- many at once, and trouble


async def test_many_clients_cannot_overdraw(ledger: Ledger, redis_server: EmbeddedRedis) -> None:
    await ledger.grant("t", 10_000, "g")
    clients = [Ledger(redis_server.url) for _ in range(4)]

    async def task(n: int) -> int:
        """Each task twice by each client: hold, and at once its end."""
        client, id = clients[n % 4], f"k{n // 8}"
        if (await client.hold("t", id, 1_000, deadline_s=60)) is not None:
            return 0
        held = (await client.account("t")).held
        assert held <= 10_000
        return await (client.settle("t", id, "o", 300) if n // 8 % 3 else client.release("t", id))

    await asyncio.gather(*(task(n) for n in range(800)))
    books = await ledger.books()
    paid = standing(books).get("o", (0, 0))[0]
    assert standing(books)["t"] == (10_000 - paid, 0)
    assert paid % 300 == 0
    assert paid <= 100 * 300
    payments = [entry.task for entry in await ledger.statement("t", 1_000) if entry.kind == "payment"]
    assert len(payments) == len(set(payments)) == paid // 300
    for client in clients:
        await client.close()


async def test_a_killed_redis_has_lost_nothing_when_it_is_back(tmp_path: Path) -> None:
    first = EmbeddedRedis(tmp_path)
    await first.start()
    async with Ledger(first.url) as ledger:
        await ledger.grant("t", 10_000, "g")
        for n in range(200):
            await ledger.hold("t", f"k{n}", 10, deadline_s=60)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await first.stop()
        with pytest.raises(LedgerAway, match=f"127.0.0.1:{first.port}"):
            await ledger.hold("t", "late", 10, deadline_s=60)
        second = EmbeddedRedis(tmp_path, port=first.port)
        await second.start()
        assert standing(await ledger.books()) == {"t": (8_000, 2_000)}
        assert await ledger.settle("t", "k7", "o", 3) == 3, "the scripts of before are gone, and come again"
        assert (await ledger.books()).imbalance == 0
    await second.stop()


async def test_what_redis_has_answered_survives_a_kill_that_comes_at_once(tmp_path: Path) -> None:
    """With `appendfsync everysec` a write that comes while another is synced is answered before it is in the file."""
    server = EmbeddedRedis(tmp_path)
    await server.start()
    for n in range(1, 6):
        async with Ledger(server.url) as ledger:
            for step in range(3):
                await ledger.grant("t", 10, f"{n}-{step}")
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            await server.stop()
            server = EmbeddedRedis(tmp_path, port=server.port)
            await server.start()
            assert standing(await ledger.books()) == {"t": (30 * n, 0)}
    async with Redis.from_url(server.url) as redis:
        assert (await redis.config_get("appendfsync"))["appendfsync"] == "always"
    await server.stop()


async def test_a_password_is_not_shown() -> None:
    async with Ledger("redis://:secret@127.0.0.1:1/0") as ledger:
        with pytest.raises(LedgerAway, match=r"^(?!.*secret).*127\.0\.0\.1:1/0") as away:
            await ledger.metered()
    assert away.value.code == "ledger_away"
    with pytest.raises(UsageError, match="no Redis URL"):
        Ledger("http://:secret@nowhere")
