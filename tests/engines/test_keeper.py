"""An engine that dies or hangs is replaced; what it had in hand ends at once, and what comes after is answered."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelnet.engines import (
    Ability,
    Chunk,
    Embeddings,
    Engine,
    EngineDead,
    EngineState,
    EngineUnavailable,
    Prompt,
    Sampling,
    Scores,
    open_engine,
    vllm_available,
)
from modelnet.engines import keeper as keeper_module
from modelnet.engines.keeper import KeptEngine
from tests.engines.models import CONTEXT, LOOP, Folder
from tests.engines.test_contract import GREEDY, answer, ids_of

PATIENCE_S = 30.0
ENDLESS = Sampling(temperature=0, max_tokens=CONTEXT)


@dataclass
class Scripted:
    """An engine that does what a test says."""

    model: str = "scripted"
    software: str = "a script"
    max_model_len: int = 100
    abilities: frozenset[Ability] = frozenset({"generate"})
    refuses: bool = False
    hangs: bool = False
    dead: bool = False
    steps: int | None = 0
    running: int = 0
    closing: asyncio.Event | None = None
    closed: bool = False
    opening: asyncio.Event | None = None
    loads: asyncio.Event = field(default_factory=asyncio.Event)
    looks: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    """One for each time that it was asked for its health."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self.loads.set()
        if self.opening is not None:
            await self.opening.wait()
        if self.refuses:
            raise EngineUnavailable("no memory")

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        return [1]

    async def decode(self, token_ids: list[int]) -> str:
        return ""

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        self.running += 1
        try:
            if self.hangs:
                await self.ended.wait()
                raise EngineDead("it was closed")
            yield Chunk(text="a", token_ids=(1,), finish_reason="stop", prompt_tokens=1, completion_tokens=1)
        finally:
            self.running -= 1

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        raise AssertionError

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        raise AssertionError

    async def abort(self, request_id: str) -> None: ...

    def state(self) -> EngineState:
        return EngineState(running=self.running, waiting=0, max_running=8, kv_cache_usage=0.0, steps=self.steps)

    def wait_s(self, tokens: int) -> float:
        return 0.0

    async def health(self) -> None:
        self.looks.put_nowait(None)
        if self.dead:
            raise EngineDead("killed")

    async def close(self) -> None:
        self.ended.set()
        if self.closing is not None:
            await self.closing.wait()
        self.closed = True


@dataclass
class Napper(Scripted):
    """One that sleeps by itself."""

    can_sleep: bool = True
    naps: list[str] = field(default_factory=list)
    wakes: asyncio.Event | None = None
    """Where it hangs when it is to wake."""
    breaks: bool = False

    async def sleep(self) -> None:
        self.naps.append("sleep")

    async def wake(self) -> None:
        if self.wakes is not None:
            await self.wakes.wait()
        if self.breaks:
            raise EngineDead("others have filled the GPU")
        self.naps.append("wake")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(keeper_module, "LOOK_S", 0.01)


class Watched:
    """A kept engine, and what it has told."""

    def __init__(
        self, *engines: Engine, stall_s: float = 60.0, sleep_s: float | None = None, comes_back: bool = False
    ) -> None:
        waiting = list(engines)
        self.kept = KeptEngine(lambda: waiting.pop(0), stall_s=stall_s, sleep_s=sleep_s, comes_back=comes_back)
        self.reasons: list[str] = []
        self.down, self.up, self.lost, self.asleep = (asyncio.Event() for _ in range(4))
        self.kept.on_down, self.kept.on_up, self.kept.on_lost = self._down, self.up.set, self.lost.set
        self.kept.on_asleep = self.asleep.set

    def _down(self, reason: str) -> None:
        self.reasons.append(reason)
        self.down.set()


async def until(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), PATIENCE_S)


async def test_one_that_dies_is_replaced_however_often_the_next_does_not_start() -> None:
    first, last = Scripted(), Scripted()
    watched = Watched(first, Scripted(refuses=True), Scripted(refuses=True), last)
    await watched.kept.start()
    assert len(await answer(watched.kept, Prompt(text="a"), GREEDY)) == 1
    first.dead = True
    await until(watched.down)
    assert watched.kept.wait_s(1) == math.inf
    with pytest.raises(EngineDead, match="being replaced"):
        await answer(watched.kept, Prompt(text="a"), GREEDY)
    with pytest.raises(EngineDead):
        await watched.kept.health()
    await until(watched.up)
    assert first.closed
    assert watched.kept.wait_s(1) == 0
    assert watched.kept.current is last
    assert (watched.reasons, watched.kept.restarts) == (["killed"], 1)
    assert len(await answer(watched.kept, Prompt(text="a"), GREEDY)) == 1
    await watched.kept.health()
    await watched.kept.close()
    assert last.closed


async def test_one_that_makes_no_step_with_work_in_hand_is_replaced() -> None:
    first, second = Scripted(hangs=True), Scripted()
    watched = Watched(first, second, stall_s=0.2)
    await watched.kept.start()
    waiting = asyncio.create_task(answer(watched.kept, Prompt(text="a"), GREEDY))
    await until(watched.up)
    with pytest.raises(EngineDead):
        await waiting
    assert "no step" in watched.reasons[0]
    assert len(await answer(watched.kept, Prompt(text="a"), GREEDY)) == 1
    await watched.kept.close()


async def test_one_that_makes_steps_or_has_no_work_or_tells_no_steps_is_left_alone() -> None:
    idle, busy, silent = Scripted(), Scripted(running=1), Scripted(running=1, steps=None)
    watched = [Watched(one, stall_s=0.05) for one in (idle, busy, silent)]
    for one in watched:
        await one.kept.start()
    for _ in range(20):
        assert busy.steps is not None
        busy.steps += 1
        await asyncio.sleep(0.01)  # four times the limit in all
    assert [one.reasons for one in watched] == [[], [], []]
    for one in watched:
        await one.kept.close()


async def test_one_that_comes_back_by_itself_is_not_asked_for_its_health() -> None:
    away, dies = Scripted(dead=True), Scripted(dead=True)
    left_alone, watched = Watched(away, comes_back=True), Watched(dies, Scripted())
    for one in (left_alone, watched):
        await one.kept.start()
    await until(watched.up)
    assert not dies.looks.empty()
    assert away.looks.empty()
    assert left_alone.reasons == []
    for one in (left_alone, watched):
        await one.kept.close()
    assert away.closed


async def test_one_that_cannot_be_closed_is_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "CLOSE_S", 0.05)
    stuck = Scripted(closing=asyncio.Event())
    watched = Watched(stuck, Scripted())
    await watched.kept.start()
    stuck.dead = True
    await until(watched.lost)
    assert not watched.up.is_set()
    assert stuck.closing is not None
    stuck.closing.set()
    await watched.kept.close()


async def test_a_step_that_fails_in_this_process_is_got_over(chain_folder: Folder) -> None:
    watched = Watched(*(open_engine(chain_folder.name, kind="numpy") for _ in range(2)))
    kept = watched.kept
    await kept.start()
    stream = kept.generate("r", Prompt(text=LOOP), ENDLESS)
    await anext(stream)
    core: Any = kept.current

    def fail() -> None:
        raise RuntimeError("out of memory")

    core._core.step = fail
    with pytest.raises(EngineDead, match="out of memory"):
        async for _ in stream:
            pass
    await until(watched.up)
    assert ids_of(await answer(kept, Prompt(text=LOOP), GREEDY))
    await kept.close()


async def asks(kept: KeptEngine) -> str:
    return "".join(chunk.text for chunk in await answer(kept, Prompt(text="a"), GREEDY))


async def test_one_that_nothing_is_asked_of_is_closed_until_something_is() -> None:
    first, second = Scripted(), Scripted()
    watched = Watched(first, second, sleep_s=0.02)
    kept = watched.kept
    await kept.start()
    assert kept.wake_s == 0
    await until(watched.asleep)
    assert kept.is_up, "it bids"
    assert kept.wait_s(1) == 0
    assert kept.wake_s > 0, "and says that one has to wait"
    await kept.health()
    assert await asks(kept) == "a"
    assert (first.closed, kept.current) == (True, second)
    assert (kept.restarts, watched.reasons) == (0, []), "it did not fail"
    await kept.close()
    assert second.closed


async def test_it_does_not_sleep_while_something_is_asked_of_it_or_if_it_is_not_told_to() -> None:
    busy, wakeful = Scripted(hangs=True), Scripted()
    watched = [Watched(busy, sleep_s=0.02), Watched(wakeful)]
    for one in watched:
        await one.kept.start()
    waiting = asyncio.create_task(asks(watched[0].kept))
    for engine in (busy, wakeful):
        for _ in range(10):  # a hundredth of a second each
            await asyncio.wait_for(engine.looks.get(), PATIENCE_S)
    assert [one.asleep.is_set() for one in watched] == [False, False]
    for one in watched:
        await one.kept.close()
    with pytest.raises(EngineDead):
        await waiting


async def test_who_comes_while_it_closes_or_opens_waits_for_the_same_one() -> None:
    first, second = Scripted(closing=asyncio.Event()), Scripted(opening=asyncio.Event())
    watched = Watched(first, second, sleep_s=0.02)
    kept = watched.kept
    await kept.start()
    await until(watched.asleep)
    waiting = [asyncio.create_task(asks(kept)) for _ in range(3)]
    assert first.closing is not None
    assert second.opening is not None
    first.closing.set()
    await until(second.loads)
    waiting[0].cancel()
    late = asyncio.create_task(asks(kept))
    await asyncio.wait({waiting[0]})
    assert waiting[0].cancelled()
    assert not any(task.done() for task in (*waiting[1:], late))
    second.opening.set()
    assert await asyncio.gather(*waiting[1:], late) == ["a"] * 3
    await kept.close()


async def test_one_that_does_not_wake_is_replaced() -> None:
    watched = Watched(Scripted(), Scripted(refuses=True), Scripted(), sleep_s=0.02)
    kept = watched.kept
    await kept.start()
    await until(watched.asleep)
    with pytest.raises(EngineDead, match="being replaced"):
        await asks(kept)
    await until(watched.up)
    assert watched.reasons == ["it did not wake: no memory"]
    assert (await asks(kept), kept.restarts) == ("a", 1)
    await kept.close()


async def test_one_that_can_sleeps_by_itself_and_is_watched_meanwhile() -> None:
    first, second, third = Napper(), Napper(breaks=True), Napper(wakes=asyncio.Event())
    watched = Watched(first, second, third, Napper(), stall_s=0.2, sleep_s=0.02)
    kept = watched.kept
    await kept.start()
    await until(watched.asleep)
    assert await asks(kept) == "a"
    assert kept.current is first
    assert (first.naps[:2], first.closed) == (["sleep", "wake"], False)
    watched.asleep.clear()
    await until(watched.asleep)
    first.dead = True  # its process was killed
    await until(watched.up)
    assert (watched.reasons, first.closed) == (["killed"], True)
    for reason in ("it did not wake: others have filled the GPU", "it did not wake: the engine of scripted"):
        for event in (watched.asleep, watched.up):
            event.clear()
        await until(watched.asleep)
        with pytest.raises(EngineDead):
            await asks(kept)
        await until(watched.up)
        assert watched.reasons[-1].startswith(reason)
    assert (await asks(kept), kept.restarts) == ("a", 3)
    await kept.close()


async def test_it_is_closed_asleep_or_while_it_wakes() -> None:
    asleep, waking = Watched(Scripted(), sleep_s=0.02), Watched(Scripted(), opened := Scripted(), sleep_s=0.02)
    opened.opening = asyncio.Event()
    for one in (asleep, waking):
        await one.kept.start()
        await until(one.asleep)
    await asleep.kept.close()
    waiting = asyncio.create_task(asks(waking.kept))
    await until(opened.loads)
    closing = asyncio.create_task(waking.kept.close())
    opened.opening.set()
    await asyncio.wait_for(closing, PATIENCE_S)
    assert opened.closed
    await asyncio.wait({waiting}, timeout=PATIENCE_S)
    assert waiting.done()


KINDS = [
    "numpy",
    *(
        pytest.param(kind, marks=[pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"), *marks])
        for kind, marks in (("vllm", []), ("vllm-async", [pytest.mark.slow, pytest.mark.timeout(300)]))
    ),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_answers_the_same_after_it_slept_and_its_steps_are_known(kind: Any, chain_folder: Folder) -> None:
    watched = Watched(*(open_engine(chain_folder.name, kind=kind, sleeps=True) for _ in range(2)), sleep_s=1.0)
    kept = watched.kept
    await kept.start()
    expected = ids_of(await answer(kept, Prompt(text=LOOP), GREEDY))
    engine: Any = kept.current
    processes = getattr(engine, "processes", ())
    assert bool(processes) == (kind == "vllm-async")
    await until(watched.asleep)
    assert kept.abilities == engine.abilities
    assert kept.max_model_len > 0
    asleep = kept.state()
    assert (asleep.running, asleep.waiting, asleep.kv_cache_usage) == (0, 0, 0.0)
    assert asleep.step_times is not None
    assert asleep.step_times.pace() is not None, "it can be bid with"
    async with kept._changing:  # it is asleep, and no longer about to be
        assert not any(child.pid in processes for child in multiprocessing.active_children())
    kept._sleep_s = 60.0  # else it sleeps again before it is looked at
    await kept.awake()
    assert kept.current is not engine
    new = kept.state().step_times
    assert new is not None
    assert new.pace() is not None
    assert ids_of(await answer(kept, Prompt(text=LOOP), GREEDY)) == expected
    await kept.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
async def test_vllm_sleeps_by_itself(chain_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the memory, which vLLM gives back of a GPU alone."""
    engine: Any = open_engine(chain_folder.name, kind="vllm-async", sleeps=True)
    monkeypatch.setattr(type(engine), "can_sleep", True)
    watched = Watched(engine, open_engine(chain_folder.name, kind="vllm-async"), sleep_s=1.0)
    kept = watched.kept
    await kept.start()
    expected = ids_of(await answer(kept, Prompt(text=LOOP), GREEDY))
    llm = engine._llm
    for _ in range(2):
        watched.asleep.clear()
        await until(watched.asleep)
        async with kept._changing:  # it is, and no longer about to be
            assert kept.wake_s > 0
            assert await llm.is_sleeping()
        assert ids_of(await answer(kept, Prompt(text=LOOP), GREEDY)) == expected
        assert kept.current is engine
        assert not await llm.is_sleeping()
    watched.asleep.clear()
    await until(watched.asleep)
    os.kill(engine.processes[0], signal.SIGKILL)
    await asyncio.wait_for(watched.up.wait(), 120)
    assert ids_of(await answer(kept, Prompt(text=LOOP), GREEDY)) == expected
    await kept.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
async def test_an_engine_process_that_is_killed_or_stopped_is_replaced(chain_folder: Folder) -> None:
    watched = Watched(*(open_engine(chain_folder.name, kind="vllm-async") for _ in range(3)), stall_s=5.0)
    kept = watched.kept
    await kept.start()
    expected = ids_of(await answer(kept, Prompt(text=LOOP), GREEDY))
    pids: list[int] = []
    for blow in (signal.SIGKILL, signal.SIGSTOP):
        watched.up.clear()
        stream = kept.generate("r", Prompt(text=LOOP), ENDLESS)
        await anext(stream)
        engine: Any = kept.current
        pids += engine.processes
        os.kill(pids[-1], blow)
        with pytest.raises(EngineDead):
            async for _ in stream:
                pass
        await asyncio.wait_for(watched.up.wait(), 120)
        assert ids_of(await answer(kept, Prompt(text=LOOP), GREEDY)) == expected
    assert "no step" in watched.reasons[1]
    assert kept.restarts == 2
    await kept.close()
    assert [child.pid for child in multiprocessing.active_children() if child.pid in pids] == []
