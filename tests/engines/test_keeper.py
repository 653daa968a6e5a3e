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
    asked_for_health: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
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
        self.asked_for_health = True
        if self.dead:
            raise EngineDead("killed")

    async def close(self) -> None:
        self.ended.set()
        if self.closing is not None:
            await self.closing.wait()
        self.closed = True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(keeper_module, "LOOK_S", 0.01)


class Watched:
    """A kept engine, and what it has told."""

    def __init__(self, *engines: Engine, stall_s: float = 60.0, comes_back: bool = False) -> None:
        waiting = list(engines)
        self.kept = KeptEngine(lambda: waiting.pop(0), stall_s=stall_s, comes_back=comes_back)
        self.reasons: list[str] = []
        self.down, self.up, self.lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.kept.on_down, self.kept.on_up, self.kept.on_lost = self._down, self.up.set, self.lost.set

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
    assert dies.asked_for_health
    assert not away.asked_for_health
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
