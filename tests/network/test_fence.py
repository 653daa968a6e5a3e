"""The journal as a fence: what is written late, twice or after the end is refused, and no reader ever sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from modelnet.bus import journal, subjects
from modelnet.bus.streams import STREAMS, TASK_CONSUMERS, setup_bus, task_consumer
from modelnet.messages import Awarded, CancelAsked, Final, Timings, new_id
from tests.network.stage import Network

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMINGS = Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0)


def final(task: str, negotiator: str) -> Final:
    return Final(
        task=task, tenant="t", capability="x", status="expired", negotiator=negotiator, timings=TIMINGS, price=None
    )


def awarded(task: str, attempt: int) -> Awarded:
    return Awarded(task=task, attempt=attempt, worker="w", price=1, negotiator="n")


async def api(network: Network, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JetStream API, bare."""
    reply = await network.bus.request(f"$JS.API.{verb}", json.dumps(body).encode() if body else b"", timeout=5)
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def test_setup_is_idempotent_and_keeps_what_is_stored(bare_network: Network) -> None:
    await setup_bus(bare_network.bus)
    await bare_network.bus.request("audit.t.kept", b"{}", timeout=5)
    before = [(await api(bare_network, f"STREAM.INFO.{name}"))["config"] for name in STREAMS]
    await setup_bus(bare_network.bus)
    infos = [await api(bare_network, f"STREAM.INFO.{name}") for name in STREAMS]
    assert [info["config"] for info in infos] == before
    assert next(i["state"]["messages"] for i in infos if i["config"]["name"] == "AUDIT") == 1


async def test_setup_repairs_a_stream_and_a_consumer_that_were_changed(bare_network: Network) -> None:
    await setup_bus(bare_network.bus)
    config = (await api(bare_network, "STREAM.INFO.AUDIT"))["config"]
    changed = await api(bare_network, "STREAM.UPDATE.AUDIT", config | {"max_bytes": 1 << 20, "description": "other"})
    assert changed["config"]["max_bytes"] == 1 << 20
    name = task_consumer(*TASK_CONSUMERS[0])
    consumer = (await api(bare_network, f"CONSUMER.INFO.TASKS.{name}"))["config"]
    body = {"stream_name": "TASKS", "config": consumer | {"max_ack_pending": 1, "ack_wait": 10**9}}
    await api(bare_network, f"CONSUMER.DURABLE.CREATE.TASKS.{name}", body)
    assert (await api(bare_network, f"CONSUMER.INFO.TASKS.{name}"))["config"]["max_ack_pending"] == 1
    await setup_bus(bare_network.bus)
    repaired = (await api(bare_network, "STREAM.INFO.AUDIT"))["config"]
    assert repaired["max_bytes"] == STREAMS["AUDIT"]["max_bytes"]
    assert (await api(bare_network, f"CONSUMER.INFO.TASKS.{name}"))["config"] == consumer


async def test_only_the_first_final_is_stored_and_seen(bare_network: Network) -> None:
    await setup_bus(bare_network.bus)
    bus, task = bare_network.bus, new_id()
    async with bare_network.ear(subjects.stream_of("t", task)) as reader:
        first = await journal.append(bus, "t", task, "status", awarded(task, 1), 0)
        assert first is not None
        second = await journal.append(bus, "t", task, "status", awarded(task, 2), first)
        assert second is not None
        stale = await journal.append(bus, "t", task, "final", final(task, "stale"), first)
        right = await journal.append(bus, "t", task, "final", final(task, "right"), second)
        again = await journal.append(bus, "t", task, "final", final(task, "again"), second)
        blind = await journal.append(bus, "t", task, "final", final(task, "blind"), 0)
        late = await journal.append(bus, "t", task, "status", awarded(task, 3), second)
        cancel = await journal.append(bus, "t", task, "cancel", CancelAsked(task=task), second)
        assert right is not None
        assert (stale, again, blind, late, cancel) == (None,) * 5
        await bus.publish(subjects.result("t", task, "w", 9), b"the end of this test")
        heard = [(msg.subject.split(".")[4], msg.data) for msg in await reader.until(lambda h: len(h) >= 4)]
    assert [subject for subject, _ in heard] == ["status", "status", "final", "w"]
    assert Final.decode(heard[2][1]).negotiator == "right"
    stored = await journal.read(bus, "t", task)
    assert [sequence for sequence, _ in stored] == [first, second, right]


async def test_the_same_id_in_two_tenants_is_two_journals(bare_network: Network) -> None:
    await setup_bus(bare_network.bus)
    bus, task = bare_network.bus, new_id()
    assert await journal.append(bus, "one", task, "final", final(task, "n"), 0)
    assert await journal.append(bus, "two", task, "final", final(task, "n"), 0)
    assert len(await journal.read(bus, "one", task)) == 1


async def test_an_entry_that_cannot_be_read_still_counts(bare_network: Network) -> None:
    await setup_bus(bare_network.bus)
    bus, task = bare_network.bus, new_id()
    await bus.request(subjects.journal("t", task, "status"), b'{"kind":"of a later version"}', timeout=5)
    ((sequence, entry),) = await journal.read(bus, "t", task)
    assert entry is None
    assert await journal.append(bus, "t", task, "final", final(task, "n"), sequence) is not None


async def test_a_task_of_no_class_is_not_accepted(bare_network: Network) -> None:
    """No consumer would take it: it would be stored and never end."""
    await setup_bus(bare_network.bus)
    with pytest.raises(NoRespondersError):
        await bare_network.bus.request("task.7.t.id.x", b"{}", timeout=5)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b"{}", b'{"seq":"1"}', b'{"seq":null}', b'{"error":1}', b'{"error":[],"seq":0}']
)
async def test_what_is_no_acknowledgement_says_nothing(network: Network, body: bytes) -> None:
    """A task whose negotiator fell over one would never end."""
    ack = Msg(_client=network.bus, subject="a", data=body)
    assert not journal.stored_sequence(ack)
    assert not journal.refused(ack)
