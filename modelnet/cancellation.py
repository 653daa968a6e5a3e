"""Cancellations that other people's code swallows, made to hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["heeding_cancellation"]

T = TypeVar("T")


async def heeding_cancellation(answer: Awaitable[T]) -> T:
    """What is awaited; and a cancellation that came meanwhile is raised, if that has swallowed it.

    `asyncio.wait_for` before Python 3.12 does so where a cancellation meets a result: nats-py and redis-py use it.
    A task that then goes on as if nothing had been asked of it may do so for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await answer
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
