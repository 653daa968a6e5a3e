"""The workers file: which models, as what, for how much, on which devices or servers."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from modelnet.bus.journal import first_error
from modelnet.engines import Engine, EngineKind, ModelRecipe, load_recipe, open_engine
from modelnet.engines.keeper import STALL_S
from modelnet.errors import UsageError
from modelnet.messages import Capability, Identifier
from modelnet.settings import settings
from modelnet.worker import BACKLOG

__all__ = ["AdapterConfig", "Kind", "ModelConfig", "held_cores", "kind_of", "read_config"]

Kind = Literal["generate", "embed", "score"]
"""What an engine must be able to do for a capability."""


def kind_of(capability: str) -> Kind:
    """Vectors for text.embed and what is below it, scores for text.rerank, and text for all else."""
    kinds: dict[str, Kind] = {"text.embed": "embed", "text.rerank": "score"}
    return next(
        (kind for root, kind in kinds.items() if capability == root or capability.startswith(f"{root}.")), "generate"
    )


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

    model: str = Field(
        min_length=1,
        description="Folder, relative to the file, or Hugging Face name; its name on a server; or a Python file.",
    )
    name: Identifier | None = Field(
        default=None, description="Id on the network; the recipe's or model's name if absent."
    )
    capability: Capability | Annotated[tuple[Capability, ...], Field(min_length=1)] = Field(
        default="text.generate",
        description="What a model without a modelnet.json serves: one, or a list. text.embed and text.rerank, and what "
        "is below them, make it a pooling model.",
    )
    price: int = Field(default=100, ge=0, description="Micro-credits per task, unless its modelnet.json says.")
    price_per_token: float = Field(
        default=0, ge=0, description="Micro-credits on top: per token of max_tokens, for each answer."
    )
    price_per_input_token: float = Field(
        default=0, ge=0, description="Micro-credits on top: per token of the input, taken to be 3 bytes."
    )
    quality: float | None = Field(default=None, ge=0, le=1, description="Claimed share of good answers.")
    slots: int = Field(default=64, ge=1, description="Tasks at once.")
    backlog: int = Field(default=BACKLOG, ge=0, description="Tasks that wait here for a slot.")
    engine: EngineKind = Field(
        default="auto",
        description="auto, vllm, vllm-async or numpy; openai: a server that runs; function: a Python file.",
    )
    url: str | None = Field(default=None, description="Of the API of an OpenAI-compatible server: http://host:port/v1.")
    key_variable: str | None = Field(
        default=None, description="Environment variable with the server's key; MODELNET_OPENAI_API_KEY if absent."
    )
    requests_per_minute: int | None = Field(default=None, ge=1, description="As many as the server may be sent.")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="Of prompts and answers together.")
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
    cores: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Processor cores by number, on a machine without a GPU: the engine gets a process that computes on "
        "these, and what else runs of the network keeps off them.",
    )
    tool_parser: str | None = Field(
        default=None, description="vLLM's name of the syntax in which the model calls functions; none if absent."
    )
    adapters: dict[Identifier, AdapterConfig] = Field(default_factory=dict, description="LoRA adapters by name.")
    max_loras: int = Field(default=4, ge=1, description="Adapters in memory at once.")
    stall_s: float = Field(
        default=STALL_S, gt=0, description="The engine is replaced after so long without a step, with work waiting."
    )
    sleep_s: float | None = Field(
        default=None,
        gt=0,
        description="After so long without a task the model sleeps: its memory is given back, the next task wakes it.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the engine as they are: any of vLLM's engine arguments."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if wrong := next(self._misplaced(), None):
            raise ValueError(wrong)
        return self

    def _misplaced(self) -> Iterator[str]:
        given = self.model_fields_set
        if (self.engine == "openai") != (self.url is not None):
            yield 'a url and engine = "openai" go together'
        if self.engine != "openai" and (found := sorted(_OF_SERVERS & given)):
            yield f'{", ".join(found)}: only of a server that runs, engine = "openai"'
        if not self.loads and (found := sorted(_OF_LOADED & given)):
            yield f'{", ".join(found)}: only of a model that is loaded here, not of engine = "{self.engine}"'
        if self.loads and len({kind_of(one) == "generate" for one in self.declared}) > 1:
            yield "capability: a model that is loaded here generates or pools, not both"
        if self.pools and self.price_per_token:
            yield "price_per_token is of tokens that are drawn: vectors and scores have a price_per_input_token"
        if self.cores is not None and self.engine not in ("auto", "vllm-async"):
            yield f'cores: of an engine with a process of its own, "vllm-async", not of engine = "{self.engine}"'
        if self.cores is not None and self.processes:
            yield "cores are of a processor, devices and replicas of GPUs: give one of the two"
        if self.adapters and self.pools:
            yield f"adapters are of models that generate, not of {', '.join(self.declared)}"

    @property
    def loads(self) -> bool:
        """Whether it is loaded on this machine: it is neither on a server that runs nor a Python function."""
        return self.engine not in ("openai", "function")

    @property
    def declared(self) -> tuple[str, ...]:
        """What a model without a modelnet.json serves, its adapters aside."""
        return (self.capability,) if isinstance(self.capability, str) else self.capability

    @property
    def pools(self) -> bool:
        """Whether it gives vectors or scores instead of text."""
        return all(kind_of(capability) != "generate" for capability in self.declared)

    def adapter_capability(self, name: str) -> str:
        """What an adapter serves."""
        return self.adapters[name].capability or f"{self.declared[0]}.{name.lower()}"

    @property
    def recipe(self) -> ModelRecipe | None:
        """Its modelnet.json, if it has one. Raises `BadRecipe`."""
        return load_recipe(self.model) if self.loads and Path(self.model).is_dir() else None

    @property
    def capabilities(self) -> list[str]:
        """All that it serves. Raises `BadRecipe`."""
        if (recipe := self.recipe) is not None:
            return list(recipe.capabilities)
        return [*self.declared, *(self.adapter_capability(name) for name in self.adapters)]

    @property
    def worker(self) -> str:
        """Its id on the network: its name, its recipe's, or one that the model's name makes: of letters, digits, - and
        _, 64 at most. Raises `BadRecipe`."""
        if self.name is not None:
            return self.name
        named = recipe.name if (recipe := self.recipe) else Path(self.model).name
        return re.sub(r"[^A-Za-z0-9_-]+", "-", named).strip("-")[:64] or "model"

    def open(self) -> Engine:
        """Its engine, not started. Raises `UsageError`, `EngineUnavailable`."""
        try:
            return open_engine(self.model, kind=self.engine, **self.engine_options)
        except TypeError as error:
            raise UsageError(f"{self.model}: options: {error}") from None

    def _key(self) -> SecretStr:
        if self.key_variable is None:
            return settings().openai_api_key
        if self.key_variable not in os.environ:
            raise UsageError(f"{self.model}: the environment has no {self.key_variable}")
        return SecretStr(os.environ[self.key_variable])

    @property
    def engine_options(self) -> dict[str, Any]:
        """What `open_engine` takes beside model and kind. Raises `UsageError` for a key that is not there."""
        if not self.loads:
            elsewhere: dict[str, Any] = {"concurrency": self.slots}
            if self.engine == "openai":
                elsewhere |= {
                    "url": self.url,
                    "key": self._key(),
                    "max_model_len": self.max_model_len,
                    "requests_per_minute": self.requests_per_minute,
                    "tokens_per_minute": self.tokens_per_minute,
                }
            return elsewhere | self.options
        named = {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory,
            "tensor_parallel_size": self.tensor_parallel_size,
            "runner": "pooling" if self.pools else None,
            "tool_parser": self.tool_parser,
            "cores": self.cores,
            "sleeps": True if self.sleep_s is not None else None,
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


_OF_SERVERS = frozenset({"key_variable", "requests_per_minute", "tokens_per_minute"})
_OF_LOADED = frozenset(
    {
        "dtype",
        "gpu_memory",
        "tensor_parallel_size",
        "devices",
        "replicas",
        "cores",
        "tool_parser",
        "adapters",
        "max_loras",
        "stall_s",
        "sleep_s",
    }
)


def held_cores(models: Sequence[ModelConfig]) -> set[int]:
    """Those that engines have to themselves."""
    return {core for config in models for core in config.cores or ()}


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
    """With folders and Python files relative to the file made absolute."""
    changes: dict[str, Any] = {}
    at = folder / config.model
    if config.engine == "function" or (config.loads and at.is_dir()):
        changes["model"] = str(at)
    if config.adapters:
        changes["adapters"] = {
            name: one.model_copy(update={"path": str(folder / one.path)}) for name, one in config.adapters.items()
        }
    return config.model_copy(update=changes)
