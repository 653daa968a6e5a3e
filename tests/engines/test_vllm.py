"""What only vLLM's drivers do: options, environment, agreement with the NumPy engine."""

import asyncio
import os
import select
import sys
from pathlib import Path

import pytest

from modelnet.deltas import COALESCE_S, DELTAS_PER_S
from modelnet.engines import EngineUnavailable, Prompt, Sampling, open_engine, vllm_available
from modelnet.engines.vllm_requests import MOST_TOKENS_APART, Probe
from modelnet.engines.vllm_setup import engine_options, prepare_environment
from tests.engines.models import Folder, write_random

needs_vllm = pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
MIB = 1 << 20


@needs_vllm
async def test_vllm_and_numpy_agree_in_float32(random_folder: Folder) -> None:
    numpy = open_engine(random_folder.name, kind="numpy")
    vllm = open_engine(random_folder.name, kind="vllm", dtype="float32", max_model_len=128)
    answers = []
    for engine in (numpy, vllm):
        await engine.start()
        sampling = Sampling(temperature=0, max_tokens=40)
        chunks = [c async for c in engine.generate("r", Prompt(text="the quick brown fox"), sampling)]
        answers.append(("".join(c.text for c in chunks), [t for c in chunks for t in c.token_ids or ()]))
        await engine.close()
    assert vllm.max_model_len == 128
    assert answers[0] == answers[1]


@needs_vllm
async def test_what_cannot_start_says_why_and_leaves_others_alone(random_folder: Folder, folder: Path) -> None:
    good = open_engine(random_folder.name, kind="vllm")
    await good.start()
    odd = open_engine(random_folder.name, kind="vllm", kv_cash=1)
    with pytest.raises(EngineUnavailable, match="kv_cash"):
        await odd.start()
    empty = open_engine(str(folder), kind="vllm")
    with pytest.raises(EngineUnavailable, match="did not start"):
        await empty.start()
    chunks = [c async for c in good.generate("r", Prompt(text="a"), Sampling(max_tokens=3))]
    assert chunks[-1].completion_tokens == 3
    await good.close()


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, random_folder: Folder) -> None:
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "x")  # restored afterwards
    monkeypatch.delenv("DO_NOT_TRACK")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    prepare_environment(random_folder.name, in_process=False)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert os.environ["DO_NOT_TRACK"] == "1"
    prepare_environment(random_folder.name, in_process=True)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_offline_is_the_default_for_a_local_folder_only(monkeypatch: pytest.MonkeyPatch, random_folder: Folder) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "x")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    prepare_environment("someone/some-model", in_process=False)
    assert "HF_HUB_OFFLINE" not in os.environ
    prepare_environment(random_folder.name, in_process=False)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_cache_memory_on_a_cpu_suits_the_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("modelnet.engines.vllm_setup.has_gpu", lambda: False)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    write_random(folder)  # 256 bytes a token in bf16
    assert engine_options(str(folder), {})["kv_cache_memory_bytes"] == 16 * MIB
    assert engine_options(str(folder), {"max_model_len": 1 << 13})["kv_cache_memory_bytes"] == 64 * MIB
    assert engine_options(str(folder), {"max_model_len": 1 << 18})["kv_cache_memory_bytes"] == 128 * MIB
    assert engine_options(str(folder), {"kv_cache_memory_bytes": 7})["kv_cache_memory_bytes"] == 7
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert "kv_cache_memory_bytes" not in engine_options(str(folder), {})


def test_a_gpu_keeps_vllms_own_defaults(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("modelnet.engines.vllm_setup.has_gpu", lambda: True)
    options = engine_options(str(folder), {"tensor_parallel_size": 2})
    assert options == {"model": str(folder), "use_tqdm_on_load": False, "tensor_parallel_size": 2}


@pytest.mark.parametrize(
    ("token_s", "requests", "tokens"),
    [
        pytest.param(None, 64, 1, id="nothing measured"),
        pytest.param(COALESCE_S / 4, 1, 4, id="as many as come while a delta waits"),
        pytest.param(COALESCE_S * 2, 1, 1, id="slow"),
        pytest.param(COALESCE_S, 3 * round(DELTAS_PER_S * COALESCE_S), 3, id="many answers"),
        pytest.param(COALESCE_S / 1000, 10_000, MOST_TOKENS_APART, id="bounded"),
    ],
)
def test_how_many_tokens_vllm_tells_of_together(token_s: float | None, requests: int, tokens: int) -> None:
    probe = Probe()
    if token_s is not None:
        probe.meter.token(token_s)
    assert probe.tokens_apart(requests) == tokens


async def test_a_fast_answer_is_told_in_few_pieces_and_whole(random_folder: Folder) -> None:
    engine = open_engine(random_folder.name, kind="vllm")
    await engine.start()
    try:
        sampling = Sampling(temperature=0, max_tokens=40)
        rounds = [[chunk async for chunk in engine.generate("r", Prompt(text="fox"), sampling)] for _ in range(2)]
    finally:
        await engine.close()
    first, then = rounds
    assert [token for chunk in then for token in chunk.token_ids or ()] == [
        token for chunk in first for token in chunk.token_ids or ()
    ]
    assert len(first) == 40, "before anything is measured each token is told of"
    assert len(then[0].token_ids or ()) == 1
    assert all(len(chunk.token_ids or ()) <= MOST_TOKENS_APART for chunk in then)
    assert then[-1].completion_tokens == 40


STARTS_ONE = """
import asyncio, sys
from modelnet.engines import open_engine

async def main():
    engine = open_engine(sys.argv[1], kind="vllm-async")
    await engine.start()
    print(*engine.processes, flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_engine_process_ends_with_a_worker_that_is_killed(tmp_path: Path, random_folder: Folder) -> None:
    file = tmp_path / "worker.py"
    file.write_text(STARTS_ONE)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(file), random_folder.name, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    while not (said := (await worker.stdout.readline()).split()) or not all(word.isdigit() for word in said):
        assert worker.returncode is None
    engines = [os.pidfd_open(int(pid)) for pid in said]
    assert engines
    worker.kill()
    await worker.wait()
    for engine in engines:  # readable once the process has ended
        ended, _, _ = await asyncio.to_thread(select.select, [engine], [], [], 30)
        os.close(engine)
        assert ended
