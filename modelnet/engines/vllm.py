"""vLLM, the real one, behind the engine interface, by two drivers.

`vllm_thread_engine`  LLMEngine stepped in a thread of this process: small models on CPU, several to a process.
`VllmAsyncEngine`     AsyncLLM with an engine process of its own: GPUs and all large models.

All in-process engines share one thread: vLLM keeps its forward context and current configuration in module globals
(vllm/forward_context.py, vllm/config), so two engines stepping at once would read each other's.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from modelnet.engines.base import (
    Ability,
    BadPrompt,
    Chunk,
    DuplicateRequest,
    Embeddings,
    EngineDead,
    EngineError,
    EngineState,
    EngineUnavailable,
    Prompt,
    Sampling,
    Scores,
    Unsupported,
    aborted,
    needed,
    require,
)
from modelnet.engines.stepping import StepThread
from modelnet.engines.thread_engine import ThreadEngine
from modelnet.engines.vllm_requests import Counter, Encoder, Probe, engine_args, sampling_params, token_input
from modelnet.engines.vllm_setup import engine_options, prepare_environment, require_spawn_guard

__all__ = ["VllmAsyncEngine", "VllmCore", "vllm_thread_engine"]

_vllm_thread = StepThread("vllm")


def vllm_thread_engine(model: str, **options: Any) -> ThreadEngine:
    """`options` are vLLM's engine arguments."""
    return ThreadEngine(VllmCore(model, options), _vllm_thread)


def _encoder(engine: Any) -> Encoder:
    config = engine.vllm_config.model_config
    return Encoder(
        engine.renderer.get_tokenizer(), max_model_len=config.max_model_len, vocab_size=config.get_vocab_size()
    )


class VllmCore:
    """LLMEngine as a `StepCore`."""

    software = "vLLM"
    abilities: frozenset[Ability] = frozenset({"generate", "tokens"})

    # EngineCore.shutdown tears down torch.distributed for the whole process, so only the last one out may do it.
    # Changed on the stepping thread only.
    _loaded = 0

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.model = model
        self.max_model_len = 0
        self._options = options
        self._engine: Any = None
        self._encoder: Encoder | None = None
        self._probe = Probe()
        self._max_running = 0
        self._ids: dict[str, str] = {}  # our key -> the id vLLM made of it
        self._counters: dict[str, Counter] = {}

    def load(self) -> None:
        prepare_environment(self.model, in_process=True)
        import torch
        from vllm.v1.engine.llm_engine import LLMEngine

        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))  # torch may have been imported before the variable was set
        engine = LLMEngine.from_engine_args(
            engine_args(engine_options(self.model, self._options)), stat_loggers=self._probe.loggers()
        )
        VllmCore._loaded += 1
        self._encoder = _encoder(engine)
        self.max_model_len = engine.vllm_config.model_config.max_model_len
        self._max_running = engine.vllm_config.scheduler_config.max_num_seqs
        self._engine = engine

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        assert self._encoder is not None
        return self._encoder.encode(prompt, answer)

    def decode(self, token_ids: list[int]) -> str:
        assert self._encoder is not None
        return self._encoder.decode(token_ids)

    def add(self, key: str, token_ids: list[int], prompt: Prompt, sampling: Sampling, adapter: str | None) -> None:
        from vllm.exceptions import VLLMClientError

        if adapter is not None:
            raise Unsupported(f"{self.model} has no adapter {adapter}")

        params = sampling_params(sampling)
        try:
            self._ids[key] = self._engine.add_request(key, token_input(token_ids), params)
        except (VLLMClientError, ValueError) as error:
            raise BadPrompt(f"vLLM refused the request: {error}") from error
        self._counters[key] = Counter(len(token_ids))

    def abort(self, keys: Iterable[str]) -> None:
        if ids := [self._ids.pop(key) for key in keys if self._counters.pop(key, None)]:
            self._engine.abort_request(ids, internal=True)

    def busy(self) -> bool:
        return bool(self._ids)

    def step(self) -> list[tuple[str, Chunk | EngineError]]:
        items: list[tuple[str, Chunk | EngineError]] = []
        for output in self._engine.step():
            key = output.request_id
            counter = self._counters.get(key)
            if counter is None:
                continue
            items.append((key, counter.chunk(output)))
            if output.finished:
                del self._counters[key], self._ids[key]
        return items

    def state(self) -> EngineState:
        engine = self._engine
        if engine is None:
            return self._probe.state(max_running=self._max_running, running=0, waiting=0, kv_cache_usage=0.0)
        # In process the scheduler itself can be asked. What was recorded is of the last step, and after an abort
        # there may be no other for a while.
        scheduler = engine.engine_core.engine_core.scheduler
        running, waiting = scheduler.get_request_counts()
        return self._probe.state(
            max_running=self._max_running,
            running=running,
            waiting=waiting,
            kv_cache_usage=scheduler.get_kv_cache_usage(),
        )

    def close(self) -> None:
        engine, self._engine = self._engine, None
        self._ids.clear()
        self._counters.clear()
        if engine is None:
            return
        VllmCore._loaded -= 1
        engine.renderer.shutdown()
        client = engine.engine_core
        if VllmCore._loaded == 0:
            client.shutdown()
            return
        client._finalizer.detach()  # it would call the full shutdown when collected
        client.engine_core.structured_output_manager.clear_backend()
        client.engine_core.model_executor.shutdown()
        client.engine_core.scheduler.shutdown()


class VllmAsyncEngine:
    """AsyncLLM as an `Engine`. `options` are vLLM's engine arguments."""

    def __init__(self, model: str, **options: Any) -> None:
        self._model = model
        self._options = options
        self._llm: Any = None
        self._encoder: Encoder | None = None
        self._probe = Probe()
        self._max_model_len = 0
        self._max_running = 0
        self._requests: set[str] = set()
        self._aborted: set[str] = set()
        self._arriving = 0  # requests being tokenized
        self._closed = False

    @property
    def model(self) -> str:
        return self._model

    @property
    def software(self) -> str:
        return "vLLM, a process of its own"

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"generate", "tokens"})

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        raise Unsupported(f"{self.model} makes no vectors as it is served here")

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        raise Unsupported(f"{self.model} ranks no documents as it is served here")

    async def start(self) -> None:
        require_spawn_guard(self.model)
        try:
            # In a thread: it takes from ten seconds to minutes. vLLM binds itself to the loop on the first request.
            llm = await asyncio.to_thread(self._load)
        except EngineError:
            raise
        except Exception as error:
            raise EngineUnavailable(f"{self.model} did not start: {error}") from error
        self._encoder = _encoder(llm)
        self._max_model_len = llm.vllm_config.model_config.max_model_len
        self._max_running = llm.vllm_config.scheduler_config.max_num_seqs
        self._llm = llm

    def _load(self) -> Any:
        prepare_environment(self.model, in_process=False)
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_args({"disable_log_stats": True, **engine_options(self.model, self._options)})
        return AsyncLLM.from_engine_args(arguments, stat_loggers=self._probe.loggers())

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        return self._require_encoder().encode(prompt, answer)

    def decode(self, token_ids: list[int]) -> str:
        return self._require_encoder().decode(token_ids)

    def _require_encoder(self) -> Encoder:
        if self._encoder is None or self._closed:
            raise EngineDead(f"the engine of {self.model} does not run")
        return self._encoder

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        await self.health()
        require(self.abilities, needed(prompt, sampling), self.model)
        if adapter is not None:
            raise Unsupported(f"{self.model} has no adapter {adapter}")
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        if request_id in self._requests:
            raise DuplicateRequest(f"a request {request_id!r} is running in this engine")
        assert self._encoder is not None
        self._requests.add(request_id)
        try:
            self._arriving += 1
            try:
                token_ids = await asyncio.to_thread(self._encoder.encode, prompt)
            finally:
                self._arriving -= 1
            if request_id in self._aborted:
                yield aborted(len(token_ids))
                return
            counter = Counter(len(token_ids))
            outputs = self._llm.generate(token_input(token_ids), sampling_params(sampling), request_id)
            async with aclosing(outputs):
                async for output in outputs:
                    item = counter.chunk(output)
                    if isinstance(item, EngineError):
                        raise item
                    yield item
        except EngineDeadError as error:
            raise EngineDead(f"the engine process of {self.model} died: {error}") from error
        except (VLLMClientError, ValueError) as error:
            raise BadPrompt(f"vLLM refused the request: {error}") from error
        finally:
            self._requests.discard(request_id)
            self._aborted.discard(request_id)

    async def abort(self, request_id: str) -> None:
        if self._llm is not None and request_id in self._requests:
            self._aborted.add(request_id)  # it may not have reached vLLM yet
            await self._llm.abort(request_id)

    def state(self) -> EngineState:
        if self._llm is None or self._llm.errored:
            return self._probe.state(max_running=self._max_running, running=0, waiting=0, kv_cache_usage=0.0)
        # What was recorded is of the engine's last step; after an abort there may be no other for a while, but the
        # requests it still has are known here.
        unfinished = self._llm.output_processor.get_num_unfinished_requests()
        last = self._probe.state(max_running=self._max_running)
        running = min(last.running, unfinished)
        return self._probe.state(
            max_running=self._max_running,
            running=running,
            waiting=unfinished - running + self._arriving,
            kv_cache_usage=last.kv_cache_usage if unfinished else 0.0,
        )

    async def health(self) -> None:
        if self._closed:
            raise EngineDead(f"the engine of {self.model} was closed")
        if self._llm is None:
            raise EngineDead(f"the engine of {self.model} was not started")
        try:
            await self._llm.check_health()
        except Exception as error:
            raise EngineDead(f"the engine process of {self.model} died: {error}") from error

    async def close(self) -> None:
        # Dropped here, because vLLM's __del__ fails noisily when it is left for the interpreter's end.
        llm, self._llm = self._llm, None
        self._closed = True
        if llm is None:
            return
        from vllm.v1.engine.exceptions import EngineDeadError

        # A shutdown alone leaves the consumers of running requests waiting for good.
        llm.output_processor.propagate_error(EngineDeadError())
        await asyncio.to_thread(llm.shutdown)
