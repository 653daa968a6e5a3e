"""Pull: a durable consumer's messages in batches, each as soon as there is one.

nats-py's `fetch` of several waits until it has all of them or its time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from nats.aio.client import Client
from nats.aio.msg import Msg

__all__ = ["Pull"]

_EXPIRES_S = 20.0
_LOOK_S = 1.0


class Pull:
    """One process's share of a consumer. It asks for more only when all it was given has been taken by `next`."""

    def __init__(self, nc: Client, stream: str, consumer: str, *, most: int = 256) -> None:
        self._nc, self._most = nc, most
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = nc.new_inbox()
        self._arrived: list[Msg] = []
        self._news = asyncio.Event()
        self._open = 0
        """Messages that the request under way may still bring."""
        self._asked_at = 0.0

    async def start(self) -> None:
        """Subscribe. Nothing is asked for before `next`."""
        self._sub = await self._nc.subscribe(self._inbox, cb=self._on_message)

    async def stop(self) -> None:
        """Take no more; what has come and was not taken goes back."""
        if self._nc.is_connected:
            await self._sub.unsubscribe()
            for msg in self._arrived:
                await self._nc.publish(msg.reply, b"-NAK")
        self._arrived.clear()

    def reset(self) -> None:
        """After a reconnect the server has forgotten what was asked for."""
        self._open = 0

    async def next(self) -> list[Msg]:
        """The messages that have come since, one at least: waits for it."""
        while not self._arrived:
            self._news.clear()
            await self._ask()
            # Not wait_for: until Python 3.12 it could swallow the cancellation that ends this loop.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()
        taken, self._arrived = self._arrived, []
        return taken

    async def _ask(self) -> None:
        now = time.monotonic()
        if not self._nc.is_connected or (self._open and now - self._asked_at < _EXPIRES_S + 2):
            return
        self._open, self._asked_at = self._most, now
        body = json.dumps({"batch": self._most, "expires": int(_EXPIRES_S * 1e9)}).encode()
        await self._nc.publish(self._subject, body, reply=self._inbox)

    async def _on_message(self, msg: Msg) -> None:
        status = (msg.headers or {}).get("Status") if msg.subject == self._inbox else None
        if status is None:
            self._open -= 1
            self._arrived.append(msg)
        elif status == "408":
            self._open = 0
        else:  # the consumer is away, as after a restart: asked again, but not in a loop
            self._asked_at = time.monotonic() - _EXPIRES_S - 1
            return
        self._news.set()
