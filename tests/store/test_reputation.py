"""The reputation book against a real Redis."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from modelnet.bus.embedded import EmbeddedRedis
from modelnet.market import Outcome, TrackRecord, TrackRecords
from modelnet.store.reputation import ReputationBook


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    yield server.url
    await server.stop()


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url)
    yield client
    await client.aclose()


def outcome(n: int, *, passed: bool = True) -> Outcome:
    return Outcome("w", "a.b", f"k{n}", 1, "checker", passed, 10, 10, (100.0, 150.0), 100.0 + n, n % 4, "t")


async def test_it_keeps_what_the_market_works_out(redis: Redis) -> None:
    book, local, chance = ReputationBook(redis), TrackRecords(), random.Random(1)
    for n in range(40):
        one = outcome(n, passed=chance.random() < 0.8)
        assert await book.learn(one, n * 1000.0) == local.learn(one, n * 1000.0)
    assert await book.of("w") == {"a.b": local.of("w", "a.b")}
    assert await book.of("nobody") == {}


async def test_an_outcome_counts_once(redis: Redis) -> None:
    book = ReputationBook(redis)
    first = await book.learn(outcome(1), 0.0)
    assert await book.learn(outcome(1), 5.0) == first
    audited = replace(outcome(1), source="audit")  # another finding on the same attempt
    assert (await book.learn(audited, 5.0)).reputation.passed == 2
    assert (await book.learn(replace(outcome(1), tenant="other"), 5.0)).reputation.passed == 3


async def test_none_is_lost_among_many_negotiators(redis: Redis) -> None:
    async def negotiator(book: ReputationBook) -> None:
        for n in range(50):
            await book.learn(outcome(n), 0.0)

    await asyncio.gather(*(negotiator(ReputationBook(redis)) for _ in range(4)))
    record = (await ReputationBook(redis).of("w"))["a.b"]
    assert record.reputation.passed == record.calibration.count == 50
    assert record.reputation.good == pytest.approx(50)


def test_what_is_no_record_says_so() -> None:
    assert TrackRecord.decode(TrackRecord().encode()) == TrackRecord()
    for text in ("{}", "[]", '{"reputation": {"x": 1}, "calibration": {}}', "nonsense"):
        with pytest.raises(ValueError, match=r"."):
            TrackRecord.decode(text)


async def test_the_command_explains_it(url: str, redis: Redis) -> None:
    book = ReputationBook(redis)
    for n in range(20):
        await book.learn(outcome(n, passed=n > 1), time.time())

    async def modelnet(*arguments: str) -> str:
        command = [sys.executable, "-c", "from modelnet.cli import main; main()", "reputation", *arguments]
        env = {**os.environ, "MODELNET_REDIS_URL": url}
        done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = json.loads(await modelnet("w", "--json"))
    assert (found["passed"], found["failed"]) == (18, 2)
    assert found["cases"] == pytest.approx(20, abs=0.1)
    assert found["time_bias"] == pytest.approx(1.1, abs=0.1)
    assert 0 < found["quality"] < found["mean_quality"] < 1
    assert "a.b" in await modelnet("w")
    assert "newcomer" in await modelnet("nobody")
