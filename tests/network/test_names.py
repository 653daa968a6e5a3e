"""Who is on the network: ids of workers, what clients see of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import modelnet
from modelnet.bus.catalogue import Catalogue
from modelnet.messages import WorkerCard
from tests.network.stage import Network

pytestmark = pytest.mark.asyncio(loop_scope="module")


def named(network: Network, name: str, **options: Any) -> modelnet.Worker:
    """A worker that can do one thing."""
    worker = network.worker(name, **options)

    @worker.capability(f"say.{name}", price=3, model=f"model-of-{name}")
    async def say(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        return {"by": ctx.worker}

    return worker


async def test_a_second_worker_of_a_name_gets_a_number(network: Network) -> None:
    first, second = named(network, "twin"), named(network, "twin")
    await network.join(first)
    await network.join(second)
    assert (first.id, second.id) == ("twin", "twin-2")
    final = await (await network.client.submit("say.twin", {}, require={"worker": "twin-2"})).result()
    assert final.output == {"by": "twin-2"}


async def test_of_many_that_start_at_once_each_gets_an_id_of_its_own(network: Network) -> None:
    crowd = [named(network, "crowd") for _ in range(5)]
    await asyncio.gather(*(network.join(worker) for worker in crowd))
    assert {worker.id for worker in crowd} == {"crowd", "crowd-2", "crowd-3", "crowd-4", "crowd-5"}
    catalogue = Catalogue(network.bus)
    instances = {card.instance for card in await catalogue.cards() if card.worker.startswith("crowd")}
    assert len(instances) == 5


async def test_the_id_of_the_dead_is_free(network: Network) -> None:
    catalogue = Catalogue(network.bus)
    dead = WorkerCard(worker="phoenix", capabilities=(), instance="gone")
    assert await catalogue.claim(dead)
    risen = named(network, "phoenix")
    await network.join(risen)
    assert risen.id == "phoenix"
    card = await catalogue.card("phoenix")
    assert card is not None
    assert card.instance != "gone"


async def test_a_claim_that_another_has_taken_over_is_not_confirmed(network: Network) -> None:
    catalogue = Catalogue(network.bus)
    one, other = (WorkerCard(worker="contested", capabilities=(), instance=name) for name in ("one", "other"))
    first = await catalogue.claim(one)
    second = await catalogue.claim(other)  # the first does not answer queries yet
    assert first is not None
    assert second is not None
    assert not await catalogue.confirm(one, first)
    assert await catalogue.confirm(other, second)


async def test_clients_see_who_lives_and_what_they_offer(network: Network) -> None:
    worker = named(network, "shown", owner="acme", slots=7, labels={"zone": "a"})
    await network.join(worker)
    found = {live.card.worker: live for live in await network.client.workers()}
    shown = found["shown"]
    assert (shown.card.owner, shown.card.slots, shown.card.labels) == ("acme", 7, {"zone": "a"})
    assert [c.pattern for c in shown.card.capabilities] == ["say.shown"]
    assert shown.card.models == ("model-of-shown",)
    assert shown.beat.running == ()
    await network.stop(worker)
    assert "shown" not in {live.card.worker for live in await network.client.workers()}
    assert "say.shown" in {contract.capability for contract in await network.client.contracts()}
