"""The other negotiators, by their beats: who is alone need not tell anybody what it awards."""

from __future__ import annotations

import time

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import subjects
from modelnet.bus.hearing import deaf_times
from modelnet.messages import NegotiatorBeat

__all__ = ["Company"]

log = structlog.get_logger("negotiator")


class Company:
    """Tells that this negotiator is there, and hears who else is."""

    def __init__(self, nc: Client, *, negotiator: str, beat_s: float, lost_after_s: float) -> None:
        self._nc, self._negotiator = nc, negotiator
        self._beat_s, self._lost_after_s = beat_s, lost_after_s
        self._heard: dict[str, float] = {}
        self._settled_at = time.monotonic() + lost_after_s

    @property
    def alone(self) -> bool:
        """Whether nobody else has been heard for as long as beats may be missing."""
        return not self._heard and time.monotonic() >= self._settled_at

    async def open(self) -> None:
        """Hear the others, and let them know."""
        await self._nc.subscribe(subjects.negotiator_beat("*"), cb=self._hear)
        await self._tell()

    async def keep(self) -> None:
        """Beat, and forget who is gone, for ever."""
        async for deaf_s in deaf_times(self._nc, self._beat_s):
            await self._tell()
            now = time.monotonic()
            heard = {who: at + deaf_s for who, at in self._heard.items()}
            self._heard = {who: at for who, at in heard.items() if now - at < self._lost_after_s}

    async def close(self) -> None:
        """Let the others know that it goes."""
        await self._tell(leaving=True)

    async def _tell(self, *, leaving: bool = False) -> None:
        if self._nc.is_connected:
            beat = NegotiatorBeat(negotiator=self._negotiator, leaving=leaving)
            await self._nc.publish(subjects.negotiator_beat(self._negotiator), beat.encode())

    async def _hear(self, msg: Msg) -> None:
        try:
            beat = NegotiatorBeat.decode(msg.data)
        except ValidationError:
            log.warning("negotiator_beat_malformed", subject=msg.subject)
            return
        if beat.negotiator == self._negotiator or msg.subject != subjects.negotiator_beat(beat.negotiator):
            return
        if beat.leaving:
            self._heard.pop(beat.negotiator, None)
        else:
            self._heard[beat.negotiator] = time.monotonic()
