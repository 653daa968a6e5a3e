"""Whether the clients are still there whose tasks end with them."""

from __future__ import annotations

import nats.errors
import structlog
from nats.aio.client import Client

from modelnet.bus import subjects
from modelnet.messages import RollCall

__all__ = ["Clients"]

log = structlog.get_logger("negotiator")

CHANCES = 3
"""Times in a row that nobody may answer for a client before it counts as gone."""

TIMEOUT_S = 1.0


class Clients:
    """Asks them."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._absent: dict[str, int] = {}
        """How many times in a row a client was not there."""

    def keep(self, wanted: set[str]) -> None:
        """Forget all others."""
        self._absent = {client: count for client, count in self._absent.items() if client in wanted}

    async def is_gone(self, client: str) -> bool:
        """Ask once more: whether it has not been there several times in a row."""
        try:
            await self._nc.request(subjects.alive(client), RollCall().encode(), timeout=TIMEOUT_S)
        except nats.errors.NoRespondersError:
            self._absent[client] = count = self._absent.get(client, 0) + 1
            if count < CHANCES:  # it may be reconnecting
                return False
            log.info("client_gone", client=client)
            return True
        except nats.errors.Error:
            return False  # slow or cut off: that is not gone
        self._absent.pop(client, None)
        return False
