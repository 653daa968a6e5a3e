"""One model on the network: its engine, kept running, and the worker that answers with it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog

from modelnet import Context, Piece, Reject, Worker
from modelnet.contracts import sketch, standard_contract
from modelnet.engines import (
    BadSampling,
    CapabilityRecipe,
    Chunk,
    Engine,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineUnavailable,
    ModelRecipe,
    Prompt,
    Sampling,
    continued,
)
from modelnet.engines.base import needed as needed_for
from modelnet.engines.experience import Experience
from modelnet.engines.keeper import KeptEngine
from modelnet.engines.outlook import Outlook
from modelnet.estimates import Forecast
from modelnet.messages import HANDED_ON, Contract, Features
from modelnet.pricing import TokenPrice
from modelnet.settings import Settings, settings
from workers.vllm.config import ModelConfig, kind_of
from workers.vllm.inputs import Answers, most_tokens, needed, prompt_of, sampling_of

__all__ = ["Served"]

TaskKey = tuple[str, str]
"""Tenant and task."""
SUSPECTS = 1024
"""So many tasks are remembered that were in hand when the engine went down."""

log = structlog.get_logger("vllm_worker")


class Served:
    """A model on the network."""

    def __init__(
        self, config: ModelConfig, network: Settings | None = None, open_one: Callable[[], Engine] | None = None
    ) -> None:
        """`network`: settings of the worker's connection, else this process's. `open_one` opens its engine, else the
        one that the config names."""
        self.config = config
        self.engine = KeptEngine(
            open_one or config.open,
            stall_s=config.stall_s,
            sleep_s=config.sleep_s,
            comes_back=config.engine == "openai",
        )
        self._recipe = config.recipe
        self._model = self._recipe.name if self._recipe else config.model
        self.worker = Worker(
            config.worker, slots=config.slots, backlog=config.backlog, software=self.engine.software, config=network
        )
        self._requests = 0
        self._at_work: Counter[TaskKey] = Counter()
        self._suspects: OrderedDict[TaskKey, list[int]] = OrderedDict()
        """By task, with which engines, counted, it was in hand when they went down."""
        self._turns: set[asyncio.Task[None]] = set()
        learned = (network or settings()).data / "learned"
        self._outlook = Outlook(self.engine, Experience(learned, config.worker, config.model, self.engine.software))
        self.engine.on_down, self.engine.on_up, self.engine.on_lost = self._pause, self._resume, self._end_process
        self.engine.on_asleep = self._outlook.forget_cached

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Load the model, or find its server; declare what it can serve; and recall how long its answers took when it
        ran before. Raises `EngineUnavailable`."""
        await self.engine.start()
        self.worker.software = self.engine.software
        self._declare()
        recalled = self._outlook.recall()
        engine = type(self.engine.current).__name__
        log.info("engine_started", model=self.config.model, engine=engine, experienced=recalled)

    async def close(self) -> None:
        """Keep what was learned of its times, and free the engine."""
        self._outlook.keep()
        await self.engine.close()

    def _pause(self, reason: str) -> None:
        self._outlook.forget_cached()
        for key in self._at_work:
            self._suspect(key)
        self._turn(self.worker.pause(reason, hand_on=True))

    def _suspect(self, key: TaskKey) -> None:
        """The engine went down with this task in hand; the request that met it tells, or the watch, or both."""
        engines = self._suspects.setdefault(key, [])
        if self.engine.restarts not in engines:
            engines.append(self.engine.restarts)
        if len(self._suspects) > SUSPECTS:
            self._suspects.popitem(last=False)

    def _resume(self) -> None:
        self._turn(self.worker.resume())

    def _turn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)

    @staticmethod
    def _end_process() -> None:
        """Whoever supervises this process starts a new one, in which no thread hangs."""
        signal.raise_signal(signal.SIGTERM)

    # ------------------------------------------------------------------ what it serves

    def _declare(self) -> None:
        """Now that it is known what the engine can do."""
        if self._recipe is not None:
            self._declare_recipe(self._recipe)
            return
        for capability in self.config.declared:
            if (kind := kind_of(capability)) not in self.engine.abilities:
                can = ", ".join(sorted(self.engine.abilities))
                raise EngineUnavailable(f"{self.config.model} can't serve {capability}; what it can: {can}")
            if kind == "generate":
                self._declare_text(capability, None, self.config.price, self.config.quality, self._model)
            else:
                self._declare_pooling(capability)
        for name, adapter in self.config.adapters.items():
            price = self.config.price if adapter.price is None else adapter.price
            quality = adapter.quality if adapter.quality is not None else self.config.quality
            self._declare_text(self.config.adapter_capability(name), name, price, quality, f"{self._model}+{name}")

    def _delay(self) -> float:
        return self.engine.wake_s

    def _ready(self, input: dict[str, Any]) -> bool:
        return self.engine.wait_s(most_tokens(input)) == 0

    def _quote(self, price: int, *, answers: bool) -> TokenPrice | None:
        """None for a price that is the same for all. `answers`: whether tokens are drawn."""
        per_answer, per_input = self.config.price_per_token if answers else 0, self.config.price_per_input_token
        if not (per_answer or per_input):
            return None
        return TokenPrice(price, per_input, per_answer, Sampling().max_tokens)

    def _declare_recipe(self, recipe: ModelRecipe) -> None:
        for capability, mapped in recipe.capabilities.items():
            self.worker.capability(
                capability,
                price=mapped.price,
                quality=mapped.quality,
                model=recipe.name,
                estimate=self._estimate(mapped.sampling.max_tokens),
                able=self._able_with(mapped.sampling),
                ready=self._ready,
                delay=self._delay,
            )(self._mapped(mapped))

    def _able_with(self, sampling: Sampling) -> Callable[[dict[str, Any]], bool]:
        wants = needed_for(Prompt(text=""), sampling)
        return lambda input: wants <= self.engine.abilities

    def _mapped(self, mapped: CapabilityRecipe) -> Callable[..., Any]:
        async def answer(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            """A small model mapped onto this contract."""
            text = ""
            with _refusals():
                prompt = mapped.prompt(input)
            async for chunk in self._generate(ctx, prompt, mapped.sampling):
                text += chunk.text
            try:
                return mapped.parse(text)
            except EngineError as error:
                raise Reject(error.message, code=error.wire_code, retryable=True) from None

        return answer

    def _declare_text(
        self, capability: str, adapter: str | None, price: int, quality: float | None, model: str
    ) -> None:
        abilities = self.engine.abilities

        @self.worker.capability(
            capability,
            contract=_contract(capability),
            price=price,
            quote=self._quote(price, answers=True),
            quality=quality,
            model=model,
            estimate=self._estimate(Sampling().max_tokens, adapter),
            # A chat can only be gone on with by tokens, a prompt by its text as well.
            continues="tokens" in abilities or "chat" not in abilities,
            able=lambda input: needed(input) <= self.engine.abilities,
            ready=self._ready,
            delay=self._delay,
        )
        async def generate(ctx: Context, input: dict[str, Any]) -> AsyncIterator[Piece | dict[str, Any]]:
            """Text from a prompt or a chat."""
            with _refusals():
                prompt, sampling = prompt_of(input), sampling_of(input)
            answers = Answers(sampling, prompt, ctx.resume.text if ctx.resume is not None else "")
            async for chunk in self._generate(ctx, prompt, sampling, adapter=adapter, model=model):
                yield answers.add(chunk)
            yield answers.output()

    def _declare_pooling(self, capability: str) -> None:
        kind, price = kind_of(capability), self.config.price
        declare = self.worker.capability(
            capability,
            contract=_contract(capability),
            price=price,
            quote=self._quote(price, answers=False),
            quality=self.config.quality,
            model=self._model,
            able=lambda input: kind in self.engine.abilities,
            ready=self._ready,
            delay=self._delay,
        )
        declare(self._embed if kind == "embed" else self._rerank)

    async def _embed(self, ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
        """Vectors that stand for texts."""
        with self._request(ctx) as request:
            found = await self.engine.embed(request, input["texts"], dimensions=input.get("dimensions"))
        ctx.count(prompt_tokens=found.prompt_tokens)
        return {"vectors": [list(vector) for vector in found.vectors]}

    async def _rerank(self, ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
        """Documents in the order in which they answer a query."""
        with self._request(ctx) as request:
            found = await self.engine.score(request, input["query"], input["documents"])
        ctx.count(prompt_tokens=found.prompt_tokens)
        best = sorted(enumerate(found.scores), key=lambda one: -one[1])[: input.get("top_n")]
        return {"results": [{"index": index, "score": score} for index, score in best]}

    # ------------------------------------------------------------------ answering

    @contextlib.contextmanager
    def _request(self, ctx: Context) -> Iterator[str]:
        """The id of a new request; while it is with the engine, its task is under suspicion should that go down.

        The engine's end is nobody's fault once, and others may go on with what was in hand. A task that was in hand
        each time would bring down one engine after the other: then it is an error of this attempt.
        """
        key = ctx.tenant, ctx.task
        if len(self._suspects.get(key, ())) > 1:
            raise Reject("the engine went down twice with this task in hand", code="engine_dead", retryable=True)
        self._requests += 1
        met = self.engine.is_up
        self._at_work[key] += 1
        try:
            with _refusals():
                try:
                    yield f"{ctx.tenant}/{ctx.task}/{ctx.attempt}/{self._requests}"
                except EngineDead:
                    if met:
                        self._suspect(key)
                    raise
        finally:
            self._at_work[key] -= 1
            self._at_work += Counter()  # without those at zero

    async def _generate(
        self, ctx: Context, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None, model: str | None = None
    ) -> AsyncIterator[Chunk]:
        """Chunks of the answers; the request is freed however this ends."""
        # Of a tenant's own: how soon an answer begins would tell whether others' prompts begin like its own.
        prompt = replace(prompt, cache_salt=ctx.tenant)
        used, ended = (0, 0, 0), 0
        with self._request(ctx) as request:
            try:
                await self.engine.awake()  # before it counts, as the wait teaches nothing of the engine
                self._begin(ctx, request, sampling.max_tokens * sampling.n, adapter)
                if ctx.resume is None:
                    chunks = self.engine.generate(request, prompt, sampling, adapter=adapter)
                else:
                    ids = ctx.resume.tokens if ctx.resume.model == model else None
                    chunks = continued(self.engine, request, prompt, sampling, ctx.resume.text, ids, adapter=adapter)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        self._outlook.hear(request, chunk)
                        used = (chunk.prompt_tokens, chunk.completion_tokens, chunk.cached_tokens)
                        if chunk.finish_reason == "abort":
                            raise EngineDead(f"the engine of {self._model} gave the request up")
                        ended += chunk.finish_reason is not None
                        yield chunk
            finally:
                self._outlook.end(request, whole=ended == sampling.n)
                ctx.count(prompt_tokens=used[0], completion_tokens=used[1], cached_tokens=used[2])

    def _begin(self, ctx: Context, request: str, max_tokens: int, adapter: str | None) -> None:
        features, said = (ctx.bid.features, ctx.bid.forecast) if ctx.bid is not None else (None, None)
        self._outlook.begin(request, max_tokens, features, said if ctx.resume is None else None, adapter)

    def _estimate(self, default_tokens: int, adapter: str | None = None) -> Callable[[Features], Forecast | None]:
        def estimate(features: Features) -> Forecast | None:
            value = sketch(features.shape) if features.shape is not None else {}
            tokens = value.get("max_tokens") if isinstance(value, dict) else None
            return self._outlook.expect(features, tokens or default_tokens, adapter)

        return estimate


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What an engine says of a request, as the network takes it."""
    try:
        yield
    except (EngineDead, EngineBusy) as error:
        raise Reject(error.message, code=HANDED_ON, retryable=True) from None
    except EngineError as error:
        # Another model may have a longer context or a chat template, another server may be well.
        raise Reject(error.message, code=error.wire_code, retryable=not isinstance(error, BadSampling)) from None


def _contract(capability: str) -> Contract | None:
    """The standard contract of a capability, or of what it is a special case of: text.generate of
    text.generate.legal."""
    while (found := standard_contract(capability)) is None and "." in capability:
        capability = capability.rpartition(".")[0]
    return found
