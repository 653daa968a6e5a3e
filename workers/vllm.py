"""The vLLM worker: models named in a file, each a participant of its own, in one process.

`MODELNET_WORKERS_FILE` names a TOML file of `[[models]]`, see `ModelConfig`. A model whose folder holds a modelnet.json
serves the capabilities mapped there; any other Hugging Face name or folder serves `text.generate`. In a checkout the
default is examples/specialists/workers.toml.
"""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import structlog
from faststream import FastStream
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelnet import Context, Piece, Reject, Worker, worker_app
from modelnet.bus.journal import first_error
from modelnet.contracts import sketch
from modelnet.engines import (
    Ability,
    BadPrompt,
    BadSampling,
    CapabilityRecipe,
    Engine,
    EngineDead,
    EngineError,
    EngineKind,
    Grammar,
    ModelRecipe,
    Prompt,
    Sampling,
    Unsupported,
    continued,
    load_recipe,
    open_engine,
)
from modelnet.errors import UsageError
from modelnet.messages import Features
from modelnet.settings import Settings
from modelnet.worker import BACKLOG

__all__ = ["ModelConfig", "Served", "make_app", "read_config"]

log = structlog.get_logger("vllm_worker")

FILE_VARIABLE = "MODELNET_WORKERS_FILE"
SPECIALISTS = Path(__file__).resolve().parent.parent / "examples" / "specialists" / "workers.toml"
"""What a checkout serves unless told otherwise."""


class ModelConfig(BaseModel):
    """One `[[models]]` table of the workers file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Folder, relative to the file, or Hugging Face name.")
    name: str | None = Field(default=None, description="Id on the network; the recipe's or model's name if absent.")
    capability: str = Field(default="text.generate", description="What a model without a modelnet.json serves.")
    price: int = Field(default=100, ge=0, description="Micro-credits per task, unless its modelnet.json says.")
    price_per_token: int = Field(default=0, ge=0, description="Micro-credits per token of max_tokens, on top.")
    slots: int = Field(default=64, ge=1, description="Tasks at once.")
    backlog: int = Field(default=BACKLOG, ge=0, description="Tasks that wait here for a slot.")
    engine: EngineKind = Field(default="auto", description="auto, vllm, vllm-async or numpy.")
    options: dict[str, Any] = Field(default_factory=dict, description="Passed to the engine: max_model_len, …")


def read_config(path: Path) -> list[ModelConfig]:
    """The models of a workers file, folders made absolute. Raises `UsageError`."""
    try:
        tables = tomllib.loads(path.read_text())
        found = [ModelConfig(**table) for table in tables.get("models", [])]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from None
    except ValidationError as error:
        raise UsageError(f"{path}: {first_error(error)}") from None
    if not found:
        raise UsageError(f"{path} names no models: it needs at least one [[models]] table")
    local = [path.parent / config.model for config in found]
    return [c.model_copy(update={"model": str(at)}) if at.is_dir() else c for c, at in zip(found, local, strict=True)]


class Served:
    """A model on the network: its engine, and the worker that answers with it."""

    def __init__(self, config: ModelConfig, network: Settings | None = None) -> None:
        """`network`: settings of the worker's connection, else this process's."""
        self.config = config
        self.engine: Engine = open_engine(config.model, kind=config.engine, **config.options)
        recipe = load_recipe(config.model) if Path(config.model).is_dir() else None
        name = config.name or (recipe.name if recipe else Path(config.model).name)
        self._model = recipe.name if recipe else config.model
        self.worker = Worker(
            name, slots=config.slots, backlog=config.backlog, software=self.engine.software, config=network
        )
        self._requests = 0
        if recipe is not None:
            self._declare_recipe(recipe)
        else:
            self._declare_generation()

    def _declare_recipe(self, recipe: ModelRecipe) -> None:
        for capability, mapped in recipe.capabilities.items():
            self.worker.capability(
                capability,
                price=mapped.price,
                quality=mapped.quality,
                model=recipe.name,
                estimate=self._estimate(mapped.sampling.max_tokens),
            )(self._mapped(mapped))

    def _mapped(self, mapped: CapabilityRecipe) -> Callable[..., Any]:
        async def answer(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            """A small model mapped onto this contract."""
            text = ""
            async for piece, _ in self._generate(ctx, lambda: mapped.prompt(input), lambda: mapped.sampling):
                text += piece
            try:
                return mapped.parse(text)
            except EngineError as error:
                raise Reject(error.message, code=error.wire_code, retryable=True) from None

        return answer

    def _declare_generation(self) -> None:
        config = self.config

        def price(input: dict[str, Any]) -> int:
            return config.price + config.price_per_token * int(input.get("max_tokens") or Sampling().max_tokens)

        @self.worker.capability(
            config.capability,
            contract=None,
            price=price if config.price_per_token else config.price,
            model=self._model,
            estimate=self._estimate(Sampling().max_tokens),
            continues="tokens" in self.engine.abilities,
            able=lambda input: _needed(input) <= self.engine.abilities,
        )
        async def generate(ctx: Context, input: dict[str, Any]) -> AsyncIterator[str | dict[str, Any]]:
            """Text from a prompt or a chat."""
            text, reason = ctx.resume.text if ctx.resume else "", "stop"
            async for piece, finish in self._generate(ctx, lambda: _prompt(input), lambda: _sampling(input)):
                text += piece
                reason = finish or reason
                yield piece
            yield {"text": text, "finish_reason": reason}

    async def _generate(
        self, ctx: Context, prompt: Callable[[], Prompt], sampling: Callable[[], Sampling]
    ) -> AsyncIterator[tuple[Piece, str | None]]:
        """Pieces of text, each with the finish reason once there is one; the request is freed however this ends."""
        self._requests += 1
        request = f"{ctx.tenant}/{ctx.task}/{ctx.attempt}/{self._requests}"
        used = (0, 0)
        try:
            if ctx.resume is None:
                chunks = self.engine.generate(request, prompt(), sampling())
            else:
                ids = ctx.resume.tokens if ctx.resume.model == self._model else None
                chunks = continued(self.engine, request, prompt(), sampling(), ctx.resume.text, ids)
            async with aclosing(chunks):
                async for chunk in chunks:
                    used = (chunk.prompt_tokens, chunk.completion_tokens)
                    yield Piece(chunk.text, chunk.token_ids), chunk.finish_reason
        except (BadPrompt, BadSampling, Unsupported) as error:
            # Another model may have a longer context or a chat template.
            raise Reject(error.message, code=error.wire_code, retryable=not isinstance(error, BadSampling)) from None
        except EngineDead as error:
            # A dead engine does not come back in this process: whoever supervises it starts a new one.
            log.error("engine_dead", model=self.config.model, error=error.message)
            signal.raise_signal(signal.SIGTERM)
            raise Reject(error.message, code=error.wire_code, retryable=True) from None
        finally:
            ctx.count(prompt_tokens=used[0], completion_tokens=used[1])

    def _estimate(self, default_tokens: int) -> Callable[[Features], tuple[float, float] | None]:
        """(p50, p90) in ms from the engine's state: its queue, measured time to first token, and measured speed."""

        def estimate(features: Features) -> tuple[float, float] | None:
            state = self.engine.state()
            if state.ttft_ms is None or not state.decode_tokens_per_s:
                return None
            value = sketch(features.shape) if features.shape is not None else {}
            tokens = value.get("max_tokens") if isinstance(value, dict) else None
            decode_ms = (tokens or default_tokens) / state.decode_tokens_per_s * 1e3
            queued_ms = state.waiting / max(state.max_running, 1) * (state.ttft_ms + decode_ms)
            longest = queued_ms + state.ttft_ms + decode_ms
            return longest, longest * 2

        return estimate


_PENALTIES = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_AS_THEY_ARE = ("max_tokens", "temperature", "top_p", "top_k", "seed", "n", "logprobs", *_PENALTIES)


def _needed(input: dict[str, Any]) -> set[Ability]:
    """What an engine must be able to do for an input, or for one of which only the shape is known."""
    wants: dict[Ability, bool] = {
        "choices": input.get("n", 1) > 1,
        "logprobs": "logprobs" in input,
        "penalties": any(name in input for name in _PENALTIES),
        "grammar": "grammar" in input,
        "tools": "tools" in input,
    }
    return {ability for ability, wanted in wants.items() if wanted}


def _prompt(input: dict[str, Any]) -> Prompt:
    messages = input.get("messages")
    return Prompt(
        text=input.get("prompt"),
        messages=tuple(messages) if messages is not None else None,
        tools=tuple(input.get("tools", ())),
        tool_choice=input.get("tool_choice", "auto"),
    )


def _sampling(input: dict[str, Any]) -> Sampling:
    given = {key: input[key] for key in _AS_THEY_ARE if key in input}
    stop, grammar = input.get("stop") or (), input.get("grammar")
    if grammar is not None:
        grammar = Grammar(**{**grammar, "choice": tuple(grammar.get("choice", ()))})
    return Sampling(**given, stop=(stop,) if isinstance(stop, str) else tuple(stop), grammar=grammar)


def make_app(path: Path) -> FastStream:
    """All models of a workers file as one FastStream app."""
    served = [Served(config) for config in read_config(path)]

    async def start() -> None:
        for one in served:
            await one.engine.start()
            log.info("engine_started", model=one.config.model, engine=type(one.engine).__name__)

    async def close() -> None:
        for one in served:
            await one.engine.close()

    return worker_app(*(one.worker for one in served), before=start, after=close)


def __getattr__(name: str) -> FastStream:
    """`workers.vllm:app`, made on first use, so that importing this module loads no model and reads no file."""
    if name != "app":
        raise AttributeError(name)
    file = os.environ.get(FILE_VARIABLE)
    if not file and not SPECIALISTS.exists():
        raise UsageError(f"set {FILE_VARIABLE} to a workers file: a TOML file with a [[models]] table for each model")
    return make_app(Path(file) if file else SPECIALISTS)
