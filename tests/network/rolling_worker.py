"""A worker that speaks slowly and can go on behind another, for `python -m modelnet.run`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import modelnet

WORDS = [f"word{n} " for n in range(12)]

worker = modelnet.Worker(os.environ.get("ROLLING_NAME", "rolling"), slots=8)


@worker.capability("roll.speak", price=1, continues=True)
async def speak(ctx: modelnet.Context, input: dict[str, Any]) -> AsyncIterator[str]:
    """Words, one each 30 ms."""
    for word in WORDS[len(ctx.resume.text.split()) if ctx.resume else 0 :]:
        yield word
        await asyncio.sleep(0.03)


app = worker.app
