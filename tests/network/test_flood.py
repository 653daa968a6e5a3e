"""A flood of one tenant's tasks: others', and urgent ones, are served in turn, wherever they stand in the stream."""

from __future__ import annotations

import asyncio

import pytest

from modelnet.bus.subjects import BUCKETS
from tests.network.stage import PATIENCE_S, Network
from tests.network.test_waiting import Desk

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLOOD = 600
HELD = 32


def bucket(tenant: str) -> int:
    """Where the server's partition function puts a tenant: FNV-1a of 32 bits."""
    found = 2166136261
    for byte in tenant.encode():
        found = (found ^ byte) * 16777619 % 2**32
    return found % BUCKETS


def tenant_in(wanted: int, *, other_than: str) -> str:
    """A tenant of this bucket."""
    names = (f"tenant-{n}" for n in range(1000))
    return next(name for name in names if bucket(name) == wanted and name != other_than)


@pytest.mark.parametrize("same_bucket", [True, False])
async def test_a_flood_starves_neither_other_tenants_nor_urgent_tasks(bare_network: Network, same_bucket: bool) -> None:
    network, name = bare_network, f"flood-{same_bucket}".lower()
    negotiator = await network.negotiator(max_in_flight=HELD)
    desk = Desk(network, name, slots=2)
    await network.join(desk.worker)
    flood = [
        await network.client.submit(f"desk.{name}", {"n": "flood"}, tenant="flood", follow=False) for _ in range(FLOOD)
    ]
    await desk.until_begun(2)
    other = tenant_in((bucket("flood") + (not same_bucket)) % BUCKETS, other_than="flood")
    few = [await network.client.submit(f"desk.{name}", {"n": "few"}, tenant=other) for _ in range(2)]
    urgent = await network.client.submit(f"desk.{name}", {"n": "urgent"}, tenant="flood", priority=9)
    await asyncio.gather(*(waits(network, task.tenant, task.id) for task in (*few, urgent)))
    assert negotiator._reception._intake.held <= HELD * 1.25
    desk.let(12)
    await desk.until_begun(14)
    served = desk.begun[2:14]
    assert "urgent" in served[:3], served
    assert served.count("few") == 2, served
    desk.let(FLOOD)
    async with asyncio.timeout(3 * PATIENCE_S):
        for task in flood:
            assert (await network.client.task(task.id, tenant="flood").final()).status == "completed"
    assert desk.most == 2
    await network.stop(negotiator)


async def test_what_workers_are_at_takes_no_place_of_what_waits(bare_network: Network) -> None:
    network = bare_network
    negotiator = await network.negotiator(max_in_flight=4)  # three of a tenant's
    desk = Desk(network, "wide", slots=12)
    await network.join(desk.worker)
    tasks = [await network.client.submit("desk.wide", {"n": n}, follow=False) for n in range(14)]
    await desk.until_begun(12)
    at_work = {task for _, task, _ in desk.worker._attempts}
    for task in tasks:
        if task.id not in at_work:
            await waits(network, task.tenant, task.id)
    assert desk.most == 12
    desk.let(14)
    async with asyncio.timeout(PATIENCE_S):
        for task in tasks:
            assert (await network.client.task(task.id).final()).status == "completed"
        while negotiator._hand.all():  # the last acknowledgement
            await network.bus.flush()
    assert negotiator._reception._intake.held == 0
    await network.stop(negotiator)


async def test_what_workers_are_at_is_bounded_too(bare_network: Network) -> None:
    network = bare_network
    negotiator = await network.negotiator(max_in_flight=4, max_at_work=2)
    desk = Desk(network, "bounded", slots=12)
    await network.join(desk.worker)
    tasks = [await network.client.submit("desk.bounded", {"n": "many"}, follow=False) for _ in range(9)]
    await desk.until_begun(5)  # two, and three of a tenant in places of what waits
    tasks.append(await network.client.submit("desk.bounded", {"n": "other"}, tenant="other", follow=False))
    await desk.until_begun(6)
    assert desk.begun == ["many"] * 5 + ["other"]
    assert negotiator._reception._intake.held <= 4
    desk.let(10)
    async with asyncio.timeout(2 * PATIENCE_S):
        for task in tasks:
            assert (await network.client.task(task.id, tenant=task.tenant).final()).status == "completed"
    await network.stop(negotiator)


async def waits(network: Network, tenant: str, task: str) -> None:
    """Wait until the readers of a task have been told that it waits."""
    async with asyncio.timeout(2 * PATIENCE_S):
        async for event in network.client.task(task, tenant=tenant).stream():
            if event.kind == "waiting":
                return
