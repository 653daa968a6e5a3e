"""What all stores have in common: a connection to Redis, and one script of operations by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, ClassVar, Self

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from modelnet.cancellation import heeding_cancellation
from modelnet.errors import ModelnetError, UsageError

__all__ = ["ScriptedStore", "Store"]

TIMEOUT_S = 2.0
CONNECTIONS = 16


class Store:
    """A connection, made when first used."""

    away: ClassVar[type[ModelnetError]]
    """Raised by every method while Redis is away."""
    is_away: ClassVar[str]
    """What that means, for people."""

    def __init__(self, url: str, *, text: bool = True) -> None:
        """`text`: answers are decoded. Raises `UsageError` for a malformed URL."""
        self._where = url.rpartition("//")[2].rpartition("@")[2]  # a password may stand before it
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=TIMEOUT_S,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                decode_responses=text,
                # Once, at once: that is for connections which a restart of the server has broken.
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise UsageError(f"MODELNET_REDIS_URL {self._where!r} is no Redis URL: {error}") from None
        self._redis: Redis = Redis.from_pool(pool)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def _read(self, answer: Awaitable[Any]) -> Any:
        try:
            return await heeding_cancellation(answer)
        except (RedisError, OSError) as error:
            first = (str(error).splitlines() or [repr(error)])[0]
            raise self.away(f"{self.is_away}: Redis at {self._where} says: {first}") from error


class ScriptedStore(Store):
    """One whose every change is an operation of a script: whole, or not at all."""

    script: ClassVar[str]
    """Its file, beside this one."""
    prefix: ClassVar[str]
    """What all its keys begin with; the braces keep them on one server of a cluster."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        """`clock`: seconds since the epoch, instead of the server's own. Raises `UsageError` for a malformed URL."""
        super().__init__(url)
        text = files(__package__).joinpath(self.script).read_text(encoding="utf-8")
        self._script, self._clock = self._redis.register_script(text), clock

    async def _call(self, operation: str, *args: str | int) -> Any:
        now = "" if self._clock is None else int(self._clock() * 1e3)
        return await self._read(self._script(keys=[self.prefix], args=[operation, now, *args]))
