"""The watcher on a real network: what it hears, what it says when something is away, and what it costs at most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.streams import setup_bus
from modelnet.messages import Awarded
from modelnet.settings import Settings
from modelnet.store.ledger import Ledger
from modelnet.watch import Watcher, watcher
from modelnet.watch.tap import Tap
from tests.network.conftest import bare_network, network, store
from tests.network.stage import PATIENCE_S, Network, Store, fast
from tests.watch.test_view import transcript

__all__ = ["bare_network", "network", "store"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def until(watching: Watcher, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first snapshot that is as wanted."""
    async with asyncio.timeout(PATIENCE_S), watching.ticked:
        await watching.ticked.wait_for(lambda: wanted(watching.view.snapshot()))
    return watching.view.snapshot()


def worker_in(snapshot: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A worker's row."""
    return next((row for row in snapshot["workers"]["put"] if row["id"] == name), None)


def status_in(snapshot: dict[str, Any], task: str) -> str | None:
    """A task's status."""
    return next((row["status"] for row in snapshot["tasks"]["put"] if row["task"] == task), None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upper(network: Network) -> Any:
    """A worker."""
    worker = network.worker("watch-upper")

    @worker.capability("watch.upper", price=4)
    async def upper(ctx: Any, input: Any) -> Any:
        return {"text": input["text"].upper()}

    await network.join(worker)
    return worker


async def test_it_sees_a_task_from_its_auction_to_its_end(network: Network, upper: Any) -> None:
    before = await network.client.submit("watch.upper", {"text": "x"})
    await before.result()
    async with Watcher(network.bus, network.config) as watching:
        await until(watching, lambda seen: worker_in(seen, "watch-upper") is not None)
        seen = await until(watching, lambda seen: bool(seen["auctions"]["put"]))
        assert before.id in {row["task"] for row in seen["auctions"]["put"]}  # what came before it
        task = await network.client.submit("watch.upper", {"text": "x"})
        await task.result()

        def ended(seen: dict[str, Any]) -> bool:
            return any(row["task"] == task.id and row["status"] == "completed" for row in seen["tasks"]["put"])

        await until(watching, ended)
        # The one that had ended before is asked for in the journal.
        await until(watching, lambda seen: status_in(seen, before.id) == "completed")
        seen = await until(watching, lambda seen: seen["head"]["tasks_s"] is not None)
        assert seen["head"]["auctions"] >= 2


async def test_a_worker_that_joins_and_leaves_is_seen(network: Network) -> None:
    worker = network.worker("watch-guest")

    @worker.capability("watch.guest", price=4)
    async def guest(ctx: Any, input: Any) -> Any:
        return {}

    async with Watcher(network.bus, network.config) as watching:
        await network.join(worker)
        await until(watching, lambda seen: worker_in(seen, "watch-guest") is not None)
        await network.stop(worker)
        await until(watching, lambda seen: (worker_in(seen, "watch-guest") or {}).get("state") == "left")


async def test_redis_that_is_away_is_told_of_and_comes_back(
    network: Network, upper: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_REDIS_S", 0.1)
    config = network.config.model_copy(update={"redis_url": store.url})
    async with Ledger(store.url) as ledger:
        await ledger.grant("acme", 100, "one")
    async with Watcher(network.bus, config) as watching:
        seen = await until(watching, lambda seen: bool(seen["ledger"]))
        assert seen["ledger"]["accounts"][0]["account"] == "acme"
        await store.kill()
        seen = await until(watching, lambda seen: {"ledger", "reputation"} <= set(seen["head"]["notes"]))
        assert seen["ledger"]["accounts"]  # what was known before
        await store.start()
        await until(watching, lambda seen: not {"ledger", "reputation"} & set(seen["head"]["notes"]))


async def test_a_server_that_is_away_is_told_of_and_nobody_is_lost_for_it(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    try:
        async with Network(fast(server.url)) as network:
            await network.negotiator()
            worker = network.worker("watch-patient")

            @worker.capability("watch.patient", price=4)
            async def patient(ctx: Any, input: Any) -> Any:
                return {}

            await network.join(worker)
            async with Watcher(network.bus, network.config) as watching:
                await until(watching, lambda seen: worker_in(seen, "watch-patient") is not None)
                states = set[str]()

                def away(seen: dict[str, Any]) -> bool:
                    states.add((worker_in(seen, "watch-patient") or {"state": "gone"})["state"])
                    return "bus" in seen["head"]["notes"]

                await server.stop()
                await until(watching, away)
                server = EmbeddedNats(tmp_path, port=server.port)
                await server.start()
                await until(watching, lambda seen: not away(seen) and "streams" not in seen["head"]["notes"])
                task = await network.client.submit("watch.patient", {})
                await task.result()
                await until(watching, lambda seen: any(row["task"] == task.id for row in seen["tasks"]["put"]))
                assert states == {"live"}
            await network.clear()
    finally:
        await server.stop()


async def test_a_tap_hears_no_more_than_it_may(bare_network: Network) -> None:
    heard, last = list[Msg](), asyncio.Event()

    async def end(_: Msg) -> None:
        last.set()

    await bare_network.bus.subscribe("tap.end", cb=end)
    tap = Tap(bare_network.bus, "tap.*.x", heard.append, most=10)
    for round in (1, 2):
        await tap.open_again()
        assert tap.was_full
        last.clear()
        for n in range(1000):
            await bare_network.bus.publish(f"tap.{n}.x")
        await bare_network.bus.publish("tap.end")
        await asyncio.wait_for(last.wait(), PATIENCE_S)
        assert len(heard) == 10 * round
    await tap.close()


async def test_one_message_that_breaks_the_view_ends_nothing(bare_network: Network) -> None:
    heard = asyncio.Event()

    def hear(msg: Msg) -> None:
        if msg.data == b"bad":
            raise ValueError("nobody has foreseen this")
        heard.set()

    tap = Tap(bare_network.bus, "tap.bad", hear, most=10)
    await tap.open_again()
    await bare_network.bus.publish("tap.bad", b"bad")
    await bare_network.bus.publish("tap.bad", b"good")
    await asyncio.wait_for(heard.wait(), PATIENCE_S)
    await tap.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A server of the test's own."""
    server = EmbeddedNats(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.mark.asyncio(loop_scope="function")
async def test_garbage_and_forgeries_show_nothing_and_a_flood_is_a_sample(server: EmbeddedNats) -> None:
    async with Network(Settings(url=server.url, redis_url="redis://127.0.0.1:1/0")) as network:
        await setup_bus(network.bus)
        async with Watcher(network.bus, network.config) as watching:
            await until(watching, lambda seen: seen["head"]["tasks_s"] is not None)
            for subject in ("beat.x", "offer.a.x", "audit.d.t", "result.d.t.t.status", "result.d.t.t.final"):
                for body in (b"", b"\xff", b"[]", b"{}", b'{"kind": "awarded"}', b"x" * 100_000):
                    await network.bus.publish(subject, body)
            forged = transcript("mine")
            await network.bus.publish("audit.other.task", forged.encode())
            awarded = Awarded(task="t", attempt=1, worker="w", price=1, negotiator="n")
            for n in range(20_000):
                told = awarded.model_copy(update={"task": f"t{n}"})
                await network.bus.publish(f"result.d.t{n}.t{n}.status", told.encode())
            await network.bus.flush()
            seen = await until(watching, lambda seen: bool(seen["tasks"]["put"]))
            assert seen["workers"]["put"] == []
            assert seen["auctions"]["put"] == []
            assert len(seen["tasks"]["put"]) <= 100
