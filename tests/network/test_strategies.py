"""How workers are chosen, and how many work on a task: spot, race, panel, cascade, auto."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import modelnet
from modelnet.market import differences
from modelnet.messages import Awarded, Final, Offer, Planned, part_id
from tests.network.stage import PATIENCE_S, Network, events, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
Answer = Callable[[Json], Awaitable[Json]]


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def clean(network: Network) -> AsyncIterator[None]:
    """Nobody but the negotiator is left of the test before."""
    yield
    for party in network.workers:
        await network.stop(party)


async def worker(network: Network, name: str, capability: str, answer: Answer, **options: Any) -> modelnet.Worker:
    """A worker of its own owner."""
    price, expected_ms = options.pop("price", 1), options.pop("expected_ms", 1.0)
    found = network.worker(name, owner=f"owner-of-{name}", **options)

    @found.capability(capability, price=price, expected_ms=expected_ms)
    async def handle(ctx: modelnet.Context, input: Json) -> Json:
        return await answer(input)

    await network.join(found)
    return found


def says(text: str, **more: Any) -> Answer:
    """An answer that is always the same."""

    async def answer(input: Json) -> Json:
        return {"text": text, **more}

    return answer


async def offered(network: Network, capability: str, count: int = 1) -> None:
    """Wait until the negotiator must have heard a standing offer of so many workers."""
    async with network.ear(f"offer.{capability}.*") as ear:
        await ear.until(lambda heard: len({Offer.decode(msg.data).worker for msg in heard}) >= count)
        await ear.until(lambda heard: len(heard) >= 2 * count)


# ---------------------------------------------------------------------- spot


async def test_spot_takes_a_standing_offer_and_asks_nobody(network: Network) -> None:
    await worker(network, "spot-a", "spot.one", says("a"), price=3)
    await worker(network, "spot-b", "spot.one", says("b"), price=2)
    await offered(network, "spot.one", 2)
    async with network.ear("cap.spot.one") as requests:
        task = await network.client.submit("spot.one", {}, strategy="spot")
        final = await task.result()
        assert (final.output, final.price, final.attempts) == ({"text": "b"}, 2, 1)
        assert not requests.heard
    ((_, transcript),) = await transcripts(network, task.id)
    assert (transcript.closed_by, transcript.rule, transcript.strategy) == ("offers", "offered", "spot: asked for")
    assert differences(transcript) == []


async def transcripts(network: Network, task: str, count: int = 1) -> list[Any]:
    """They are stored a moment after the award."""
    async with asyncio.timeout(PATIENCE_S):
        while len(found := (await network.client.trace(task)).transcripts) < count:
            await network.bus.flush()
    return found


async def test_spot_without_an_offer_is_an_auction(network: Network) -> None:
    quoted = network.worker("quoted")

    @quoted.capability("spot.quoted", price=lambda input: 5)
    async def handle(ctx: modelnet.Context, input: Json) -> Json:
        return {}

    await network.join(quoted)
    task = await network.client.submit("spot.quoted", {}, strategy="spot")
    assert (await task.result()).output == {}
    ((_, transcript),) = await transcripts(network, task.id)
    assert transcript.closed_by != "offers"


async def test_an_offer_that_is_refused_falls_to_the_next(network: Network) -> None:
    gate = asyncio.Event()

    async def wait(input: Json) -> Json:
        if input.get("wait"):
            await gate.wait()
        return {"text": "quick"}

    await worker(network, "full", "spot.full", wait, price=1, slots=1, backlog=0)
    await worker(network, "free", "spot.full", says("other"), price=9, slots=4)
    await offered(network, "spot.full", 2)
    first = await network.client.submit("spot.full", {"wait": True}, strategy="spot")
    async for event in first.stream():
        if isinstance(event, Awarded):
            assert event.worker == "full"
            break
    tasks = [await network.client.submit("spot.full", {}, strategy="spot") for _ in range(8)]
    assert {(await task.result()).worker for task in tasks} == {"free"}
    gate.set()
    assert (await first.result()).worker == "full"


# ---------------------------------------------------------------------- race


async def test_a_race_is_won_by_the_first_good_answer_and_the_other_is_cancelled(network: Network) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def slow(input: Json) -> Json:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return {}

    await worker(network, "slow", "race.one", slow, expected_ms=1.0)

    async def quick(input: Json) -> Json:
        await begun.wait()
        return {"text": "quick"}

    await worker(network, "quick", "race.one", quick, expected_ms=2.0)
    task = await network.client.submit("race.one", {}, strategy="race")
    final = await task.result()
    assert (final.output, final.worker) == ({"text": "quick"}, "quick")
    assert final.parts == (part_id(task.id, 1), part_id(task.id, 2))
    await until(stopped)
    ends = {(end.worker, end.status) for end in [await network.client.task(part).final() for part in final.parts]}
    assert ends == {("quick", "completed"), ("slow", "cancelled")}


async def test_a_race_goes_on_with_the_other_when_one_fails(network: Network) -> None:
    async def fail(input: Json) -> Json:
        refused.set()
        raise modelnet.Reject("never", code="unable", retryable=False)

    gate, refused = asyncio.Event(), asyncio.Event()

    async def later(input: Json) -> Json:
        await gate.wait()
        return {"text": "late"}

    await worker(network, "failing", "race.fail", fail, expected_ms=1.0)
    await worker(network, "late", "race.fail", later, expected_ms=5.0)
    task = await network.client.submit("race.fail", {}, strategy="race")
    await until(refused)
    gate.set()
    assert (await task.result()).output == {"text": "late"}


async def test_a_race_of_one_worker_is_an_auction(network: Network) -> None:
    await worker(network, "alone", "race.alone", says("x"))
    task = await network.client.submit("race.alone", {}, strategy="race")
    assert (await task.result()).parts == ()
    ((_, transcript),) = await transcripts(network, task.id)
    assert transcript.strategy == "auction: race asked for, but only 1 worker could answer"


# ---------------------------------------------------------------------- panel


async def test_the_majority_of_a_panel_is_the_answer(network: Network) -> None:
    for name, text in (("p1", "Berlin"), ("p2", "Bonn"), ("p3", " berlin ")):
        await worker(network, name, "panel.one", says(text))
    task = await network.client.submit("panel.one", {}, strategy={"kind": "panel"}, budget=30)
    final = await task.result()
    assert final.output is not None
    assert final.output["text"].strip().casefold() == "berlin"
    assert len(final.parts) == 3
    parts = [await network.client.task(part).final() for part in final.parts]
    assert len({part.owner for part in parts}) == 3
    plan = next(event for event in await events(task) if isinstance(event, Planned))
    assert (plan.strategy, plan.width, plan.why) == ("panel", 3, "panel of 3: asked for")


async def test_a_panel_without_a_majority_fails(network: Network) -> None:
    for number in range(3):
        await worker(network, f"q{number}", "panel.split", says(f"answer {number}"))
    with pytest.raises(modelnet.TaskFailed, match="at most 1 are alike") as failed:
        await (await network.client.submit("panel.split", {}, strategy="panel")).result()
    assert failed.value.wire_code == "no_majority"


async def test_a_panel_with_two_owners_needs_both_to_agree(network: Network) -> None:
    for name in ("r1", "r2"):
        await worker(network, name, "panel.two", says("same"))
    task = await network.client.submit("panel.two", {}, strategy="panel")
    assert (await task.result()).output == {"text": "same"}
    plan = next(event for event in await events(task) if isinstance(event, Planned))
    assert plan.why == "panel of 2: asked for; 2 of 3 owners could answer"


# ---------------------------------------------------------------------- cascade


async def test_a_cascade_goes_up_until_the_checker_is_content(network: Network) -> None:
    await worker(network, "cheap", "cascade.one", says("wrong"), price=1)
    await worker(network, "middle", "cascade.one", says("right"), price=5)
    await worker(network, "dear", "cascade.one", says("right"), price=50)
    seen: list[Json] = []

    async def check(input: Json) -> Json:
        seen.append(input)
        return {"passed": input["output"]["text"] == "right"}

    await worker(network, "checker", "cascade.check", check, price=1)
    await offered(network, "cascade.one", 3)
    how = {"kind": "cascade", "check": "cascade.check"}
    task = await network.client.submit("cascade.one", {"q": 1}, strategy=how, budget=100)
    final = await task.result()
    assert (final.worker, final.output) == ("middle", {"text": "right"})
    assert [one["output"]["text"] for one in seen] == ["wrong", "right"]
    assert seen[0]["input"] == {"q": 1}
    assert final.price == 1 + 5 + 2  # two rungs and two checks
    assert len(final.parts) == 4


async def test_a_cascade_goes_up_until_an_answer_is_sure(network: Network) -> None:
    await worker(network, "unsure", "cascade.sure", says("perhaps", confidence=0.4), price=1)
    await worker(network, "sure", "cascade.sure", says("yes", confidence=0.9), price=5)
    await offered(network, "cascade.sure", 2)
    task = await network.client.submit("cascade.sure", {}, strategy="cascade")
    assert (await task.result()).worker == "sure"
    lenient = await network.client.submit("cascade.sure", {}, strategy={"kind": "cascade", "confidence": 0.3})
    assert (await lenient.result()).worker == "unsure"


async def test_what_no_rung_gets_past_the_checker_fails(network: Network) -> None:
    await worker(network, "bad", "cascade.bad", says("wrong"), price=1)
    await worker(network, "strict", "cascade.strict", says("", passed=False), price=1)
    how = {"kind": "cascade", "check": "cascade.strict"}
    with pytest.raises(modelnet.TaskFailed, match="did not pass") as failed:
        await (await network.client.submit("cascade.bad", {}, strategy=how)).result()
    assert failed.value.wire_code == "not_verified"


# ---------------------------------------------------------------------- auto


async def test_auto_says_why(network: Network) -> None:
    await worker(network, "quick-one", "auto.quick", says("x"), slots=8)
    await offered(network, "auto.quick")
    task = await network.client.submit("auto.quick", {}, strategy="auto")
    await task.result()
    ((_, transcript),) = await transcripts(network, task.id)
    assert transcript.closed_by == "offers"
    assert transcript.strategy.startswith("spot: answers take")


# ---------------------------------------------------------------------- ends


async def test_cancelling_a_panel_cancels_its_parts(network: Network) -> None:
    at_work = Counter[str]()
    begun = asyncio.Event()

    def forever(name: str) -> Answer:
        async def answer(input: Json) -> Json:
            at_work[name] += 1
            if len(at_work) == 3:
                begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                at_work[name] -= 1
            return {}

        return answer

    for name in ("c1", "c2", "c3"):
        await worker(network, name, "panel.cancel", forever(name))
    task = await network.client.submit("panel.cancel", {}, strategy="panel")
    await until(begun)
    assert await task.cancel()
    final = await task.final()
    assert (final.status, len(final.parts)) == ("cancelled", 3)
    for part in final.parts:
        assert (await network.client.task(part).final()).status == "cancelled"
    assert not +at_work


async def test_a_panel_that_is_too_late_expires(network: Network) -> None:
    async def never(input: Json) -> Json:
        await asyncio.Event().wait()
        return {}

    for name in ("e1", "e2"):
        await worker(network, name, "panel.late", never)
    task = await network.client.submit("panel.late", {}, strategy="panel", deadline_s=0.5)
    final = await task.final()
    assert final.status == "expired"
    assert {(await network.client.task(part).final()).status for part in final.parts} <= {"expired", "cancelled"}


async def test_another_negotiator_takes_a_panel_over(network: Network, tmp_path: Path) -> None:
    """Killed in the middle: the parts go on, and each is run once."""
    runs = Counter[str]()
    gate, begun = asyncio.Event(), asyncio.Event()

    def waits(name: str) -> Answer:
        async def answer(input: Json) -> Json:
            runs[name] += 1
            if sum(runs.values()) == 3:
                begun.set()
            await gate.wait()
            return {"text": "agreed"}

        return answer

    for name in ("t1", "t2", "t3"):
        await worker(network, name, "panel.takeover", waits(name))
    task = await network.client.submit("panel.takeover", {}, strategy="panel", deadline_s=60)
    await until(begun)
    (negotiator,) = network.negotiators
    await network.negotiator()
    await network.stop(negotiator)
    gate.set()
    final = await task.result()
    assert isinstance(final, Final)
    assert (final.output, final.negotiator) == ({"text": "agreed"}, network.negotiators[0].id)
    assert runs == {"t1": 1, "t2": 1, "t3": 1}
