"""No herd: negotiators tell one another what they award, so that many at once do not run to the same worker."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from typing import Any, NamedTuple

import pytest

import modelnet
from modelnet.messages import Final
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

TASKS, BURSTS, WORKERS, SLOTS = 500, 3, 8, 4


class Burst(NamedTuple):
    """How many tasks at once went."""

    shares: Counter[str]
    """Tasks by worker."""
    busiest: int
    """Most that one worker ever ran at once."""
    declines: int
    negotiators: set[str]

    @property
    def spread(self) -> float:
        """Coefficient of variation of the workers' shares."""
        counts = [self.shares[f"herd-{n}"] for n in range(WORKERS)]
        return statistics.pstdev(counts) / statistics.mean(counts)


async def burst(network: Network, negotiators: int) -> Burst:
    """Publish many tasks at once to workers that are alike, a few times: one worker's share of one burst is chance."""
    for _ in range(negotiators):
        await network.negotiator()
    running, busiest, shares = Counter[str](), Counter[str](), Counter[str]()
    workers = [network.worker(f"herd-{n}", slots=SLOTS) for n in range(WORKERS)]
    for worker in workers:

        @worker.capability("herd.work", expected_ms=100.0, price=10)
        async def work(ctx: modelnet.Context, input: Json) -> Json:
            running[ctx.worker] += 1
            shares[ctx.worker] += 1
            busiest[ctx.worker] = max(busiest[ctx.worker], running[ctx.worker])
            try:
                await asyncio.sleep(0.1)
            finally:  # an award whose answer is late goes to another, and this one is cancelled
                running[ctx.worker] -= 1
            return {}

    async with network.ear("beat.>") as beats:
        await network.join(*workers)
        await beats.until(lambda heard: len(heard) >= 3 * WORKERS)
    finals: list[Final] = []
    async with network.ear("_INBOX.>") as answers:
        for _ in range(BURSTS):
            tasks = await asyncio.gather(*(network.client.submit("herd.work", {}, deadline_s=60) for _ in range(TASKS)))
            async with asyncio.timeout(2 * PATIENCE_S):
                finals += [await task.result() for task in tasks]
        declines = sum(b'"kind":"decline"' in msg.data for msg in answers.heard)
    assert {final.status for final in finals} == {"completed"}
    await network.clear()
    return Burst(shares, max(busiest.values()), declines, {final.negotiator for final in finals})


async def test_three_negotiators_spread_a_burst_as_one_does(bare_network: Network) -> None:
    one, three = await burst(bare_network, 1), await burst(bare_network, 3)
    assert (len(one.negotiators), len(three.negotiators)) == (1, 3)
    assert max(one.busiest, three.busiest) <= SLOTS
    assert three.spread < one.spread + 0.1, (one, three)
    assert max(three.shares.values()) < 1.1 * max(one.shares.values()), (one, three)
    # One knows what it has awarded itself; of three, some award at the same moment. Without claims and turns two of
    # three awards were declined, by one negotiator's tasks as by three's.
    assert one.declines <= BURSTS * TASKS // 50, one
    assert three.declines <= BURSTS * TASKS // 2, three
