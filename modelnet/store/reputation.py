"""The reputation book: every worker's track records, in Redis, for all negotiators.

`modelnet:reputation:{<worker>}` is a hash from capability to record, and with `:counted` behind it the set of outcomes
that were counted last. What a record becomes is worked out by the market's own pure code; the server's part is one
function that puts the new record in the old one's place if that is still the one it was worked out from. So no
negotiator overwrites what another has learned, and an outcome counts once, however often it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import structlog
from redis.exceptions import ResponseError

from modelnet.errors import ReputationAway
from modelnet.market import Outcome, TrackRecord
from modelnet.messages import is_capability

from .connection import Store

__all__ = ["Noted", "ReputationBook"]

log = structlog.get_logger("reputation")

COUNTED = 4096
"""So many of a worker's outcomes are known to have been counted: many more than can be told again."""

KEPT_S = 90 * 86_400
"""A worker of whom nothing is heard for so long is forgotten; by then all that was known has faded."""

_PREFIX = "modelnet:reputation:"

# KEYS: the worker's records; its outcomes that were counted. What is not of its type is not ours.
_OPEN = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
if redis.call('TYPE', KEYS[2]).ok ~= 'zset' then redis.call('DEL', KEYS[2]) end
"""

# ARGV: capability, names of outcomes. Returns the record that stands, and for each outcome whether it was counted.
_LOOK = (
    _OPEN
    + """
local found = {redis.call('HGET', KEYS[1], ARGV[1]) or ''}
for n = 2, #ARGV do found[n] = redis.call('ZSCORE', KEYS[2], ARGV[n]) and 1 or 0 end
return found
"""
)

# ARGV: capability, record expected, new record, outcomes to know, seconds to keep, now, names of outcomes.
# Returns whether it was done. A record that still stands has had none of these outcomes since.
_REPLACE = (
    _OPEN
    + """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
for n = 7, #ARGV do redis.call('ZADD', KEYS[2], ARGV[6], ARGV[n]) end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -(ARGV[4] + 1))
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
"""
)


class Noted(NamedTuple):
    """An outcome and when it was seen, in seconds since the epoch."""

    outcome: Outcome
    at: float

    @property
    def name(self) -> str:
        """What it is known by among its worker's."""
        told = self.outcome
        return f"{told.tenant}:{told.task}:{told.attempt}:{told.source}"


class ReputationBook(Store):
    """Track records of all workers. Times are seconds since the epoch. Methods raise `ReputationAway`."""

    away, is_away = ReputationAway, "the reputation book is away"

    def __init__(self, url: str) -> None:
        """Connects when first used. Raises `UsageError` for a malformed URL."""
        super().__init__(url, text=False)

    async def learn(self, noted: Iterable[Noted]) -> dict[tuple[str, str], TrackRecord]:
        """Count outcomes, each once; the records of their workers and capabilities as they then stand."""
        waiting: dict[tuple[str, str], list[Noted]] = {}
        for one in noted:
            waiting.setdefault((one.outcome.worker, one.outcome.capability), []).append(one)
        known: dict[tuple[str, str], TrackRecord] = {}
        while waiting:
            looked = await self._each(
                (_LOOK, worker, [capability, *(one.name for one in told)])
                for (worker, capability), told in waiting.items()
            )
            changes = []
            for (who, told), (stands, *counted) in zip(list(waiting.items()), looked, strict=True):
                known[who] = record = _record(who[0], stands)
                new = {one.name: one for one, was in zip(told, counted, strict=True) if not was}
                if not new:
                    del waiting[who]
                    continue
                for one in new.values():
                    record = record.after(one.outcome, one.at)
                latest = max(one.at for one in new.values())
                arguments = [who[1], stands, record.encode(), COUNTED, KEPT_S, latest, *new]
                changes.append((who, record, arguments))
            done = await self._each((_REPLACE, who[0], arguments) for who, _, arguments in changes)
            for (who, record, _), replaced in zip(changes, done, strict=True):
                if replaced:  # else another negotiator was quicker: look again
                    known[who] = record
                    del waiting[who]
        return known

    async def of(self, workers: Sequence[str]) -> dict[tuple[str, str], TrackRecord]:
        """All records of these workers, by worker and capability."""
        pipeline = self._redis.pipeline(transaction=False)
        for worker in workers:
            pipeline.hgetall(_key(worker))
        found: dict[tuple[str, str], TrackRecord] = {}
        for worker, answer in zip(workers, await self._read(pipeline.execute(raise_on_error=False)), strict=True):
            if isinstance(answer, ResponseError):
                log.warning("records_unreadable", worker=worker, error=str(answer))
                continue
            for name, record in answer.items():
                capability = name.decode(errors="replace")
                if is_capability(capability):
                    found[worker, capability] = _record(worker, record)
        return found

    async def _each(self, calls: Iterable[tuple[str, str, list[Any]]]) -> list[Any]:
        """Run scripts, each for a worker, in one round trip."""
        pipeline, count = self._redis.pipeline(transaction=False), 0
        for script, worker, arguments in calls:
            pipeline.eval(script, 2, _key(worker), f"{_key(worker)}:counted", *arguments)
            count += 1
        answers: list[Any] = await self._read(pipeline.execute(raise_on_error=False)) if count else []
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise ReputationAway(f"Redis at {self._where} does not keep track records: {answer}")
        return answers


def _key(worker: str) -> str:
    return f"{_PREFIX}{{{worker}}}"


def _record(worker: str, kept: bytes) -> TrackRecord:
    """The record in these bytes. What is none counts as nothing known, and is replaced by what is learned next."""
    if not kept:
        return TrackRecord()
    try:
        return TrackRecord.decode(kept)
    except ValueError as error:
        log.warning("record_unreadable", worker=worker, error=str(error)[:200])
        return TrackRecord()
