"""The server's clock: deadlines count from its timestamps, so every process learns its own offset from them."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime

from nats.aio.client import Client

__all__ = ["ServerClock", "parse_timestamp"]

_FRACTION = re.compile(r"\.(\d+)")


def parse_timestamp(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 timestamp; NATS writes nanoseconds, which Python does not parse."""
    text = _FRACTION.sub(lambda m: "." + m.group(1)[:6].ljust(6, "0"), text)
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC).timestamp()


class ServerClock:
    """The server's time, from this process's monotonic clock and an offset measured by a round trip.

    A jump of this machine's wall clock changes nothing.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    async def sync(self, nc: Client) -> None:
        """Measure the offset: of three round trips the shortest counts, halved. Error: half that round trip."""
        best = float("inf")
        for _ in range(3):
            sent = time.monotonic()
            reply = await nc.request("$JS.API.STREAM.INFO.JOURNAL", b"", timeout=5)
            received = time.monotonic()
            stamp = json.loads(reply.data).get("ts")
            if stamp and received - sent < best:
                best = received - sent
                self._offset = parse_timestamp(stamp) - (sent + received) / 2

    def now(self) -> float:
        """Seconds since the epoch on the server's clock."""
        return time.monotonic() + self._offset
