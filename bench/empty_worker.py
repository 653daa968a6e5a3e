"""A bidder whose work is empty, as a modelnet worker. `EMPTY_NUMBER` tells bidders apart."""

from __future__ import annotations

import os
from typing import Any

from modelnet import Worker

_number = os.environ.get("EMPTY_NUMBER", "0")
worker = Worker(f"empty-{_number}", slots=1024)


@worker.capability("bench.empty", contract={"input": {"type": "object"}}, price=int(_number) + 1, expected_ms=1)
async def answer(ctx: Any, input: dict[str, Any]) -> dict[str, int]:
    """Nothing at all."""
    return {"out": 1}


app = worker.app
