"""A worker to be killed: `python -m modelnet.run tests.network.lone_worker:app` says five words, then nothing more."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import modelnet

WORDS = ["one ", "two ", "three ", "four ", "five "]

worker = modelnet.Worker(os.environ.get("LONE_NAME", "lone"), slots=2)


@worker.capability("lone.speak", price=1)
async def speak(ctx: modelnet.Context, input: dict[str, Any]) -> AsyncIterator[str]:
    """Words, one by one, then silence."""
    for word in WORDS:
        yield word
    await asyncio.Event().wait()


@worker.capability("lone.count", price=1, continues=True)
async def count(ctx: modelnet.Context, input: dict[str, Any]) -> AsyncIterator[str]:
    """The numbers from where another stopped, five of them, then silence."""
    begun = len(ctx.resume.text.split()) if ctx.resume else 0
    for number in range(begun + 1, begun + 6):
        yield f"{number} "
    await asyncio.Event().wait()


@worker.capability("lone.die", price=1)
async def die(ctx: modelnet.Context, input: dict[str, Any]) -> None:
    """Take the whole process along."""
    os.kill(os.getpid(), signal.SIGKILL)


app = worker.app
