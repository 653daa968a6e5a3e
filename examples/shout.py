"""A worker that streams: `modelnet work examples/shout.py`. `worker.mjs` is the same in JavaScript."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from modelnet import Context, Worker

worker = Worker("shouter", slots=2, backlog=1)

CONTRACT = {
    "input": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "minLength": 1},
            "pause_ms": {"type": "integer", "minimum": 0, "maximum": 10_000, "x-public": True},
        },
        "required": ["text"],
        "additionalProperties": False,
    },
    "output": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}


@worker.capability("text.shout", contract=CONTRACT, price=2, continues=True, expected_ms=10)
async def shout(ctx: Context, input: dict[str, Any]) -> AsyncIterator[str]:
    """The text in capital letters, word by word."""
    pause_s = input.get("pause_ms", 30) / 1000
    begun = len(ctx.resume.text) if ctx.resume else 0
    for word in re.findall(r"\S*\s*", input["text"].upper()[begun:])[:-1]:
        yield word
        await asyncio.sleep(pause_s)


app = worker.app
