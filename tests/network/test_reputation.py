"""What one negotiator learns of a worker reaches the others, whatever befalls Redis meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import pytest
from nats.aio.msg import Msg
from redis.asyncio import Redis

import modelnet
from modelnet.bus import subjects
from modelnet.bus.clock import ServerClock
from modelnet.bus.embedded import EmbeddedNats
from modelnet.market import Outcome, TrackRecord, TrackRecords
from modelnet.messages import Transcript
from modelnet.store.reputation import Noted, ReputationBook
from tests.network.stage import PATIENCE_S, Network, Store, fast
from workers.negotiator.archive import Archive

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


class Party:
    """A negotiator's records and its archive."""

    def __init__(self, url: str, *live: str) -> None:
        self.records = TrackRecords()
        self.archive = Archive(self.records, ServerClock(), url, live=lambda: live)

    def passed(self, worker: str) -> int:
        return self.records.of(worker, "a.b").reputation.passed


def outcome(worker: str, n: int) -> Outcome:
    return Outcome(worker, "a.b", f"k{n}", 1, "checker", True, 10, 10, (100.0, 150.0), 120.0, 0, "t")


def ends_on(subject: str) -> Callable[[list[Msg]], bool]:
    """Whether the last message heard came on a subject."""
    return lambda heard: bool(heard) and heard[-1].subject == subject


async def test_an_outcome_reaches_the_other_negotiators(store: Store) -> None:
    one, other = Party(store.url), Party(store.url)
    other.archive.meet("mover")
    await other.archive.work()
    assert other.passed("mover") == 0
    for n in range(3):
        one.archive.learn(outcome("mover", n))
    assert one.passed("mover") == 3, "at once for the one who has seen it"
    await one.archive.work()
    other.archive.meet("mover")
    await other.archive.work()
    assert other.passed("mover") == one.passed("mover") == 3
    for party in (one, other):
        record = party.records.of("mover", "a.b")
        assert record.reputation.at == pytest.approx(time.monotonic(), abs=5.0)
        assert record.calibration.at == pytest.approx(time.monotonic(), abs=5.0)
        await party.archive.close()


async def test_two_that_learn_at_the_same_time_merge(store: Store) -> None:
    parties = [Party(store.url, "merged"), Party(store.url, "merged")]
    for n in range(40):
        parties[n % 2].archive.learn(outcome("merged", n))
    await asyncio.gather(*(party.archive.work() for party in parties))
    for party in parties:
        party.archive.meet("merged")
        await party.archive.work()
        assert party.passed("merged") == 40
        await party.archive.close()


async def test_what_is_known_of_the_living_is_read_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.negotiator.archive.REFRESH_S", 0.0)
    one, other = Party(store.url), Party(store.url, "fresh")
    one.archive.learn(outcome("fresh", 1))
    await one.archive.work()
    other.archive.learn(outcome("elsewhere", 1))
    await other.archive.work()
    assert other.passed("fresh") == 1
    await one.archive.close()
    await other.archive.close()


async def test_nothing_is_lost_while_redis_is_away(store: Store) -> None:
    party, late = Party(store.url), Party(store.url)
    party.archive.learn(outcome("patient", 1))
    await party.archive.work()
    await store.kill()
    for n in range(2, 5):
        party.archive.learn(outcome("patient", n))
    await party.archive.work()
    assert party.archive.pending == 3
    assert party.passed("patient") == 4, "it goes on with what it knows"
    late.archive.meet("patient")
    await late.archive.work()
    assert late.passed("patient") == 0
    await store.start()
    await party.archive.work()
    assert party.archive.pending == 0
    await late.archive.work()
    assert late.passed("patient") == party.passed("patient") == 4
    await party.archive.close()
    await late.archive.close()


async def test_what_waits_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.negotiator.archive.MOST_PENDING", 10)
    party = Party(store.url)
    for n in range(25):
        party.archive.learn(outcome("busy", n))
    assert party.archive.pending == 10
    assert party.passed("busy") == 25
    await party.archive.close()
    async with ReputationBook(store.url) as book:
        assert (await book.of(["busy"]))["busy", "a.b"].reputation.passed == 10


async def test_garbage_in_the_book_is_survived(store: Store) -> None:
    async with Redis.from_url(store.url) as redis:
        await redis.hset("modelnet:reputation:{dirty}", "a.b", b"\xff[[[")
        await redis.set("modelnet:reputation:{odd}", "x")
    party = Party(store.url)
    for worker in ("dirty", "odd"):
        party.archive.meet(worker)
        await party.archive.work()
        party.archive.learn(replace(outcome(worker, 1)))
        await party.archive.work()
        assert (party.archive.pending, party.passed(worker)) == (0, 1)
    await party.archive.close()


async def test_a_negotiator_that_comes_later_knows_the_workers(nats_server: EmbeddedNats, store: Store) -> None:
    async with Network(fast(nats_server.url, redis_url=store.url)) as network:
        first = await network.negotiator()
        worker = network.worker("known", slots=4)

        @worker.capability("known.work", price=10)
        async def work(ctx: modelnet.Context, input: Json) -> Json:
            return {}

        await network.join(worker)
        for _ in range(12):
            await (await network.client.submit("known.work", {})).result()
        await network.stop(first)
        second = await network.negotiator()
        async with network.ear("audit.>") as audits:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    task = await network.client.submit("known.work", {})
                    await task.result()
                    heard = await audits.until(ends_on(subjects.audit("default", task.id)))
                    (bid,) = Transcript.decode(heard[-1].data).bids
                    if bid.cases > 2:  # it looks the worker up beside its work: the first auction may be too early
                        break
        assert bid.expected_p50_ms > 0
        await network.stop(second)
        async with ReputationBook(store.url) as book:
            assert (await book.of(["known"]))["known", "known.work"].reputation.passed >= 13


async def test_a_write_comes_to_an_end_though_outcomes_keep_coming() -> None:
    """What comes while the book is written goes with the next tick: else a busy negotiator writes without a rest."""
    negotiator = Party("redis://127.0.0.1:9")
    written: list[int] = []

    class Book:
        async def learn(self, noted: Iterable[Noted]) -> dict[tuple[str, str], TrackRecord]:
            written.append(len(list(noted)))
            negotiator.archive.learn(outcome("endless", len(written)))
            return {}

    negotiator.archive._book = cast("ReputationBook", Book())
    for n in range(3):
        negotiator.archive.learn(outcome("endless", 100 + n))
    await asyncio.wait_for(negotiator.archive.work(), PATIENCE_S)
    assert (written, negotiator.archive.pending) == ([3], 1)
