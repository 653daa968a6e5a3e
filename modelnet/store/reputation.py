"""The reputation book: every worker's track records, in Redis, for all negotiators.

`reputation:<worker>` is a hash from capability to record. What a record becomes is worked out by the market's own pure
code; the server's part is one function that puts the new record in the old one's place if that is still the one it was
worked out from, and if this outcome was not counted before. So an outcome counts once, however often it is told.
"""

from __future__ import annotations

from typing import cast

from redis.asyncio import Redis

from modelnet.market import Outcome, TrackRecord

__all__ = ["ReputationBook"]

REMEMBERED_S = 7 * 86_400
"""So long an outcome is known to have been counted."""

# KEYS: the worker's records; the mark of this outcome. ARGV: capability, record expected, new record, seconds.
# Returns {1 done, 2 counted before, 0 changed meanwhile} and the record that stands.
_REPLACE = """
local stands = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if redis.call('EXISTS', KEYS[2]) == 1 then return {2, stands} end
if stands ~= ARGV[2] then return {0, stands} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('SET', KEYS[2], '1', 'EX', ARGV[4])
return {1, ARGV[3]}
"""


class ReputationBook:
    """Track records of all workers. Times are seconds since the epoch."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._replace = redis.register_script(_REPLACE)

    async def learn(self, outcome: Outcome, now: float) -> TrackRecord:
        """Count an outcome; the record as it then stands. Harmless twice. Raises `redis.RedisError`."""
        key = f"reputation:{outcome.worker}"
        told = f"{outcome.tenant}:{outcome.task}:{outcome.attempt}:{outcome.source}"
        mark = f"reputation-counted:{outcome.worker}:{outcome.capability}:{told}"
        stands = _text(await self._redis.hget(key, outcome.capability))
        while True:
            record = TrackRecord.decode(stands) if stands else TrackRecord()
            new = record.after(outcome, now)
            done, found = await self._replace(
                keys=[key, mark], args=[outcome.capability, stands, new.encode(), REMEMBERED_S]
            )
            stands = _text(found)
            if done:
                return TrackRecord.decode(stands) if stands else TrackRecord()

    async def of(self, worker: str) -> dict[str, TrackRecord]:
        """A worker's records by capability. Raises `redis.RedisError`."""
        found = await self._redis.hgetall(f"reputation:{worker}")
        return {_text(capability): TrackRecord.decode(record) for capability, record in found.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else cast("str", value or "")
