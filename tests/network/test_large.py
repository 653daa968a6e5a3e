"""Bodies too large for a message: through the object store and back, bounded, whole, and nobody else's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from typing import Any

import pytest

import modelnet
from modelnet.bus import objects, subjects
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.replay import read_all
from modelnet.errors import MalformedInput, ObjectLost, TooLarge
from modelnet.messages import Output, Reference, Task, new_id
from tests.network.stage import PATIENCE_S, Network, events

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
KIB, MIB = 1 << 10, 1 << 20


def text(size: int) -> str:
    """Incompressible text of this length."""
    return os.urandom(size // 2).hex()


async def echo(network: Network, name: str, **options: Any) -> modelnet.Worker:
    """A worker that returns what it gets, whatever its size, and one that makes a lot of little."""
    worker = network.worker(name, **options)
    contract = {
        "input": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        "output": {"type": "object", "required": ["text"]},
    }

    @worker.capability(f"large.{name}", contract=contract)
    async def answer(ctx: modelnet.Context, input: Json) -> Json:
        return {"text": input["text"], "attempt": ctx.attempt}

    @worker.capability(f"grow.{name}")
    async def grow(ctx: modelnet.Context, input: Json) -> Json:
        return {"text": "x" * input["size"]}

    await network.join(worker)
    return worker


async def stored(network: Network) -> list[str]:
    """Subjects of all chunks there are."""
    return [found.subject async for found in read_all(network.bus, "BODIES", "body.>")]


@pytest.mark.parametrize("size", [300 * KIB, 1 * MIB, 10 * MIB])
async def test_a_large_body_goes_through_and_back(network: Network, size: int) -> None:
    worker = await echo(network, f"size-{size}")
    value = text(size)
    task = await network.client.submit(f"large.size-{size}", {"text": value})
    final = await task.result()
    assert final.output == {"text": value, "attempt": 1}
    assert final.output_ref is not None
    late = await events(network.client.task(task.id))
    assert late[-1] == final
    (output,) = [event for event in late if isinstance(event, Output)]
    assert output.output == final.output
    raw = [found.body async for found in read_all(network.bus, "BODIES", f"body.default.{task.id}.*.*")]
    assert sum(map(len, raw)) > 2 * size
    assert not any(value[:64].encode() in chunk for chunk in raw), "the store tells nobody anything"
    await network.stop(worker)


async def test_the_largest_there_is(network: Network) -> None:
    worker = await echo(network, "largest")
    size = network.config.max_object_bytes - 64
    task = await network.client.submit("grow.largest", {"size": size}, deadline_s=120)
    final = await task.result()
    assert final.output is not None
    assert len(final.output["text"]) == size
    await network.stop(worker)


async def test_what_is_larger_is_refused_before_anything_is_sent(network: Network) -> None:
    worker = await echo(network, "larger")
    before = len(await stored(network))
    with pytest.raises(TooLarge, match="MODELNET_MAX_OBJECT_BYTES"):
        await network.client.submit("large.larger", {"text": "x" * (network.config.max_object_bytes + 1)})
    task = await network.client.submit("grow.larger", {"size": network.config.max_object_bytes + 1})
    final = await task.final()
    assert (final.status, final.error and final.error.code) == ("failed", "too_large")
    assert len(await stored(network)) == before
    await network.stop(worker)


async def test_a_large_input_is_checked_like_a_small_one(network: Network) -> None:
    worker = await echo(network, "checked")
    final = await (await network.client.submit("large.checked", {"wrong": text(MIB)})).final()
    assert (final.status, final.error and final.error.code, final.attempts) == ("failed", "contract_violation", 0)
    await network.stop(worker)


async def test_the_same_task_twice_has_one_input(network: Network) -> None:
    worker = await echo(network, "twice")
    value, id = text(MIB), new_id()
    first = await network.client.submit("large.twice", {"text": value}, id=id)
    chunks = set(await stored(network))
    again = await network.client.submit("large.twice", {"text": value}, id=id)
    assert (await first.result()).output == (await again.result()).output
    objects_of = {subject.split(".")[3] for subject in await stored(network) if subject.split(".")[2] == id}
    assert len(objects_of) == 2, "one input, one output"
    assert {subject.split(".")[3] for subject in chunks if subject.split(".")[2] == id} <= objects_of
    await network.stop(worker)


async def test_a_task_that_comes_twice_while_its_input_is_fetched_takes_one_slot(network: Network) -> None:
    worker, held = await echo(network, "again"), 4
    (negotiator,) = network.negotiators
    await network.stop(negotiator)
    negotiator = await network.negotiator(max_in_flight=held)
    value, client = {"text": text(300 * KIB)}, network.client
    for _ in range(2 * held):
        id = new_id()
        reference = await client.bodies.store(value, client.settings.tenant, id, PATIENCE_S)
        task = Task(id=id, capability="large.again", input_ref=reference)
        for _ in range(2):  # without a message id, so the server does not see that it is one
            await network.bus.jetstream().publish(subjects.task(task), task.encode())
        assert (await client.task(id).result()).status == "completed"
    await network.stop(worker)


async def test_an_object_that_is_gone_or_another_is_told_clearly(network: Network) -> None:
    worker = await echo(network, "gone")
    task = await network.client.submit("large.gone", {"text": text(MIB)})
    final = await task.result()
    assert final.output_ref is not None
    reference = final.output_ref
    other = await objects.put(network.bus, b"other", tenant="t", task="k", live_s=1, limit=MIB)
    forged = reference.model_copy(update={"key": other.key})
    with pytest.raises(ObjectLost, match="not what was stored"):
        await objects.get(network.bus, forged, limit=64 * MIB)
    shorter = reference.model_copy(update={"size": 10})
    with pytest.raises(ObjectLost, match="larger"):
        await objects.get(network.bus, shorter, limit=64 * MIB)
    endless = reference.model_copy(update={"chunks": 10**12})
    with pytest.raises(ObjectLost, match="never stored whole"):
        await asyncio.wait_for(objects.get(network.bus, endless, limit=64 * MIB), PATIENCE_S)
    for token in ("1", "0", "2", "one", "9" * 50):
        await network.bus.publish(f"body.{other.name}.{token}", b"an intruder's chunk, which comes too late")
    assert await objects.get(network.bus, other, limit=MIB) == b"other"
    await objects.remove(network.bus, reference)
    with pytest.raises(ObjectLost, match="expired"):
        await network.client.task(task.id).final()
    await network.stop(worker)


async def test_a_task_whose_input_is_gone_fails(network: Network) -> None:
    worker = await echo(network, "inputless")
    reference = Reference(name="default.k.none", size=MIB, chunks=8, digest="sha256:" + "0" * 64, key="k" * 43 + "=")
    task = Task(capability="large.inputless", input_ref=reference)
    await network.client.publish(task)
    final = await network.client.task(task.id).final()
    assert (final.status, final.error and final.error.code) == ("failed", "object_lost")
    await network.stop(worker)


async def test_binary_values(network: Network) -> None:
    worker = network.worker("binary")

    @worker.capability("binary.reverse")
    async def reverse(ctx: modelnet.Context, input: Json) -> Json:
        data = await ctx.fetch(input["image"])
        return {"image": await ctx.put(data[::-1], media_type="image/png")}

    await network.join(worker)
    data = os.urandom(3 * MIB)
    output = await network.client.run("binary.reverse", {"image": await network.client.put(data)})
    assert await network.client.fetch(output["image"]) == data[::-1]
    assert output["image"]["$object"]["media_type"] == "image/png"
    assert json.dumps(output)
    for wrong in ({}, {"$object": {"name": "x"}}, {"$object": 3}):
        with pytest.raises(MalformedInput):
            await network.client.fetch(wrong)
    await network.stop(worker)


async def test_small_tasks_do_not_wait_for_large_ones(network: Network) -> None:
    worker = await echo(network, "mixed", slots=32)
    value = text(10 * MIB)

    async def small() -> float:
        started = time.perf_counter()
        await network.client.run("large.mixed", {"text": "small"})
        return time.perf_counter() - started

    alone = [await small() for _ in range(20)]
    large = [asyncio.create_task(network.client.run("large.mixed", {"text": value})) for _ in range(6)]
    beside = [await small() for _ in range(20)]
    async with asyncio.timeout(3 * PATIENCE_S):
        assert [hashlib.sha256((await one)["text"].encode()).digest() for one in large] == [
            hashlib.sha256(value.encode()).digest()
        ] * 6
    print(f"small tasks: median {sorted(alone)[10] * 1e3:.1f} ms alone, {sorted(beside)[10] * 1e3:.1f} ms beside")
    (negotiator,) = network.negotiators
    assert not negotiator._reception._fetching
    await network.stop(worker)


async def test_an_upload_outlives_a_restart_of_the_server(network: Network, nats_server: EmbeddedNats) -> None:
    data = os.urandom(20 * MIB)
    async with network.ear("body.>") as chunks:
        uploading = asyncio.create_task(objects.put(network.bus, data, tenant="t", task="k", live_s=60, limit=64 * MIB))
        await chunks.until(lambda heard: len(heard) > 8)
        nats_server.kill()
        reference = await asyncio.wait_for(uploading, 2 * PATIENCE_S)
    assert await objects.get(network.bus, reference, limit=64 * MIB) == data
