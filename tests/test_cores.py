"""Cores that an engine's process has to itself: what is started there, and what keeps off."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelnet.cores import cores_can_be_held, keep_off, keep_to, keeping_off, starting_on
from modelnet.engines import Prompt, Sampling, open_engine, vllm_available
from modelnet.engines.errors import EngineUnavailable
from modelnet.engines.vllm_async import VllmAsyncEngine
from modelnet.network import Network, WorkerProcess
from tests.engines.models import write_chain
from tests.network.stage import fast

pytestmark = pytest.mark.skipif(
    not cores_can_be_held() or len(os.sched_getaffinity(0)) < 2, reason="there are no two cores to hold one of"
)


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """Those of this process."""
    found = os.sched_getaffinity(0)
    yield sorted(found)
    keep_to(found)


def where(pid: int | str = "self") -> set[frozenset[int]]:
    """Where a process's threads may run."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            found.add(frozenset(os.sched_getaffinity(int(thread.name))))
    return found


def told_by_a_child() -> tuple[set[int], str]:
    code = "import os; print(sorted(os.sched_getaffinity(0)), os.environ.get('OMP_NUM_THREADS'), sep=';')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    told, _, threads = found.strip().partition(";")
    return {int(core) for core in told.strip("[]").split(",")}, threads


@pytest.mark.parametrize("given", ["7", None])
def test_what_is_started_on_cores_runs_there_and_nothing_else_does(
    cores: list[int], given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    end = threading.Event()
    thread = threading.Thread(target=end.wait)  # as those that vLLM's client starts
    with starting_on(cores[:1]):
        assert told_by_a_child() == (set(cores[:1]), "1")
        thread.start()
    try:
        assert where() == {frozenset(cores)}
        assert told_by_a_child() == (set(cores), str(given))
    finally:
        end.set()
        thread.join()


def test_cores_that_are_not_there(cores: list[int]) -> None:
    for wanted in ([4095], [cores[0], 4095]):
        with pytest.raises(OSError, match="no core 4095"), starting_on(wanted):
            pytest.fail("it has begun")
        assert where() == {frozenset(cores)}


def test_keeping_off(cores: list[int]) -> None:
    with keeping_off(cores[1:]):
        assert told_by_a_child()[0] == set(cores[:1])
        with keeping_off(cores[:1]):  # there are no others
            assert where() == {frozenset(cores[:1])}
        with starting_on(cores[1:]):
            assert told_by_a_child()[0] == set(cores[1:])
        assert where() == {frozenset(cores[:1])}
    assert where() == {frozenset(cores)}
    keep_off(())
    assert where() == {frozenset(cores)}


async def test_a_network_keeps_off_the_cores_of_its_engines(cores: list[int], tmp_path: Path) -> None:
    file = tmp_path / "workers.toml"
    file.write_text(f'[[models]]\nmodel = "./nowhere"\ncores = {cores[:1]}\n')
    broken = tmp_path / "broken.toml"
    broken.write_text("models")
    workers = [WorkerProcess(str(path), required=False) for path in (file, broken)]
    config = fast("", redis_url="", data=tmp_path)
    async with Network(data=tmp_path, workers=workers, config=config) as network:
        assert set(network.absent) == {"workers", "broken"}
        for process in network.processes:
            if process.pid is not None:
                assert where(process.pid) == {frozenset(cores[1:])}, process.name
    assert where() == {frozenset(cores)}


async def test_a_network_without_what_serves_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "workers.vllm", None)  # its import fails
    workers = [WorkerProcess(str(tmp_path / "workers.toml"), required=False)]
    config = fast("", redis_url="", data=tmp_path)
    async with Network(data=tmp_path, workers=workers, config=config) as network:
        assert network.processes


def test_an_engine_without_a_process_has_no_cores(tmp_path: Path) -> None:
    write_chain(tmp_path / "chain")
    for kind in ("vllm", "numpy"):
        with pytest.raises(EngineUnavailable, match="vllm-async"):
            open_engine(str(tmp_path / "chain"), kind=kind, cores=[0])


@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_engine_computes_on_its_cores(cores: list[int], tmp_path: Path) -> None:
    write_chain(tmp_path / "chain")
    engine = open_engine(str(tmp_path / "chain"), cores=cores[:1])
    assert isinstance(engine, VllmAsyncEngine)
    with keeping_off(cores[:1]):
        await engine.start()
        try:
            chunks = [one async for one in engine.generate("r", Prompt(text="a"), Sampling(temperature=0))]
            assert chunks[-1].finish_reason is not None
            assert {places for pid in engine.processes for places in where(pid)} == {frozenset(cores[:1])}
            assert where() == {frozenset(cores[1:])}
        finally:
            await engine.close()
    far = open_engine(str(tmp_path / "chain"), cores=[4095])
    with pytest.raises(EngineUnavailable, match="no core 4095"):
        await far.start()
