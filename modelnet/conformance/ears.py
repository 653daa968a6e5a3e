"""What the kit hears on the bus: one subscription's messages, kept in order and waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from nats.aio.client import Client
from nats.aio.msg import Msg

__all__ = ["Ear"]


class Ear:
    """`async with Ear(bus, subject) as ear:` keeps all that comes."""

    def __init__(self, bus: Client, subject: str) -> None:
        self.heard: list[Msg] = []
        self._bus, self._subject = bus, subject
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._sub = await self._bus.subscribe(self._subject, cb=self._hear)
        await self._bus.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._bus.is_connected:
            await self._sub.unsubscribe()

    async def _hear(self, msg: Msg) -> None:
        self.heard.append(msg)
        self._news.set()

    async def first(
        self, within_s: float, wanted: Callable[[Msg], bool] = lambda _: True, since: int = 0
    ) -> Msg | None:
        """The first message that is wanted, of those heard from position `since` on; None if none comes in time."""
        seen = since
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    self._news.clear()
                    for msg in self.heard[seen:]:
                        seen += 1
                        if wanted(msg):
                            return msg
                    await self._news.wait()
        return None

    async def quiet(self, for_s: float, unwanted: Callable[[Msg], bool] = lambda _: True) -> Msg | None:
        """Listen for so long: the first unwanted message from now on, or None."""
        return await self.first(for_s, unwanted, since=len(self.heard))
