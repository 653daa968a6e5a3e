"""When a process could hear nobody. Whoever judges others by their silence leaves that time out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from nats.aio.client import Client

__all__ = ["deaf_times"]

_LATE_S = 0.25
"""An event loop that comes back so much later than it should has heard nobody meanwhile."""


async def deaf_times(nc: Client, every_s: float) -> AsyncGenerator[float]:
    """For ever, once in `every_s` seconds: how many of the seconds since the last time this process was deaf for.

    That is all of them while its connection is lost, and those that it was busy, frozen, or kept from its core for.
    """
    last = time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        now = time.monotonic()
        elapsed_s, last = now - last, now
        late_s = elapsed_s - every_s
        if not nc.is_connected:
            yield elapsed_s
        else:
            yield late_s if late_s > _LATE_S else 0.0
