"""Who wins, at what price, and who learns what of a task."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Self

import pytest

import modelnet
from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.market import Terms, payment
from modelnet.messages import (
    Award,
    Beat,
    Bid,
    BidRequest,
    CapabilityCard,
    Contract,
    Decline,
    Task,
    Transcript,
    WorkerCard,
    decode_bid_reply,
    new_id,
)
from tests.network.stage import PATIENCE_S, Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
SECRET = "the-input-is-a-secret"


def seller(network: Network, name: str, capability: str, price: int, **options: Any) -> modelnet.Worker:
    """A worker that answers at once, with its name."""
    declared = {key: options.pop(key) for key in ("quality", "model", "contract", "expected_ms") if key in options}
    worker = network.worker(name, **options)

    @worker.capability(capability, price=price, **declared)
    async def answer(ctx: modelnet.Context, input: Json) -> Json:
        return {"by": ctx.worker, "as": ctx.capability}

    return worker


async def transcript_of(network: Network, task: str) -> Transcript:
    """The transcript of a task's only auction."""
    ((_, transcript),) = (await network.client.trace(task)).transcripts
    return transcript


async def settled(network: Network, capability: str, count: int) -> None:
    """Hold auctions until the negotiator asks this many workers and waits for all: then it has heard them."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            task = await network.client.submit(capability, {})
            await task.final()
            transcript = await transcript_of(network, task.id)
            if (transcript.asked, transcript.closed_by) == (count, "all_answered"):
                return


async def test_the_cheapest_of_equals_wins_and_is_paid_the_second_score(network: Network) -> None:
    await network.join(*(seller(network, f"eq-{p}", "auction.equal", p) for p in (40, 20, 30)))
    await settled(network, "auction.equal", 3)
    task = await network.client.submit("auction.equal", {}, budget=1000)
    final = await task.result()
    transcript = await transcript_of(network, task.id)
    assert final.worker == transcript.winner == "eq-20"
    assert final.bids == len(transcript.bids) == 3
    assert transcript.closed_by == "all_answered"
    winner, *rest = transcript.bids
    asked = Task(capability="auction.equal", input={}, budget=1000)
    terms = Terms.of(asked, transcript.remaining_ms / 1e3)
    assert final.price == payment(terms, winner, rest, transcript.reference_price.get("eq-20"))
    assert 20 <= final.price <= 31, "the winner is paid about what the second asked"


async def test_quality_is_bought_if_the_value_pays_for_it(network: Network) -> None:
    cheap = seller(network, "cheap", "auction.quality", 10, quality=0.5)
    good = seller(network, "good", "auction.quality", 200, quality=0.99)
    await network.join(cheap, good)
    await settled(network, "auction.quality", 2)

    async def winner(**options: Any) -> str | None:
        return (await (await network.client.submit("auction.quality", {}, **options)).result()).worker

    assert await winner(budget=1000) == "good"
    assert await winner(budget=1000, value=100) == "cheap"
    assert await winner(budget=100) == "cheap"
    assert await winner(budget=1000, value=250, min_quality=0.8) == "good"
    final = await (await network.client.submit("auction.quality", {}, budget=100, min_quality=0.8)).final()
    assert final.status == "failed"


@pytest.mark.parametrize(
    ("options", "winner"),
    [
        ({"require": {"worker": "who-b"}}, "who-b"),
        ({"exclude": {"worker": "who-a"}}, "who-b"),
        ({"require": {"owner": "bob"}}, "who-b"),
        ({"exclude": {"owner": "alice"}}, "who-b"),
        ({"require": {"model": "model-b"}}, "who-b"),
        ({"exclude": {"model": "model-a"}}, "who-b"),
        ({"require": {"labels": {"zone": "b"}}}, "who-b"),
        ({"exclude": {"labels": {"zone": "a"}}}, "who-b"),
        ({"require": {"owner": "bob", "model": "model-b"}, "exclude": {"worker": "who-a"}}, "who-b"),
        ({}, "who-a"),
    ],
)
async def test_require_and_exclude(network: Network, options: Mapping[str, Any], winner: str) -> None:
    if "who-a" not in {live.card.worker for live in await network.client.workers()}:
        await network.join(
            seller(network, "who-a", "auction.who", 1, owner="alice", model="model-a", labels={"zone": "a"}),
            seller(network, "who-b", "auction.who", 200, owner="bob", model="model-b", labels={"zone": "b"}),
        )
        await settled(network, "auction.who", 2)
    final = await (await network.client.submit("auction.who", {}, deadline_s=5, **options)).result()
    assert final.worker == winner


async def test_a_contract_can_be_demanded(network: Network) -> None:
    strict = {"input": {"type": "object", "required": ["text"]}}
    await network.join(
        seller(network, "loose", "auction.contract", 1),
        seller(network, "strict", "auction.contract", 9, contract=strict),
    )
    digest = Contract(capability="auction.contract", input=strict["input"]).digest
    final = await (await network.client.submit("auction.contract", {"text": ""}, contract=digest)).result()
    assert final.worker == "strict"


async def test_a_generalist_and_a_specialist_compete(network: Network) -> None:
    await network.join(
        seller(network, "general", "words.>", 5, quality=0.7),
        seller(network, "special", "words.date.de", 50, quality=0.99),
    )
    await settled(network, "words.date.de", 2)
    expensive = await (await network.client.submit("words.date.de", {}, budget=1000)).result()
    cheap = await (await network.client.submit("words.date.de", {}, budget=10)).result()
    other = await (await network.client.submit("words.number.fr", {}, budget=1000)).result()
    assert (expensive.worker, cheap.worker, other.worker) == ("special", "general", "general")
    assert other.output == {"by": "general", "as": "words.number.fr"}


async def test_prices_above_the_budget_are_told_at_once(network: Network) -> None:
    await network.join(seller(network, "dear", "auction.dear", 500))
    final = await (await network.client.submit("auction.dear", {}, budget=499)).final()
    assert (final.status, final.error and final.error.code) == ("failed", "over_budget")
    assert final.error is not None
    assert "500" in final.error.message
    assert "499" in final.error.message


async def test_a_price_function_sees_lengths_and_not_text(network: Network) -> None:
    worker, seen = network.worker("tailor"), list[Json]()
    public = {"type": "object", "properties": {"max_tokens": {"type": "integer", "x-public": True}}}

    def price(value: Json) -> int:
        seen.append(value)
        return int(len(value["text"]) + sum(map(len, value["list"])) + value["max_tokens"] + value["number"])

    @worker.capability("auction.tailor", price=price, contract={"input": public})
    async def answer(ctx: modelnet.Context, input: Json) -> Json:
        return {"text": input["text"]}

    await network.join(worker)
    input = {"text": SECRET, "list": ["äö", "12345"], "max_tokens": 7, "number": 99}
    task = await network.client.submit("auction.tailor", input)
    assert (await task.result()).output == {"text": SECRET}
    assert seen[-1] == {"text": "x" * len(SECRET), "list": ["xx", "xxxxx"], "max_tokens": 7, "number": 0}
    assert (await transcript_of(network, task.id)).bids[0].price == len(SECRET) + 7 + 7


async def test_losers_never_receive_the_input(network: Network) -> None:
    winner, loser = (seller(network, f"privy-{p}", "auction.privy", p) for p in (1, 2))
    await network.join(winner, loser)
    await settled(network, "auction.privy", 2)
    async with (
        network.ear("cap.>") as requests,
        network.ear("bid.>") as bids,
        network.ear(f"worker.{loser.id}.>") as to_loser,
        network.ear(f"worker.{winner.id}.award") as to_winner,
        network.ear("journal.>") as journal,
        network.ear("audit.>") as audit,
    ):
        task = await network.client.submit("auction.privy", {"text": SECRET})
        assert (await task.result()).worker == winner.id
        await audit.until(lambda heard: len(heard) == 1)
        awards = [Award.decode(msg.data) for msg in to_winner.heard]
        assert [(award.task, award.input) for award in awards] == [(task.id, {"text": SECRET})]
        public = [*requests.heard, *bids.heard, *to_loser.heard, *journal.heard, *audit.heard]
    assert len(requests.heard) == 1
    assert {decode_bid_reply(msg.data).worker for msg in bids.heard} == {winner.id, loser.id}
    assert not [msg.subject for msg in public if SECRET.encode() in msg.data]


class Fickle:
    """A bidder in plain messages, as of any language: it bids low, and declines what it wins."""

    def __init__(self, network: Network, capability: str) -> None:
        self.network, self.capability, self.declined = network, capability, 0
        self.contract = Contract(capability=capability)

    async def __aenter__(self) -> Self:
        bus, catalogue = self.network.bus, Catalogue(self.network.bus)
        card = CapabilityCard(pattern=self.capability, contract=self.contract.digest, price=1)
        await catalogue.announce(self.contract)
        await catalogue.claim(WorkerCard(worker="fickle", capabilities=(card,), instance="one"))
        self.subs = [
            await bus.subscribe(subjects.capability(self.capability), cb=self._bid),
            await bus.subscribe(subjects.award("fickle"), cb=self._decline),
        ]
        await bus.publish(subjects.beat("fickle"), Beat(worker="fickle", instance="one", slots=1).encode())
        await bus.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        leaving = Beat(worker="fickle", instance="one", slots=1, leaving=True)
        await self.network.bus.publish(subjects.beat("fickle"), leaving.encode())
        for sub in self.subs:
            await sub.unsubscribe()

    async def _bid(self, msg: Any) -> None:
        request = BidRequest.decode(msg.data)
        bid = Bid(auction=request.auction, worker="fickle", price=1, p50_ms=1, p90_ms=2)
        await self.network.bus.publish(f"{msg.reply}.fickle", bid.encode())

    async def _decline(self, msg: Any) -> None:
        self.declined += 1
        await msg.respond(Decline(worker="fickle", reason="too_long").encode())


async def test_after_a_decline_the_runner_up_is_next(network: Network) -> None:
    steady = seller(network, "steady", "auction.fickle", 50)
    await network.join(steady)
    async with Fickle(network, "auction.fickle") as fickle:
        task = await network.client.submit("auction.fickle", {}, id=new_id())
        final = await task.result()
        assert (final.worker, fickle.declined) == ("steady", 1)
        assert final.attempts == 2
        trace = await network.client.trace(task.id)
        assert [a["worker"] for a in trace.attempts] == ["fickle", "steady"]
        assert len(trace.transcripts) == 1, "no second auction was needed"
