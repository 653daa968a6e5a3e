"""Money on a whole network: held before the award, settled after the Final, whatever dies or is away in between."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

import modelnet
from modelnet.bus import journal, subjects
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.metering import announce_metering
from modelnet.bus.replay import last_of
from modelnet.market import differences
from modelnet.market.scoring import part_payment
from modelnet.market.settlement import payment_differences
from modelnet.messages import Final, Timings, Waiting, new_id
from modelnet.processes import ChildProcess
from modelnet.store.ledger import Ledger
from tests.network.stage import PATIENCE_S, Network, Store, fast, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRICE = 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(nats_server: EmbeddedNats, store: Store) -> AsyncIterator[Network]:
    """One negotiator and one worker, whose price is 30 and whose owner is `mill`."""
    config = fast(nats_server.url, redis_url=store.url, owner="mill", ack_wait_s=2.0)
    async with Network(config) as network:
        await network.negotiator()
        worker = network.worker("grinder", slots=4)

        @worker.capability("grind", price=PRICE)
        async def grind(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
            return {"ground": input["grain"]}

        await network.join(worker)
        yield network


@pytest_asyncio.fixture(loop_scope="module")
async def ledger(store: Store) -> AsyncIterator[Ledger]:
    async with Ledger(store.url) as ledger:
        yield ledger
        assert (await ledger.books()).imbalance == 0


async def open_account(network: Network, ledger: Ledger, credits: int) -> str:
    """A tenant of its own that is charged."""
    tenant = f"t{new_id()[-12:]}"
    await ledger.grant(tenant, credits, "first")
    await announce_metering(network.bus, tenant, metered=True)
    return tenant


async def submit(network: Network, tenant: str, **options: Any) -> modelnet.TaskHandle:
    return await network.client.submit("grind", {"grain": "rye"}, tenant=tenant, **options)


async def final_of(task: modelnet.TaskHandle) -> Final:
    async with asyncio.timeout(PATIENCE_S):
        return await task.final()


async def settled(store: Store, tenant: str, count: int = 1) -> list[str]:
    """Wait until so many payments stand in a tenant's statement: their tasks."""
    paid: list[str] = []
    async with asyncio.timeout(PATIENCE_S), Redis.from_url(store.url, decode_responses=True, protocol=2) as redis:
        key, last = f"modelnet:{{ledger}}:statement:{tenant}", "0"
        while len(paid) < count:
            found: Any = await redis.xread({key: last}, block=1_000)
            for _, entries in found or ():
                paid += [fields["task"] for _, fields in entries if fields["kind"] == "payment"]
                last = entries[-1][0]
    return paid


async def until_released(ledger: Ledger, tenant: str) -> None:
    """Wait until nothing is held for a tenant."""
    async with asyncio.timeout(PATIENCE_S):
        while (await ledger.account(tenant)).held:
            continue


# ---------------------------------------------------------------------- the ordinary course


async def test_a_task_costs_exactly_the_price_of_its_final(network: Network, ledger: Ledger, store: Store) -> None:
    worker = await network.ledger_worker()
    tenant = await open_account(network, ledger, 5_000)
    before = {one.name: one.balance for one in (await ledger.books()).accounts}.get("mill", 0)
    task = await submit(network, tenant)
    final = await final_of(task)
    assert (final.status, final.held, final.owner) == ("completed", 1_000, "mill")
    assert final.price is not None
    assert final.price >= PRICE
    assert await settled(store, tenant) == [task.id]
    assert (await ledger.account(tenant)).balance == 5_000 - final.price
    assert (await ledger.account("mill")).balance == before + final.price
    await network.stop(worker)


async def test_a_task_of_parts_costs_what_its_parts_cost(network: Network, ledger: Ledger, store: Store) -> None:
    """Each is held, settled or released by itself; the whole is not, and they stay within its budget."""
    ledger_worker = await network.ledger_worker()
    other = network.worker("other-mill", owner="other")

    @other.capability("grind", price=PRICE)
    async def grind(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        return {"ground": input["grain"]}

    await network.join(other)
    tenant = await open_account(network, ledger, 5_000)
    final = await final_of(await submit(network, tenant, strategy="panel", budget=200))
    assert (final.status, final.held, len(final.parts)) == ("completed", None, 2)
    assert final.price is not None
    assert 2 * PRICE <= final.price <= 200
    await until_released(ledger, tenant)
    assert sorted(await settled(store, tenant)) == sorted(final.parts)
    assert (await ledger.account(tenant)).balance == 5_000 - final.price
    poor = await open_account(network, ledger, 60)
    broke = await final_of(await submit(network, poor, strategy="race", budget=200))
    assert broke.error is not None
    assert (broke.error.code, broke.price) == ("no_funds", 0)
    await network.stop(other)
    await network.stop(ledger_worker)


async def test_what_does_not_complete_costs_nothing(network: Network, ledger: Ledger, store: Store) -> None:
    worker = await network.ledger_worker()
    tenant = await open_account(network, ledger, 5_000)
    final = await final_of(await submit(network, tenant, budget=PRICE - 1))
    assert final.error is not None
    assert final.error.code == "over_budget"
    await until_released(ledger, tenant)
    assert (await ledger.account(tenant)).balance == 5_000
    await network.stop(worker)


async def test_a_cancelled_attempt_is_paid_its_part(network: Network, ledger: Ledger, store: Store) -> None:
    worker = await network.ledger_worker()
    begun = asyncio.Event()
    potter = network.worker("potter", owner="pottery")

    @potter.capability("throw", price=400, estimate=lambda features: (2_000.0, 4_000.0))
    async def throw(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        await asyncio.sleep(PATIENCE_S)
        return {}

    await network.join(potter)
    tenant = await open_account(network, ledger, 5_000)
    task = await network.client.submit("throw", {}, tenant=tenant)
    async with network.ear("beat.potter") as beats:
        await until(begun)
        await beats.next()  # some of the work is done
    await task.cancel()
    final = await final_of(task)
    assert (final.status, final.owner) == ("cancelled", "pottery")
    assert final.price is not None
    ((_, transcript),) = await network.client.transcripts(task.id, tenant=tenant)
    assert transcript.price is not None
    part = part_payment(transcript.price, run_ms=final.timings.running_ms, median_ms=2_000.0)
    assert 0 < final.price == part < transcript.price
    assert payment_differences(transcript, final) == []
    assert await settled(store, tenant) == [task.id]
    assert (await ledger.account(tenant)).balance == 5_000 - final.price
    assert (await ledger.account("pottery")).balance == final.price
    await network.stop(potter)
    await network.stop(worker)


async def staked_worker(network: Network, ledger: Ledger, name: str, *, allowed: int) -> modelnet.Worker:
    """A newcomer that puts up 400 of its owner's 1,000, as far as it may, and answers what it is told to."""
    owner = f"{name}-owner"
    await ledger.grant(owner, 1_000, "first")
    await ledger.allow_deposits(owner, name, allowed)
    worker = network.worker(name, owner=owner)

    @worker.capability(name, price=100, deposit=400)
    async def answer(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        if input["fail"]:
            raise modelnet.Reject("a bad day", code="worker_error", retryable=True)
        return {}

    await network.join(worker)
    return worker


async def test_a_newcomers_deposit_is_held_and_its_good_answer_paid_by_its_worth(
    network: Network, ledger: Ledger, store: Store
) -> None:
    settler = await network.ledger_worker()
    worker = await staked_worker(network, ledger, "apprentice", allowed=400)
    tenant = await open_account(network, ledger, 5_000)
    task = await network.client.submit("apprentice", {"fail": False}, tenant=tenant)
    final = await final_of(task)
    (settlement,) = final.settlements
    assert (settlement.deposit, settlement.passed, settlement.owner) == (400, True, "apprentice-owner")
    assert final.price == settlement.price > 0
    assert await settled(store, tenant) == [task.id]
    account = await ledger.account("apprentice-owner")
    assert (account.balance, account.held) == (1_000 + final.price, 0)
    ((_, transcript),) = await network.client.transcripts(task.id, tenant=tenant)
    assert (transcript.rule, transcript.deposit) == ("settled", 400)
    assert differences(transcript) == payment_differences(transcript, final) == []
    await network.stop(worker)
    await network.stop(settler)


async def test_a_newcomer_that_fails_pays_the_tenant_out_of_its_deposit(
    network: Network, ledger: Ledger, store: Store
) -> None:
    settler = await network.ledger_worker()
    worker = await staked_worker(network, ledger, "bungler", allowed=400)
    tenant = await open_account(network, ledger, 5_000)
    # A second is worth 1,000 to this tenant: the milliseconds of the failed attempt are its loss.
    task = await network.client.submit("bungler", {"fail": True}, tenant=tenant, value_of_time=1_000.0)
    final = await final_of(task)
    assert final.status == "failed"
    (settlement,) = final.settlements
    assert -400 <= settlement.price < 0
    await until_released(ledger, tenant)
    assert (await ledger.account(tenant)).balance == 5_000 - settlement.price
    account = await ledger.account("bungler-owner")
    assert (account.balance, account.held) == (1_000 + settlement.price, 0)
    await network.stop(worker)
    await network.stop(settler)


async def test_an_owner_that_did_not_allow_a_deposit_loses_nothing(
    network: Network, ledger: Ledger, store: Store
) -> None:
    settler = await network.ledger_worker()
    worker = await staked_worker(network, ledger, "upstart", allowed=399)
    tenant = await open_account(network, ledger, 5_000)
    task = await network.client.submit("upstart", {"fail": False}, tenant=tenant)
    final = await final_of(task)
    assert (final.status, final.settlements) == ("completed", ())
    ((_, transcript),) = await network.client.transcripts(task.id, tenant=tenant)
    assert (transcript.rule, transcript.deposit, transcript.bids[0].deposit) == ("second_score", 0, 400)
    assert await settled(store, tenant) == [task.id]
    free = await final_of(await network.client.submit("upstart", {"fail": False}, tenant="nobody"))
    assert (free.status, free.settlements) == ("completed", ())
    await network.stop(worker)
    await network.stop(settler)


async def test_without_funds_a_task_fails_at_once_and_says_what_to_do(network: Network, ledger: Ledger) -> None:
    tenant = await open_account(network, ledger, 400)
    final = await final_of(await submit(network, tenant))
    assert final.status == "failed"
    assert final.error is not None
    assert final.error.code == "no_funds"
    assert final.error.message == (
        f"{tenant} has 400 micro-credits; this task's budget is 1000: lower it, or add to the account with"
        f" `modelnet credit {tenant} 600`"
    )
    assert (await final_of(await submit(network, tenant, budget=400))).status == "completed"


async def test_free_tenants_never_ask_redis(network: Network) -> None:
    (peer,) = network.negotiators
    await network.stop(peer)
    alone = await network.negotiator(redis_url="redis://127.0.0.1:1/0")  # where nobody is: who asks it waits
    final = await final_of(await submit(network, "nobody"))
    assert (final.status, final.negotiator, final.held) == ("completed", alone.id, None)
    await network.stop(alone)
    await network.negotiator()


async def test_nobody_is_free_where_the_settings_say_so(network: Network, ledger: Ledger) -> None:
    (peer,) = network.negotiators
    await network.stop(peer)
    strict = await network.negotiator(free_tenants=False)
    final = await final_of(await submit(network, "stranger"))
    assert final.error is not None
    assert final.error.code == "no_funds"
    await network.stop(strict)
    await network.negotiator()


async def test_who_is_metered_is_told_again_by_the_sweep(network: Network, ledger: Ledger) -> None:
    worker = await network.ledger_worker()
    tenant = f"t{new_id()[-12:]}"
    await ledger.grant(tenant, 100, "first")  # and whoever granted it could not reach the bus
    await worker.sweep()
    final = await final_of(await submit(network, tenant))
    assert final.error is not None
    assert final.error.code == "no_funds"
    await network.stop(worker)


# ---------------------------------------------------------------------- Redis is away


async def test_a_task_waits_for_redis_and_its_reader_is_told(network: Network, ledger: Ledger, store: Store) -> None:
    tenant = await open_account(network, ledger, 5_000)
    await store.kill()
    task = await submit(network, tenant, deadline_s=60)
    async with asyncio.timeout(PATIENCE_S):
        async for event in task.stream():
            if isinstance(event, Waiting):
                assert event.reason == "ledger_away"
                await store.start()
    final = await final_of(task)
    assert final.status == "completed"
    worker = await network.ledger_worker()
    assert await settled(store, tenant) == [task.id]
    await network.stop(worker)


async def test_others_go_on_while_redis_is_away(network: Network, ledger: Ledger, store: Store) -> None:
    tenant = await open_account(network, ledger, 5_000)
    await store.kill()
    paying = [await submit(network, tenant, deadline_s=60) for _ in range(4)]
    assert (await final_of(await submit(network, "nobody"))).status == "completed"
    await store.start()
    assert [(await final_of(task)).error for task in paying] == [None] * 4
    worker = await network.ledger_worker()
    assert len(await settled(store, tenant, 4)) == 4
    await network.stop(worker)


async def test_redis_may_be_away_between_final_and_settlement(network: Network, ledger: Ledger, store: Store) -> None:
    tenant = await open_account(network, ledger, 5_000)
    task = await submit(network, tenant)
    final = await final_of(task)
    assert final.price is not None
    await store.kill()
    worker = await network.ledger_worker()
    await store.start()
    assert await settled(store, tenant) == [task.id]
    assert (await ledger.account(tenant)).balance == 5_000 - final.price
    await network.stop(worker)


# ---------------------------------------------------------------------- somebody dies


def process(network: Network, folder: Path, app: str, ready: bytes, **env: str) -> ChildProcess:
    """A process of the network that can be killed."""
    return ChildProcess(
        app.partition(":")[0],
        [sys.executable, "-m", "modelnet.run", app],
        log_dir=folder,
        ready=ready,
        restart=False,
        env={
            "MODELNET_URL": network.config.url,
            "MODELNET_REDIS_URL": network.config.redis_url,
            "MODELNET_BEAT_S": "0.2",
            "MODELNET_ACK_WAIT_S": "2",
            "MODELNET_LOG_LEVEL": "info",
            **env,
        },
    )


async def test_a_ledger_worker_killed_among_settlements_settles_nothing_twice(
    network: Network, ledger: Ledger, store: Store, tmp_path: Path
) -> None:
    tenant = await open_account(network, ledger, 1_000_000)
    tasks = await asyncio.gather(*(submit(network, tenant) for _ in range(150)))
    finals = [await final_of(task) for task in tasks]
    doomed = process(network, tmp_path, "workers.ledger:app", b"ledger_started")
    await doomed.start()
    await settled(store, tenant, 20)
    doomed.kill()
    await doomed.stop()
    heirs = [await network.ledger_worker(), await network.ledger_worker()]
    paid = await settled(store, tenant, len(tasks))
    assert Counter(paid) == Counter(task.id for task in tasks)
    account = await ledger.account(tenant)
    assert account.held == 0
    assert account.balance == 1_000_000 - sum(final.price or 0 for final in finals)
    for heir in heirs:
        await network.stop(heir)


async def test_what_a_dead_negotiator_held_is_not_held_again(network: Network, ledger: Ledger, store: Store) -> None:
    tenant = await open_account(network, ledger, 1_000)
    assert await ledger.hold(tenant, "inherited", 1_000, deadline_s=60) is None
    final = await final_of(await submit(network, tenant, id="inherited"))
    assert final.status == "completed", "a second hold would have found no money"
    worker = await network.ledger_worker()
    assert await settled(store, tenant) == ["inherited"]
    assert (await ledger.account(tenant)).balance == 1_000 - (final.price or 0)
    await network.stop(worker)


async def test_a_negotiator_killed_while_its_task_runs_leaves_one_hold_and_one_payment(
    network: Network, ledger: Ledger, store: Store, tmp_path: Path
) -> None:
    (peer,) = network.negotiators
    await network.stop(peer)
    doomed = process(network, tmp_path, "workers.negotiator:app", b"negotiator_started")
    await doomed.start()
    begun, finish = asyncio.Event(), asyncio.Event()
    slow = network.worker("slow", owner="quarry")

    @slow.capability("crush", price=PRICE)
    async def crush(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        await finish.wait()
        return {}

    await network.join(slow)
    tenant = await open_account(network, ledger, 1_500)
    task = await network.client.submit("crush", {}, tenant=tenant, deadline_s=60)
    await until(begun)
    assert (await ledger.account(tenant)).held == 1_000
    doomed.kill()
    await doomed.stop()
    heir = await network.negotiator()
    finish.set()
    final = await final_of(task)
    assert (final.negotiator, final.held, final.owner) == (heir.id, 1_000, "quarry")
    worker = await network.ledger_worker()
    assert await settled(store, tenant) == [task.id]
    account = await ledger.account(tenant)
    assert (account.balance, account.held) == (1_500 - (final.price or 0), 0)
    await network.stop(worker)
    await network.stop(slow)


async def test_three_negotiators_cannot_overdraw_a_tight_account(
    network: Network, ledger: Ledger, store: Store
) -> None:
    others = [await network.negotiator(), await network.negotiator()]
    worker = await network.ledger_worker()
    tenant = await open_account(network, ledger, 3_200)
    tasks = await asyncio.gather(*(submit(network, tenant) for _ in range(60)))
    ends = [final_of(task) for task in tasks]
    finals = list[Final]()
    for end in asyncio.as_completed(ends):
        finals.append(await end)
        account = await ledger.account(tenant)
        assert account.balance >= 0
        assert account.held <= 3_200
    codes = Counter(final.error.code if final.error else final.status for final in finals)
    assert set(codes) <= {"completed", "no_funds"}
    assert codes["completed"] >= 3
    assert len({final.negotiator for final in finals}) == 3
    await until_released(ledger, tenant)
    spent = sum(final.price or 0 for final in finals)
    assert (await ledger.account(tenant)).balance == 3_200 - spent
    for party in (*others, worker):
        await network.stop(party)


# ---------------------------------------------------------------------- holds that nobody ends


async def test_the_sweep_releases_the_hold_of_a_task_that_is_gone(
    network: Network, ledger: Ledger, store: Store
) -> None:
    worker = await network.ledger_worker()
    tenant = await open_account(network, ledger, 1_000)
    async with Ledger(store.url, clock=lambda: time.time() - 3_600) as earlier:
        await earlier.hold(tenant, "vanished", 700, deadline_s=60)
    await worker.sweep()
    assert (await ledger.account(tenant)).balance == 1_000
    refused = await ledger.hold(tenant, "vanished", 700, deadline_s=60)
    assert refused is not None
    assert refused.code == "task_ended"
    await network.stop(worker)


async def test_the_sweep_leaves_the_hold_of_a_task_that_waits(network: Network, ledger: Ledger, store: Store) -> None:
    worker = await network.ledger_worker()
    brief = network.worker("brief")

    @brief.capability("sift", price=PRICE)
    async def sift(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        return {}

    await network.join(brief)
    await network.stop(brief)
    tenant = await open_account(network, ledger, 1_000)
    task = await network.client.submit("sift", {}, tenant=tenant, id="patient", deadline_s=60)
    async with Ledger(store.url, clock=lambda: time.time() - 3_600) as earlier:
        await earlier.hold(tenant, "patient", 1_000, deadline_s=60)
    await worker.sweep()
    assert (await ledger.account(tenant)).held == 1_000
    assert (tenant, "patient") not in await ledger.due()
    await task.cancel()
    assert (await final_of(task)).status == "cancelled"
    await until_released(ledger, tenant)
    await network.stop(worker)


async def test_the_sweep_settles_what_the_journal_says(network: Network, ledger: Ledger, store: Store) -> None:
    """As when every ledger worker was away for long: the Final counts, not the age of the hold."""
    tenant = await open_account(network, ledger, 1_000)
    async with Ledger(store.url, clock=lambda: time.time() - 3_600) as earlier:
        await earlier.hold(tenant, "late", 1_000, deadline_s=60)
    final = await final_of(await submit(network, tenant, id="late"))
    worker = await network.ledger_worker()
    await worker.sweep()
    assert (await ledger.account(tenant)).balance == 1_000 - (final.price or 0)
    assert await settled(store, tenant) == ["late"]
    await network.stop(worker)


async def test_finals_that_have_expired_do_not_stand_before_others(
    network: Network, ledger: Ledger, store: Store
) -> None:
    tenant = await open_account(network, ledger, 2_000)
    timings = Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0)
    for n in range(20):
        final = Final(
            task=f"old{n}", tenant=tenant, capability="grind", status="failed", held=5, negotiator="n", timings=timings
        )
        headers = {journal.HELD_HEADER: "5", "Nats-TTL": "1s"}
        await network.bus.request(subjects.journal(tenant, f"old{n}", "final"), final.encode(), headers=headers)
    async with asyncio.timeout(PATIENCE_S):
        while await last_of(network.bus, "JOURNAL", subjects.journal(tenant, "*", "final")) is not None:
            continue
    task = await submit(network, tenant)
    await final_of(task)
    worker = await network.ledger_worker()
    assert await settled(store, tenant) == [task.id]
    await network.stop(worker)
