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
from modelnet.errors import ReputationAway, UsageError
from modelnet.market import Outcome, TrackRecord, TrackRecords
from modelnet.store.reputation import COUNTED, Noted, ReputationBook


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    yield server.url
    await server.stop()


@pytest.fixture
async def book(url: str) -> AsyncIterator[ReputationBook]:
    async with ReputationBook(url) as book:
        yield book


def outcome(n: int, *, passed: bool = True) -> Outcome:
    return Outcome("w", "a.b", f"k{n}", 1, "checker", passed, 10, 10, (100.0, 150.0), 100.0 + n, n % 4, "t")


async def learn(book: ReputationBook, told: Outcome, at: float) -> TrackRecord:
    return (await book.learn([Noted(told, at)]))[told.worker, told.capability]


async def test_it_keeps_what_the_market_works_out(book: ReputationBook) -> None:
    local, chance = TrackRecords(), random.Random(1)
    for n in range(40):
        one = outcome(n, passed=chance.random() < 0.8)
        assert await learn(book, one, n * 1000.0) == local.learn(one, n * 1000.0)
    assert await book.of(["w", "nobody"]) == {("w", "a.b"): local.of("w", "a.b")}


async def test_many_at_once_are_as_one_after_another(book: ReputationBook) -> None:
    chance = random.Random(2)
    told = [replace(outcome(n), worker=chance.choice("uvw"), capability=chance.choice(["a.b", "c"])) for n in range(99)]
    local = TrackRecords()
    for n, one in enumerate(told):
        local.learn(one, float(n))
    known = await book.learn(Noted(one, float(n)) for n, one in enumerate(told))
    assert len(known) == 6
    assert known == {who: local.of(*who) for who in known} == await book.of(["u", "v", "w"])
    assert await book.learn([]) == {}
    assert await book.of([]) == {}


async def test_an_outcome_counts_once(book: ReputationBook) -> None:
    first = await learn(book, outcome(1), 0.0)
    assert await learn(book, outcome(1), 5.0) == first
    audited = replace(outcome(1), source="audit")  # another finding on the same attempt
    assert (await learn(book, audited, 5.0)).reputation.passed == 2
    twice = [Noted(replace(outcome(1), tenant="other"), 5.0)] * 2
    assert (await book.learn([*twice, Noted(outcome(1), 6.0)]))["w", "a.b"].reputation.passed == 3


async def test_what_was_counted_is_not_remembered_for_ever(url: str, book: ReputationBook) -> None:
    for start in range(0, COUNTED + 1000, 1000):
        await book.learn(Noted(outcome(n), float(n)) for n in range(start, start + 1000))
    async with Redis.from_url(url) as redis:
        assert await redis.zcard("modelnet:reputation:{w}:counted") == COUNTED
        assert await redis.ttl("modelnet:reputation:{w}") > 0
        assert await redis.ttl("modelnet:reputation:{w}:counted") > 0


async def test_none_is_lost_among_many_negotiators(url: str, book: ReputationBook) -> None:
    async def negotiator(name: str) -> None:
        async with ReputationBook(url) as mine:
            for n in range(50):
                await learn(mine, replace(outcome(n), tenant=name), 0.0)
                await learn(mine, outcome(n), 0.0)  # which all of them have seen

    await asyncio.gather(*(negotiator(f"n{n}") for n in range(4)))
    record = (await book.of(["w"]))["w", "a.b"]
    assert record.reputation.passed == record.calibration.count == 250
    assert record.reputation.good == pytest.approx(250)


SOUND = json.loads(TrackRecord().encode())


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense",
        b"\xff\x00",
        b"[" * 100_000,
        json.dumps(SOUND | {"reputation": SOUND["reputation"] | {"good": "much"}}).encode(),
        json.dumps(SOUND | {"reputation": SOUND["reputation"] | {"good": float("nan")}}).encode(),
        json.dumps(SOUND | {"reputation": SOUND["reputation"] | {"bad": -1}}).encode(),
        json.dumps(SOUND | {"reputation": SOUND["reputation"] | {"at": 1e300}}).encode(),
        json.dumps(SOUND | {"calibration": SOUND["calibration"] | {"loads": []}}).encode(),
        json.dumps(
            SOUND | {"calibration": SOUND["calibration"] | {"overall": {"count": 1, "bias": 1e9, "variance": 0}}}
        ).encode(),
    ],
)
async def test_garbage_counts_as_nothing_known(url: str, book: ReputationBook, garbage: bytes) -> None:
    async with Redis.from_url(url) as redis:
        await redis.hset("modelnet:reputation:{w}", mapping={"a.b": garbage, b"\xff": garbage, "x y": "1"})
        assert await book.of(["w"]) == {("w", "a.b"): TrackRecord()}
        assert (await learn(book, outcome(1), 1.0)).reputation.passed == 1
        assert (await book.of(["w"]))["w", "a.b"].reputation.passed == 1


async def test_keys_of_another_type_are_replaced(url: str, book: ReputationBook) -> None:
    async with Redis.from_url(url) as redis:
        await redis.set("modelnet:reputation:{w}", "text")
        await redis.rpush("modelnet:reputation:{w}:counted", "text")
        await learn(book, replace(outcome(1), worker="v"), 1.0)
        assert set(await book.of(["w", "v"])) == {("v", "a.b")}
        assert (await learn(book, outcome(1), 1.0)).reputation.passed == 1


async def test_whoever_is_away_is_named_without_a_password() -> None:
    async with ReputationBook("redis://:secret@127.0.0.1:1/0") as book:
        with pytest.raises(ReputationAway, match=r"^(?!.*secret).*127\.0\.0\.1:1/0"):
            await book.of(["w"])
        with pytest.raises(ReputationAway):
            await learn(book, outcome(1), 1.0)
    with pytest.raises(UsageError, match=r"^(?!.*secret)"):
        ReputationBook("nonsense://:secret@x")


def test_a_record_goes_from_clock_to_clock() -> None:
    record = TrackRecord().after(outcome(1), 100.0)
    there = record.on_clock(1e9, 2e9)
    assert (there.reputation.at, there.calibration.at) == (1e9 + 100, 1e9 + 100)
    assert there.on_clock(-1e9, 200.0) == record
    assert there.on_clock(-1e9, 50.0).reputation.at == 50.0, "a clock that is ahead has seen nothing of the future"


def test_what_is_no_record_says_so() -> None:
    assert TrackRecord.decode(TrackRecord().encode()) == TrackRecord()
    for text in ("{}", "[]", '{"reputation": {"x": 1}, "calibration": {}}', "nonsense"):
        with pytest.raises(ValueError, match=r"."):
            TrackRecord.decode(text)


async def test_the_command_explains_it(url: str, book: ReputationBook) -> None:
    await book.learn(Noted(outcome(n, passed=n > 1), time.time()) for n in range(20))

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
