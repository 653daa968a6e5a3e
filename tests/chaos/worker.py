"""A worker of the campaign: quick answers, slow text, a tool, and one that asks others. Each execution is written down.

`python -m tests.chaos.launch tests.chaos.worker:app`; `CHAOS_NAME` is its name, `CHAOS_LOG` the file it appends to: a
line when an execution begins and one when it ends, each in one write, so that kill -9 loses neither.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import modelnet
from tests.chaos import work

Json = dict[str, Any]

worker = modelnet.Worker(os.environ.get("CHAOS_NAME", "chaos"), slots=int(os.environ.get("CHAOS_SLOTS", "12")))
_PAID = "CHAOS_PAID" in os.environ
_PRICE, _DEPOSIT = (20, 150) if _PAID else (1, 0)
"""In micro-credits; where money is paid, enough to see whether a part of it is right."""

_log = os.open(os.environ.get("CHAOS_LOG", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def record(what: str, ctx: modelnet.Context) -> None:
    """Write down that an execution has begun or ended."""
    os.write(_log, f"{what} {ctx.tenant} {ctx.task} {ctx.attempt} {ctx.worker}\n".encode())


@worker.capability("chaos.echo", price=_PRICE, deposit=_DEPOSIT, expected_ms=1)
async def echo(ctx: modelnet.Context, input: Json) -> Json:
    """A text backwards."""
    record("begin", ctx)
    answer = work.echo(input["text"])
    record("end", ctx)
    return answer


@worker.capability("chaos.sum", price=_PRICE, expected_ms=1)
def total(ctx: modelnet.Context, input: Json) -> Json:
    """A sum; a plain function, so it runs in a thread."""
    record("begin", ctx)
    value = sum(input["values"])
    record("end", ctx)
    return {"value": value}


@worker.capability("chaos.story", price=2 * _PRICE, deposit=_DEPOSIT, expected_ms=500, continues=True)
async def story(ctx: modelnet.Context, input: Json) -> AsyncIterator[str]:
    """Words, one by one, behind those that another has said."""
    record("begin", ctx)
    said = len(ctx.resume.text) if ctx.resume else 0
    for word in work.story_words(input["seed"], input["words"]):
        said -= len(word)
        if said >= 0:
            continue
        yield word
        await asyncio.sleep(input["pace_ms"] / 1e3)
    record("end", ctx)


@worker.capability("chaos.chain", price=3 * _PRICE, expected_ms=10)
async def chain(ctx: modelnet.Context, input: Json) -> Json:
    """What another worker answers."""
    record("begin", ctx)
    try:
        answer = await ctx.call("chaos.echo", {"text": input["text"]})
    except modelnet.TaskError as error:
        raise modelnet.Reject(f"the other failed: {error}", code="worker_error", retryable=True) from None
    record("end", ctx)
    return answer


app = worker.app
