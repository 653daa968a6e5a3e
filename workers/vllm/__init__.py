"""The vLLM worker: models named in a file, each a participant of its own.

`MODELNET_WORKERS_FILE` names a TOML file of `[[models]]`, see `ModelConfig` and docs/models.md. A model whose folder
holds a modelnet.json serves the capabilities mapped there; any other Hugging Face name or folder serves the one that
the file says. In a checkout the default is examples/specialists/workers.toml. Rooms:

    config     the file, read
    check      whether this machine can do what it says, before anything loads
    inputs     between the contracts and the engine's interface
    served     one model: its engine, kept running, and the worker that answers with it
    replicas   models with devices of their own, each in a process of its own
    servers    models told as tables, not in a file: of servers that run
"""

from __future__ import annotations

import os
from pathlib import Path

from faststream import FastStream

from modelnet.errors import UsageError
from workers.vllm.config import AdapterConfig, ModelConfig, held_cores, read_config
from workers.vllm.replicas import make_app
from workers.vllm.served import Served
from workers.vllm.servers import check_models, models_app

__all__ = [
    "AdapterConfig",
    "ModelConfig",
    "Served",
    "check_models",
    "cores_of",
    "make_app",
    "models_app",
    "read_config",
]

FILE_VARIABLE = "MODELNET_WORKERS_FILE"
SPECIALISTS = Path(__file__).resolve().parents[2] / "examples" / "specialists" / "workers.toml"
"""What a checkout serves unless told otherwise."""


def __getattr__(name: str) -> FastStream:
    """`workers.vllm:app`, made on first use, so that importing this module loads no model and reads no file."""
    if name != "app":
        raise AttributeError(name)
    file = default_file()
    if file is None:
        raise UsageError(f"set {FILE_VARIABLE} to a workers file: a TOML file with a [[models]] table for each model")
    return make_app(file)


def default_file() -> Path | None:
    """What `workers.vllm:app` serves here; None if there is nothing."""
    file = os.environ.get(FILE_VARIABLE)
    return Path(file) if file else SPECIALISTS if SPECIALISTS.exists() else None


def cores_of(path: Path | None) -> set[int]:
    """Cores that the engines of a workers file, else of the default one, have to themselves. Raises `UsageError`."""
    path = path or default_file()
    return held_cores(read_config(path)) if path is not None else set()
