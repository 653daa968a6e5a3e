"""A worker of 16 slots that takes 5 ms for a task, without using the processor."""

from __future__ import annotations

import asyncio
from typing import Any

from modelnet import Worker

worker = Worker("slow", slots=16)


@worker.capability("bench.slow", contract={"input": {"type": "object"}}, price=1, expected_ms=5)
async def answer(ctx: Any, input: dict[str, Any]) -> dict[str, int]:
    """Nothing, a little later."""
    await asyncio.sleep(0.005)
    return {"out": 1}


app = worker.app
