"""The workers file: which models, as what, for how much, on which devices."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelnet.bus.journal import first_error
from modelnet.engines import EngineKind, load_recipe
from modelnet.engines.keeper import STALL_S
from modelnet.errors import UsageError
from modelnet.messages import Capability, Identifier
from modelnet.worker import BACKLOG

__all__ = ["AdapterConfig", "ModelConfig", "read_config"]


class AdapterConfig(BaseModel):
    """A `[models.adapters.NAME]` table: a LoRA adapter, as a capability of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="The adapter's folder, relative to the file.")
    capability: Capability | None = Field(default=None, description="The model's capability and the name, if absent.")
    price: int | None = Field(default=None, ge=0, description="Micro-credits per task; the model's own if absent.")
    quality: float | None = Field(default=None, ge=0, le=1, description="Claimed share of good answers.")


class ModelConfig(BaseModel):
    """One `[[models]]` table of the workers file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Folder, relative to the file, or Hugging Face name.")
    name: Identifier | None = Field(
        default=None, description="Id on the network; the recipe's or model's name if absent."
    )
    capability: Capability = Field(
        default="text.generate",
        description="What a model without a modelnet.json serves. text.embed and text.rerank, and what is below them, "
        "make it a pooling model.",
    )
    price: int = Field(default=100, ge=0, description="Micro-credits per task, unless its modelnet.json says.")
    price_per_token: int = Field(
        default=0,
        ge=0,
        description="Micro-credits on top: per token of max_tokens, for each answer; of a pooling model per 4 "
        "characters of input.",
    )
    quality: float | None = Field(default=None, ge=0, le=1, description="Claimed share of good answers.")
    slots: int = Field(default=64, ge=1, description="Tasks at once.")
    backlog: int = Field(default=BACKLOG, ge=0, description="Tasks that wait here for a slot.")
    engine: EngineKind = Field(default="auto", description="auto, vllm, vllm-async or numpy.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = Field(
        default=None, description="Of weights and activations; the model's own if absent."
    )
    max_model_len: int | None = Field(default=None, ge=2, description="Tokens of prompt and answer; else the model's.")
    gpu_memory: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each GPU's memory: several share one. Nothing on a CPU.",
    )
    tensor_parallel_size: int | None = Field(default=None, ge=1, description="GPUs that the model is split over.")
    devices: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="GPUs by number: the model gets a process that sees no others."
    )
    replicas: tuple[tuple[int, ...], ...] | None = Field(
        default=None, min_length=1, description="Devices of each of several workers with this model."
    )
    tool_parser: str | None = Field(
        default=None, description="vLLM's name of the syntax in which the model calls functions; none if absent."
    )
    adapters: dict[Identifier, AdapterConfig] = Field(default_factory=dict, description="LoRA adapters by name.")
    max_loras: int = Field(default=4, ge=1, description="Adapters in memory at once.")
    stall_s: float = Field(
        default=STALL_S, gt=0, description="The engine is replaced after so long without a step, with work waiting."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the engine as they are: any of vLLM's engine arguments."
    )

    @property
    def pools(self) -> bool:
        """Whether it gives vectors or scores instead of text."""
        return any(self.capability == root or self.capability.startswith(f"{root}.") for root in _POOLING)

    def adapter_capability(self, name: str) -> str:
        """What an adapter serves."""
        return self.adapters[name].capability or f"{self.capability}.{name.lower()}"

    @property
    def capabilities(self) -> list[str]:
        """All that it serves. Raises `BadRecipe`."""
        recipe = load_recipe(self.model) if Path(self.model).is_dir() else None
        if recipe is not None:
            return list(recipe.capabilities)
        return [self.capability, *(self.adapter_capability(name) for name in self.adapters)]

    @property
    def engine_options(self) -> dict[str, Any]:
        """What `open_engine` takes beside model and kind."""
        named = {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory,
            "tensor_parallel_size": self.tensor_parallel_size,
            "runner": "pooling" if self.pools else None,
            "tool_parser": self.tool_parser,
        }
        options = {name: value for name, value in named.items() if value is not None} | self.options
        if self.adapters:
            options |= {
                "adapters": {name: one.path for name, one in self.adapters.items()},
                "max_loras": self.max_loras,
            }
        return options

    @property
    def processes(self) -> tuple[tuple[int, ...], ...]:
        """Devices of each process of its own that it gets; none if it is served with the others."""
        if self.replicas is not None:
            return self.replicas
        return (self.devices,) if self.devices is not None else ()


_POOLING = ("text.embed", "text.rerank")


def read_config(path: Path) -> list[ModelConfig]:
    """The models of a workers file, folders made absolute. Raises `UsageError`."""
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    if unknown := sorted(tables.keys() - {"models"}):
        raise UsageError(f"{path}: unknown {', '.join(unknown)}: a workers file has [[models]] tables")
    models = tables.get("models", [])
    if not isinstance(models, list) or not models:
        raise UsageError(f"{path} names no models: it needs at least one [[models]] table")
    return [_placed(path.parent, _read(path, number, table)) for number, table in enumerate(models, 1)]


def _read(path: Path, number: int, table: Any) -> ModelConfig:
    named = table.get("name") or table.get("model") if isinstance(table, dict) else None
    where = f"{path}: model {number}" + (f" ({named})" if named else "")
    try:
        config = ModelConfig.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"{where}: {first_error(error)}") from None
    if config.devices is not None and config.replicas is not None:
        raise UsageError(f"{where}: devices are of one worker, replicas of several: give one of the two")
    if config.adapters and config.pools:
        raise UsageError(f"{where}: adapters are of models that generate, not of {config.capability}")
    clash = [
        name
        for name, field in (
            ("dtype", config.dtype),
            ("max_model_len", config.max_model_len),
            ("gpu_memory_utilization", config.gpu_memory),
            ("tensor_parallel_size", config.tensor_parallel_size),
            ("tool_parser", config.tool_parser),
        )
        if name in config.options and field is not None
    ]
    if clash:
        raise UsageError(f"{where}: {', '.join(clash)} stands in the table and in its options")
    return config


def _placed(folder: Path, config: ModelConfig) -> ModelConfig:
    """With folders relative to the file made absolute."""
    changes: dict[str, Any] = {}
    if (at := folder / config.model).is_dir():
        changes["model"] = str(at)
    if config.adapters:
        changes["adapters"] = {
            name: one.model_copy(update={"path": str(folder / one.path)}) for name, one in config.adapters.items()
        }
    return config.model_copy(update=changes)
