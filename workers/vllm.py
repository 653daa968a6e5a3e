"""The vLLM worker: models named in a file, each a participant of its own, in one process.

`MODELNET_WORKERS_FILE` names a TOML file of `[[models]]`, see `ModelConfig`. A model whose folder holds a modelnet.json
serves the capabilities mapped there; any other Hugging Face name or folder serves `text.generate`. In a checkout the
default is examples/specialists/workers.toml.
"""

from __future__ import annotations

import os
import re
import signal
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import structlog
from faststream import FastStream
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from modelnet import Context, Piece, Reject, Worker, worker_app
from modelnet.bus.journal import first_error
from modelnet.contracts import sketch
from modelnet.engines import (
    Ability,
    BadSampling,
    CapabilityRecipe,
    Engine,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineKind,
    EngineUnavailable,
    Grammar,
    ModelRecipe,
    Prompt,
    Sampling,
    continued,
    load_recipe,
    open_engine,
)
from modelnet.engines.experience import Experience
from modelnet.engines.outlook import Outlook
from modelnet.errors import UsageError
from modelnet.estimates import Forecast
from modelnet.messages import HANDED_ON, Features
from modelnet.pricing import TokenPrice
from modelnet.settings import Settings, settings
from modelnet.worker import BACKLOG

__all__ = ["ModelConfig", "Served", "check_models", "make_app", "models_app", "read_config"]

log = structlog.get_logger("vllm_worker")

FILE_VARIABLE = "MODELNET_WORKERS_FILE"
SPECIALISTS = Path(__file__).resolve().parent.parent / "examples" / "specialists" / "workers.toml"
"""What a checkout serves unless told otherwise."""


class ModelConfig(BaseModel):
    """One `[[models]]` table of the workers file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        description="Folder, relative to the file, or Hugging Face name; with a url, its name there; or a Python file."
    )
    name: str | None = Field(default=None, description="Id on the network; the recipe's or model's name if absent.")
    capability: str | tuple[str, ...] = Field(
        default="text.generate", description="What a model without a modelnet.json serves: one, or a list."
    )
    price: int = Field(default=100, ge=0, description="Micro-credits per task, unless its modelnet.json says.")
    price_per_token: float = Field(default=0, ge=0, description="Micro-credits per token of max_tokens, on top.")
    price_per_input_token: float = Field(default=0, ge=0, description="And per token of the input, about 3 bytes.")
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
    options: dict[str, Any] = Field(default_factory=dict, description="Passed to the engine: max_model_len, …")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.engine == "openai") != (self.url is not None):
            raise ValueError('a url and engine = "openai" go together')
        return self

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What a model without a modelnet.json serves."""
        return (self.capability,) if isinstance(self.capability, str) else self.capability

    def open(self) -> Engine:
        """Its engine, not started. Raises `UsageError`, `EngineUnavailable`."""
        options = dict(self.options)
        if self.engine == "openai":
            limits = {"requests_per_minute": self.requests_per_minute, "tokens_per_minute": self.tokens_per_minute}
            options = {"url": self.url, "key": self._key(), "concurrency": self.slots, **limits, **options}
        try:
            return open_engine(self.model, kind=self.engine, **options)
        except TypeError as error:
            raise UsageError(f"{self.model}: options: {error}") from None

    def _key(self) -> SecretStr:
        if self.key_variable is None:
            return settings().openai_api_key
        if self.key_variable not in os.environ:
            raise UsageError(f"{self.model}: the environment has no {self.key_variable}")
        return SecretStr(os.environ[self.key_variable])


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
    return [
        c.model_copy(update={"model": str(at)}) if at.is_dir() or c.engine == "function" else c
        for c, at in zip(found, local, strict=True)
    ]


class Served:
    """A model on the network: its engine, and the worker that answers with it."""

    def __init__(self, config: ModelConfig, network: Settings | None = None) -> None:
        """`network`: settings of the worker's connection, else this process's."""
        self.config = config
        self.engine: Engine = config.open()
        recipe = load_recipe(config.model) if Path(config.model).is_dir() else None
        name = config.name or (recipe.name if recipe else _worker_id(config.model))
        self._model = recipe.name if recipe else config.model
        self.worker = Worker(
            name, slots=config.slots, backlog=config.backlog, software=self.engine.software, config=network
        )
        self._requests = 0
        learned = (network or settings()).data / "learned"
        self._outlook = Outlook(self.engine, Experience(learned, name, config.model, self.engine.software))
        self._recipe = recipe

    def _declare(self) -> None:
        """Declare what it serves, once it is known what the engine can do. Raises `EngineUnavailable`."""
        if self._recipe is not None:
            self._declare_recipe(self._recipe)
            return
        for capability in self.config.capabilities:
            kind, declare = next(
                (
                    found
                    for base, found in self._kinds().items()
                    if capability == base or capability.startswith(f"{base}.")
                ),
                ("generate", self._declare_generation),
            )
            if kind not in self.engine.abilities:
                can = ", ".join(sorted(self.engine.abilities))
                raise EngineUnavailable(f"{self.config.model} can't serve {capability}; what it can: {can}")
            declare(capability)

    def _kinds(self) -> dict[str, tuple[str, Callable[[str], None]]]:
        return {"text.embed": ("embed", self._declare_embedding), "text.rerank": ("score", self._declare_ranking)}

    def _ready(self, input: dict[str, Any]) -> bool:
        return self.engine.wait_s(_most_tokens(input)) == 0

    def _quote(self, *, answers: bool) -> TokenPrice | None:
        """None for a price that is the same for all. `answers`: whether tokens are drawn."""
        config, per_answer = self.config, self.config.price_per_token if answers else 0
        if not (per_answer or config.price_per_input_token):
            return None
        return TokenPrice(config.price, config.price_per_input_token, per_answer, Sampling().max_tokens)

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

    def _declare_embedding(self, capability: str) -> None:
        @self.worker.capability(
            capability, price=self.config.price, quote=self._quote(answers=False), model=self._model, ready=self._ready
        )
        async def embed(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            """Vectors of texts."""
            with self._telling():
                found = await self.engine.embed(self._id(ctx), input["texts"], dimensions=input.get("dimensions"))
            ctx.count(prompt_tokens=found.prompt_tokens)
            return {"vectors": [[*vector] for vector in found.vectors]}

    def _declare_ranking(self, capability: str) -> None:
        @self.worker.capability(
            capability, price=self.config.price, quote=self._quote(answers=False), model=self._model, ready=self._ready
        )
        async def rerank(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            """Documents by how well they answer a query."""
            with self._telling():
                found = await self.engine.score(self._id(ctx), input["query"], input["documents"])
            ctx.count(prompt_tokens=found.prompt_tokens)
            ranked = sorted(enumerate(found.scores), key=lambda one: -one[1])[: input.get("top_n")]
            return {"results": [{"index": index, "score": score} for index, score in ranked]}

    def _declare_generation(self, capability: str) -> None:
        abilities = self.engine.abilities

        @self.worker.capability(
            capability,
            contract=None,
            price=self.config.price,
            quote=self._quote(answers=True),
            model=self._model,
            estimate=self._estimate(Sampling().max_tokens),
            # A chat can only be gone on with by tokens, a prompt by its text as well.
            continues="tokens" in abilities or "chat" not in abilities,
            able=lambda input: _needed(input) <= self.engine.abilities,
            ready=self._ready,
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
        request = self._id(ctx)
        used = (0, 0, 0)
        whole = False
        try:
            with self._telling():
                # Of a tenant's own: how soon an answer begins would tell whether others' prompts begin like its own.
                asked, wanted = replace(prompt(), cache_salt=ctx.tenant), sampling()
                self._begin(ctx, request, wanted.max_tokens)
                if ctx.resume is None:
                    chunks = self.engine.generate(request, asked, wanted)
                else:
                    ids = ctx.resume.tokens if ctx.resume.model == self._model else None
                    chunks = continued(self.engine, request, asked, wanted, ctx.resume.text, ids)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        self._outlook.hear(request, chunk)
                        used = (chunk.prompt_tokens, chunk.completion_tokens, chunk.cached_tokens)
                        whole = chunk.finish_reason in ("stop", "length")
                        yield Piece(chunk.text, chunk.token_ids), chunk.finish_reason
        finally:
            self._outlook.end(request, whole=whole)
            ctx.count(prompt_tokens=used[0], completion_tokens=used[1], cached_tokens=used[2])

    def _id(self, ctx: Context) -> str:
        self._requests += 1
        return f"{ctx.tenant}/{ctx.task}/{ctx.attempt}/{self._requests}"

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What an engine raises, as it is told to whoever asked."""
        try:
            yield
        except EngineDead as error:
            if self.config.engine == "openai":  # it is away, and found again: until then this worker refuses
                raise Reject(error.message, code=HANDED_ON, retryable=True) from None
            # A dead engine does not come back in this process: whoever supervises it starts a new one.
            log.error("engine_dead", model=self.config.model, error=error.message)
            signal.raise_signal(signal.SIGTERM)
            raise Reject(error.message, code=error.wire_code, retryable=True) from None
        except EngineBusy as error:
            raise Reject(error.message, code=HANDED_ON, retryable=True) from None
        except EngineError as error:
            # Another model may have a longer context or a chat template, another server may be well.
            raise Reject(error.message, code=error.wire_code, retryable=not isinstance(error, BadSampling)) from None

    async def start(self) -> None:
        """Load the model, and recall how long its answers took when it ran before."""
        await self.engine.start()
        self.worker.software = self.engine.software
        self._declare()
        recalled = self._outlook.recall()
        log.info("engine_started", model=self.config.model, engine=type(self.engine).__name__, experienced=recalled)

    async def close(self) -> None:
        """Keep what was learned of its times, and free the engine."""
        self._outlook.keep()
        await self.engine.close()

    def _begin(self, ctx: Context, request: str, max_tokens: int) -> None:
        features, said = (ctx.bid.features, ctx.bid.forecast) if ctx.bid is not None else (None, None)
        self._outlook.begin(request, max_tokens, features, said if ctx.resume is None else None)

    def _estimate(self, default_tokens: int) -> Callable[[Features], Forecast | None]:
        def estimate(features: Features) -> Forecast | None:
            value = sketch(features.shape) if features.shape is not None else {}
            tokens = value.get("max_tokens") if isinstance(value, dict) else None
            return self._outlook.expect(features, tokens or default_tokens)

        return estimate


_PENALTIES = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_AS_THEY_ARE = ("max_tokens", "temperature", "top_p", "top_k", "seed", "n", "logprobs", *_PENALTIES)


def _needed(input: dict[str, Any]) -> set[Ability]:
    """What an engine must be able to do for an input, or for one of which only the shape is known."""
    grammar = input.get("grammar") or {}
    wants: dict[Ability, bool] = {
        "prompt": "prompt" in input,
        "chat": "messages" in input,
        "top_k": "top_k" in input,
        "seed": "seed" in input,
        "choices": input.get("n", 1) > 1,
        "logprobs": "logprobs" in input,
        "penalties": any(name in input for name in _PENALTIES),
        "json": "json_schema" in grammar or "json_object" in grammar,
        "grammar": "regex" in grammar or "choice" in grammar,
        "tools": "tools" in input,
    }
    return {ability for ability, wanted in wants.items() if wanted}


def _most_tokens(input: dict[str, Any]) -> int:
    """What an input may use, prompt and answer: a token of it is about four characters."""
    messages = input.get("messages")
    texts = [input.get("prompt"), input.get("query"), *(input.get("texts") or ()), *(input.get("documents") or ())]
    texts += [one.get("content") for one in messages] if isinstance(messages, list | tuple) else []
    read = sum(len(text) for text in texts if isinstance(text, str)) // 4 + 1
    answers = int(input.get("n") or 1) if "prompt" in input or "messages" in input else 0
    return read + answers * int(input.get("max_tokens") or Sampling().max_tokens)


def _worker_id(model: str) -> str:
    """An id that a model's name makes: of letters, digits, - and _, 64 at most."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(model).name).strip("-")[:64] or "model"


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


def make_app(models: Path | Sequence[ModelConfig]) -> FastStream:
    """All models of a workers file, or those named, as one FastStream app."""
    served = [Served(config) for config in (read_config(models) if isinstance(models, Path) else models)]

    async def start() -> None:
        for one in served:
            await one.start()

    async def close() -> None:
        for one in served:
            await one.close()

    return worker_app(*(one.worker for one in served), before=start, after=close)


def models_app(tables: Sequence[Mapping[str, Any]]) -> FastStream:
    """The app of models told as tables of a workers file. Raises `UsageError`."""
    return make_app([_table(table) for table in tables])


async def check_models(tables: Sequence[Mapping[str, Any]]) -> None:
    """Whether models could be served that run elsewhere: each is found and asked what it can do, and nothing joins.
    Raises `EngineUnavailable`, `UsageError`."""
    for table in tables:
        served = Served(_table(table))
        try:
            await served.start()
        finally:
            await served.close()


def _table(table: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig(**table)
    except ValidationError as error:
        raise UsageError(first_error(error)) from None


def __getattr__(name: str) -> FastStream:
    """`workers.vllm:app`, made on first use, so that importing this module loads no model and reads no file."""
    if name != "app":
        raise AttributeError(name)
    file = os.environ.get(FILE_VARIABLE)
    if not file and not SPECIALISTS.exists():
        raise UsageError(f"set {FILE_VARIABLE} to a workers file: a TOML file with a [[models]] table for each model")
    return make_app(Path(file) if file else SPECIALISTS)
