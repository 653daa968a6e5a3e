"""The worker behind the gateway in `bench.gateway`: a function that says again what it is told."""

from __future__ import annotations

from typing import Any

from modelnet import Context, Worker

worker = Worker("echo", slots=512)


@worker.capability("text.generate", model="echo", price=1, expected_ms=1)
async def answer(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
    """The last message."""
    ctx.count(prompt_tokens=3, completion_tokens=3)
    return {"text": input["messages"][-1]["content"], "finish_reason": "stop"}


app = worker.app
