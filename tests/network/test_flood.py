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


async def waits(network: Network, tenant: str, task: str) -> None:
    """Wait until the readers of a task have been told that it waits."""
    async with asyncio.timeout(2 * PATIENCE_S):
        async for event in network.client.task(task, tenant=tenant).stream():
            if event.kind == "waiting":
                return
