"""Workers of bench/backlog.py: each has a capability of its own, and sleeps for every task."""

from __future__ import annotations

import asyncio
from typing import Any

from modelnet import Worker, worker_app

SHAPES = ((1, 20), (4, 20), (16, 50))
"""Slots, and ms that a task takes."""
BACKLOGS = (0, 1, 2, 4, 8)


def sleeper(slots: int, ms: int, backlog: int) -> Worker:
    """One of them."""
    worker = Worker(f"sleeper-{slots}-{ms}-{backlog}", slots=slots, backlog=backlog)

    @worker.capability(f"bench.s{slots}.m{ms}.b{backlog}", contract={"input": {"type": "object"}}, expected_ms=ms)
    async def answer(ctx: Any, input: dict[str, Any]) -> dict[str, int]:
        await asyncio.sleep(ms / 1e3)
        return {"out": 1}

    return worker


app = worker_app(*(sleeper(slots, ms, backlog) for slots, ms in SHAPES for backlog in BACKLOGS))
