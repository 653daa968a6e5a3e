"""What a client hears of its tasks: those whose ids it made with one subscription, each other with its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nats.errors
import pytest

import modelnet
from modelnet import following
from modelnet.bus import subjects
from modelnet.bus.connection import listen
from modelnet.bus.embedded import EmbeddedNats
from modelnet.following import Listener
from modelnet.messages import new_id
from tests.network.stage import Network, events, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


async def held_up(network: Network, name: str) -> asyncio.Event:
    """A worker that answers once the event is set."""
    worker, go_on = network.worker(name, slots=64), asyncio.Event()

    @worker.capability(f"wait.{name}")
    async def wait(ctx: modelnet.Context, input: Json) -> Json:
        await go_on.wait()
        return input

    await network.join(worker)
    return go_on


def subscriptions(client: modelnet.Client) -> set[str]:
    """Subjects of results that the connection is subscribed to now."""
    return {sub.subject for sub in client.bus._subs.values() if sub.subject.startswith("result.")}


def tenants_heard(client: modelnet.Client) -> set[str]:
    """Tenants among those subjects."""
    return {subject.split(".")[1] for subject in subscriptions(client)}


async def test_all_of_a_clients_tasks_are_heard_with_one_subscription(network: Network) -> None:
    go_on = await held_up(network, "crowd")
    async with modelnet.connect(config=network.config) as client:
        handles = await asyncio.gather(*(client.submit("wait.crowd", {"n": n}) for n in range(30)))
        (subject,) = subscriptions(client)
        assert {subjects.streams_on(handle.tenant, subjects.lane(handle.id)) for handle in handles} == {subject}
        assert len({handle.id for handle in handles}) == 30
        go_on.set()
        finals = await asyncio.gather(*(handle.result() for handle in handles))
        assert [final.output for final in finals] == [{"n": n} for n in range(30)]
        assert subscriptions(client) == {subject}
        assert client.listener._followed == {}


async def test_ids_are_fresh_and_sort_by_time(network: Network) -> None:
    listener, other = Listener(network.bus), Listener(network.bus)
    ids = [listener.new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert {subjects.lane(id) for id in ids} == {subjects.lane(listener.new_id())}
    assert subjects.lane(ids[0]) != subjects.lane(other.new_id())
    assert [id[:12] for id in ids] == sorted(id[:12] for id in ids)


async def test_a_task_whose_id_was_made_elsewhere_has_a_subscription_of_its_own(network: Network) -> None:
    go_on = await held_up(network, "foreign")
    async with modelnet.connect(config=network.config) as client:
        mine, short = new_id(), f"x{new_id()[-3:]}"
        handles = [await client.submit("wait.foreign", {}, id=id) for id in (mine, short)]
        assert subscriptions(client) == {subjects.stream_of("default", id) for id in (mine, short)}
        go_on.set()
        for handle in handles:
            assert (await handle.result()).status == "completed"
        assert subscriptions(client) == set()


async def test_two_readers_of_a_task_and_one_that_leaves(network: Network) -> None:
    go_on = await held_up(network, "pair")
    async with modelnet.connect(config=network.config) as client:
        task = await client.submit("wait.pair", {})
        first, second = client.task(task.id), client.task(task.id)
        leaving = first.stream()
        staying = asyncio.create_task(events(second))
        await anext(leaving)
        await leaving.aclose()
        go_on.set()
        assert [event.kind for event in await staying] == ["awarded", "output", "final"]
        assert (await task.result()).status == "completed"
        assert client.listener._followed == {}


async def test_a_client_is_not_told_of_a_stranger_on_its_lane(network: Network) -> None:
    go_on = await held_up(network, "lane")
    async with modelnet.connect(config=network.config) as client:
        task = await client.submit("wait.lane", {"mine": True})
        stranger = new_id()[:-6] + subjects.lane(task.id)
        told = await network.client.submit("wait.lane", {"mine": False}, id=stranger)
        # Nothing that follows a lane's subject may hurt whoever hears it.
        await client.bus.publish(f"result.default.{subjects.lane(task.id)}.x", b"garbage")
        await client.bus.publish(f"result.default.{subjects.lane(task.id)}.{task.id}.status", b"garbage")
        go_on.set()
        assert (await told.result()).output == {"mine": False}
        seen = await events(task)
        assert [event.kind for event in seen] == ["awarded", "output", "final"]
        assert {event.task for event in seen} == {task.id}


async def test_tenants_without_tasks_are_heard_no_more(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_TENANTS", 2)
    go_on = await held_up(network, "many")
    async with modelnet.connect(config=network.config) as client:
        kept = await client.submit("wait.many", {}, tenant="kept")
        other = await client.submit("wait.many", {}, tenant="other")
        third = await client.submit("wait.many", {}, tenant="third")
        assert tenants_heard(client) == {"kept", "other", "third"}  # each has a reader
        go_on.set()
        assert (await other.result()).status == (await third.result()).status == "completed"
        await (await client.submit("wait.many", {}, tenant="fourth")).result()
        assert tenants_heard(client) == {"kept", "fourth"}
        assert (await kept.result()).status == "completed"


async def test_what_is_left_while_the_server_is_away_is_not_heard_again(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    async with modelnet.connect(server.url) as client:
        alone = await client.listener.follow("default", new_id())
        other = await client.listener.follow("other", client.listener.new_id())
        away = asyncio.Event()

        async def on_disconnect() -> None:
            away.set()

        client.bus._disconnected_cb = on_disconnect
        await server.stop()
        await until(away)
        async with listen(client.bus, "result.heard.>"):
            pass
        await alone.close()
        await other.close()
        assert tenants_heard(client) == {"other"}  # its lane's, to be heard again


async def test_a_subscription_that_fails_leaves_no_reader(network: Network) -> None:
    async with modelnet.connect(config=network.config) as client:
        listener = Listener(client.bus)
    with pytest.raises(nats.errors.ConnectionClosedError):
        await listener.follow("default", listener.new_id())
    assert listener._followed == {}
