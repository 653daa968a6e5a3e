"""What a handler may say, and what becomes of it: outputs of every form, streams, and every way to get it wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

import modelnet
from modelnet.messages import Delta, Final, Output
from modelnet.messages import Progress as ProgressEvent
from tests.network.stage import Network, events, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

UPPER = {
    "input": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "output": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}


class Caller:
    """An object whose call is asynchronous: neither a function nor a coroutine function."""

    async def __call__(self, ctx: modelnet.Context, input: Json) -> Json:
        return {"said": "called"}


def declare_good(worker: modelnet.Worker) -> None:
    """Handlers that keep to the rules."""

    @worker.capability("good.coroutine", contract=UPPER)
    async def coroutine(ctx: modelnet.Context, input: Json) -> Json:
        return {"text": input["text"].upper()}

    @worker.capability("good.function")
    def function(ctx: modelnet.Context, input: Json) -> Json:
        return {"thread": threading.current_thread() is not threading.main_thread()}

    @worker.capability("good.strings")
    async def strings(ctx: modelnet.Context, input: Json) -> AsyncIterator[str]:
        for piece in ("ein", " ", "", "Wort"):
            yield piece

    @worker.capability("good.silence")
    async def silence(ctx: modelnet.Context, input: Json) -> AsyncIterator[str]:
        yield ""

    @worker.capability("good.generator")
    def generator(ctx: modelnet.Context, input: Json) -> Iterator[str | Json]:
        yield "a"
        yield "b"
        yield {"joined": "a+b"}

    @worker.capability("good.progress")
    async def progress(ctx: modelnet.Context, input: Json) -> AsyncIterator[modelnet.Progress | str | Json]:
        yield modelnet.Progress(0.5, "half")
        yield "text"
        yield modelnet.Progress(note="nearly")
        yield {"done": True}

    @worker.capability("good.counted")
    async def counted(ctx: modelnet.Context, input: Json) -> Json:
        ctx.count(prompt_tokens=3, completion_tokens=5)
        ctx.count(completion_tokens=2)
        return {}

    @worker.capability("good.long")
    async def long(ctx: modelnet.Context, input: Json) -> AsyncIterator[str | Json]:
        yield "ä" * 600_000
        yield {"short": True}

    @worker.capability("good.caller")
    async def caller(ctx: modelnet.Context, input: Json) -> Json:
        return await ctx.call("good.coroutine", {"text": ctx.task[:4]})

    worker.capability("good.object")(Caller())


def declare_bad(worker: modelnet.Worker) -> None:
    """Handlers that do not."""

    def returning(name: str, value: Callable[[], object]) -> None:
        @worker.capability(f"bad.{name}")
        async def handler(ctx: modelnet.Context, input: Json) -> object:
            return value()

    returning("none", lambda: None)
    returning("list", lambda: [1])
    returning("number", lambda: 7)
    returning("bytes", lambda: b"text")
    returning("not_json", lambda: {"when": object()})
    returning("nan", lambda: {"value": float("nan")})
    returning("surrogate", lambda: {"text": "\ud800"})
    returning("mixed_keys", lambda: {"a": 1, 2: 3})
    returning("circle", circle)

    def yielding(name: str, *said: object) -> None:
        @worker.capability(f"bad.{name}")
        async def handler(ctx: modelnet.Context, input: Json) -> AsyncIterator[object]:
            for one in said:
                yield one

    yielding("nothing")
    yielding("two_outputs", {"a": 1}, {"a": 2})
    yielding("text_after_output", {"a": 1}, "more")
    yielding("progress_after_output", {"a": 1}, modelnet.Progress(1.0))
    yielding("yields_number", "text", 3)
    yielding("yields_none", None)
    yielding("yields_surrogate", "fine", "\ud800")
    yielding("fraction", "fine", modelnet.Progress(17.0))

    @worker.capability("bad.contract", contract=UPPER)
    async def contract(ctx: modelnet.Context, input: Json) -> Json:
        return {"text": 1}


def circle() -> Json:
    """An object that contains itself."""
    value: Json = {}
    value["self"] = value
    return value


BAD = [
    "none", "list", "number", "bytes", "not_json", "nan", "surrogate", "mixed_keys", "circle", "nothing",
    "two_outputs", "text_after_output", "progress_after_output", "yields_number", "yields_none", "yields_surrogate",
    "fraction", "contract",
]  # fmt: skip


def declare_failing(worker: modelnet.Worker) -> None:
    """Handlers that raise."""

    def raising(name: str, make: Callable[[], BaseException]) -> None:
        @worker.capability(f"raise.{name}")
        async def handler(ctx: modelnet.Context, input: Json) -> Json:
            raise make()

        @worker.capability(f"raise.{name}.thread")
        def threaded(ctx: modelnet.Context, input: Json) -> Json:
            raise make()

    raising("value", lambda: ValueError("boom"))
    raising("exit", lambda: SystemExit(3))
    raising("cancelled", asyncio.CancelledError)
    raising("stop", lambda: StopIteration("over"))
    raising("timeout", lambda: TimeoutError("of its own"))
    raising("surrogate", lambda: ValueError("\ud800"))
    raising("long", lambda: ValueError("x" * 100_000))
    raising("code", lambda: modelnet.Reject("with no code for the wire", code="Not A Code"))


RAISED = ["value", "exit", "cancelled", "stop", "timeout", "surrogate", "long", "code"]


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def workers(network: Network) -> None:
    good, bad, failing = (network.worker(name, slots=4) for name in ("good", "bad", "failing"))
    declare_good(good)
    declare_bad(bad)
    declare_failing(failing)
    await network.join(good, bad, failing)


@pytest.mark.parametrize(
    ("capability", "output"),
    [
        ("good.coroutine", {"text": "HALLO"}),
        ("good.function", {"thread": True}),
        ("good.strings", {"text": "ein Wort"}),
        ("good.silence", {"text": ""}),
        ("good.generator", {"joined": "a+b"}),
        ("good.progress", {"done": True}),
        ("good.counted", {}),
        ("good.object", {"said": "called"}),
        ("good.long", {"short": True}),
    ],
)
async def test_every_form_of_answer_completes(network: Network, capability: str, output: Json) -> None:
    final = await (await network.client.submit(capability, {"text": "hallo"}, deadline_s=10)).result()
    assert final.output == output
    assert (final.status, final.worker, final.attempts, final.error) == ("completed", "good", 1, None)


async def test_stream_is_numbered_without_gaps_and_its_deltas_join_to_the_text(network: Network) -> None:
    task = await network.client.submit("good.progress", {})
    stream = await events(task)
    assert [event.kind for event in stream] == ["awarded", "progress", "delta", "progress", "output", "final"]
    numbered = [event for event in stream if isinstance(event, Delta | ProgressEvent | Output)]
    assert [event.number for event in numbered] == [1, 2, 3, 4]
    assert {(event.task, event.worker, event.attempt) for event in numbered} == {(task.id, "good", 1)}
    first, last = (event for event in stream if isinstance(event, ProgressEvent))
    assert (first.fraction, first.note, last.fraction, last.note) == (0.5, "half", None, "nearly")
    assert task.text == "text"


async def test_text_of_any_length_arrives_whole(network: Network) -> None:
    task = await network.client.submit("good.long", {})
    await events(task)
    assert task.text == "ä" * 600_000
    assert (await task.result()).output == {"short": True}


async def test_who_asks_for_the_result_may_read_the_stream_afterwards(network: Network) -> None:
    task = await network.client.submit("good.progress", {})
    final = await task.result()
    assert task.text == ""
    stream = await events(task)
    assert [event.kind for event in stream] == ["awarded", "progress", "delta", "progress", "output", "final"]
    assert (task.text, stream[-1]) == ("text", final)


async def test_usage_adds_up_and_names_the_run_time(network: Network) -> None:
    final = await (await network.client.submit("good.counted", {})).result()
    assert final.usage is not None
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (3, 7)
    assert 0 < final.usage.run_ms < final.timings.total_ms


async def test_a_worker_calls_another_through_the_network(network: Network) -> None:
    task = await network.client.submit("good.caller", {})
    final = await task.result()
    assert final.output == {"text": task.id[:4].upper()}


@pytest.mark.parametrize("name", BAD)
async def test_what_no_handler_may_say_is_bad_output(network: Network, name: str) -> None:
    final = await (await network.client.submit(f"bad.{name}", {"text": ""}, deadline_s=10)).final()
    assert (final.status, final.output) == ("failed", None)
    assert final.error is not None
    assert final.error.code == "bad_output"
    assert final.error.message


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("name", RAISED)
async def test_whatever_a_handler_raises_its_worker_goes_on(network: Network, name: str, thread: bool) -> None:
    capability = f"raise.{name}.thread" if thread else f"raise.{name}"
    started = asyncio.get_running_loop().time()
    final = await (await network.client.submit(capability, {}, deadline_s=10)).final()
    assert final.status == "failed"
    assert final.error is not None
    assert final.error.code == "worker_error"
    assert asyncio.get_running_loop().time() - started < 5, "it was only noticed by the deadline"
    assert {"good", "bad", "failing"} <= {found.card.worker for found in await network.client.workers()}


async def test_output_above_the_limit_is_refused_by_name(network: Network) -> None:
    worker = network.worker("big")

    @worker.capability("big.output")
    async def big(ctx: modelnet.Context, input: Json) -> Json:
        return {"text": "x" * (network.config.max_object_bytes + 1)}

    await network.join(worker)
    final = await (await network.client.submit("big.output", {})).final()
    assert final.error is not None
    assert final.error.code == "too_large"
    await network.stop(worker)


@pytest.mark.parametrize("thread", [False, True])
async def test_a_handler_that_never_returns_expires_and_frees_its_slot(network: Network, thread: bool) -> None:
    worker, begun, released = network.worker("stuck", slots=1), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @worker.capability("stuck.coroutine")
    async def coroutine(ctx: modelnet.Context, input: Json) -> Json:
        if input["stay"]:
            begun.set()
            await asyncio.Event().wait()
        return {"left": ctx.remaining_s > 0}

    @worker.capability("stuck.function")
    def function(ctx: modelnet.Context, input: Json) -> Json:
        if input["stay"]:
            loop.call_soon_threadsafe(begun.set)
            released.wait()
        return {"left": ctx.remaining_s > 0}

    await network.join(worker)
    try:
        capability = "stuck.function" if thread else "stuck.coroutine"
        first = await network.client.submit(capability, {"stay": True}, deadline_s=0.7)
        await until(begun)
        second = await network.client.submit(capability, {"stay": False}, deadline_s=10)
        final = await first.final()
        assert (final.status, final.error and final.error.code) == ("expired", "expired")
        assert (await second.result()).output == {"left": True}
    finally:
        released.set()
        await network.stop(worker)


async def test_a_final_carries_every_field(network: Network) -> None:
    final = await (await network.client.submit("good.coroutine", {"text": "x"})).result()
    fields = {"kind", "task", "status", "output", "worker", "price", "attempts", "usage", "error"}
    assert fields <= set(final.to_dict())
    assert final.to_dict()["error"] is None
    assert isinstance(final, Final)
