"""A subscription that hears so many messages a second at most, and none of the rest of that second."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from modelnet.bus.connection import unsubscribe

__all__ = ["Tap"]

log = structlog.get_logger("watch")


class Tap:
    """Calls `hear` for each message. Having heard enough it unsubscribes: the rest costs nothing, here or on the way.

    `open_again` is called once a second by whoever holds it.
    """

    def __init__(self, nc: Client, subject: str, hear: Callable[[Msg], None], *, most: int) -> None:
        """`most`: messages a second."""
        self._nc, self._subject, self._hear, self._most = nc, subject, hear, most
        self._heard = 0
        self._sub: Subscription | None = None
        self.was_full = False
        """Whether not all of the last second was heard."""

    async def open_again(self) -> None:
        """Begin a second. Raises `nats.errors.Error`."""
        self.was_full, self._heard = self._sub is None, 0
        if self._sub is None:
            self._sub = await self._nc.subscribe(self._subject, cb=self._take)

    async def close(self) -> None:
        """Hear nothing any more."""
        sub, self._sub = self._sub, None
        if sub is not None:
            await unsubscribe(sub)

    async def _take(self, msg: Msg) -> None:
        if self._sub is None:
            return  # it was on its way
        self._heard += 1
        try:
            self._hear(msg)
        except Exception as error:  # one message that nobody has foreseen must not end a subscription
            log.warning("message_not_shown", subject=msg.subject, error=repr(error))
        if self._heard >= self._most:
            await self.close()
