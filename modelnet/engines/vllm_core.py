"""vLLM in this process: LLMEngine stepped in a thread, for small models on a CPU, several to a process.

All of them share one thread: vLLM keeps its forward context and current configuration in module globals
(vllm/forward_context.py, vllm/config), so two engines stepping at once would read each other's.
"""

import os
from collections.abc import Iterable
from typing import Any

from modelnet.engines.base import (
    Ability,
    EngineState,
    Prompt,
    Sampling,
)
from modelnet.engines.errors import EngineError
from modelnet.engines.pooling import Pooler, PoolRequest
from modelnet.engines.stepping import Item, StepThread
from modelnet.engines.thread_engine import ThreadEngine
from modelnet.engines.vllm_adapters import Adapters
from modelnet.engines.vllm_model import LoadedModel, VllmOptions
from modelnet.engines.vllm_requests import Counter, Probe, engine_args, pooled, refused, token_input
from modelnet.engines.vllm_setup import prepare_environment

__all__ = ["VllmCore", "vllm_thread_engine"]

_vllm_thread = StepThread("vllm")


def vllm_thread_engine(model: str, options: VllmOptions) -> ThreadEngine:
    """A model stepped in this process."""
    return ThreadEngine(VllmCore(model, options), _vllm_thread)


class VllmCore:
    """LLMEngine as a `StepCore`."""

    software = "vLLM"

    # EngineCore.shutdown tears down torch.distributed for the whole process, so only the last one out may do it.
    # Changed on the stepping thread only.
    _loaded = 0

    def __init__(self, model: str, options: VllmOptions) -> None:
        self.model = model
        self.max_model_len = 0
        self.abilities: frozenset[Ability] = options.abilities
        self.pooler: Pooler | None = None
        self._options = options
        self._adapters = Adapters(options.adapters, options.max_loras, model)
        self._engine: Any = None
        self._loaded_model: LoadedModel | None = None
        self._probe = Probe()
        self._max_running = 0
        self._ids: dict[str, str] = {}  # our key -> the id vLLM made of it
        self._counters: dict[str, Counter | None] = {}  # None: a pooling request

    def load(self) -> None:
        prepare_environment(self.model, in_process=True)
        import torch
        from vllm.v1.engine.llm_engine import LLMEngine

        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))  # torch may have been imported before the variable was set
        arguments = engine_args(self._options.arguments(self.model))
        engine = LLMEngine.from_engine_args(arguments, stat_loggers=self._probe.loggers())
        VllmCore._loaded += 1
        self._probe.configured(engine.vllm_config)
        self._engine = engine
        self._loaded_model = loaded = LoadedModel(engine, engine.get_supported_tasks(), self._options)
        self.max_model_len, self._max_running = loaded.max_model_len, loaded.max_running
        self.abilities, self.pooler = loaded.abilities, loaded.pooler

    @property
    def _model(self) -> LoadedModel:
        assert self._loaded_model is not None
        return self._loaded_model

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        return self._model.encoder.encode(prompt, answer)

    def decode(self, token_ids: list[int]) -> str:
        return self._model.encoder.decode(token_ids)

    def add(self, key: str, token_ids: list[int], prompt: Prompt, sampling: Sampling, adapter: str | None) -> None:
        apart = self._probe.tokens_apart(len(self._ids) + 1)
        params, counter = self._model.request(token_ids, prompt, sampling, apart)
        lora = self._adapters.request(adapter)
        if adapter is not None and not self._adapters.is_loaded(adapter):
            try:
                self._engine.add_lora(lora)
            except Exception as error:  # whatever is wrong with its files
                raise EngineError(f"the adapter {adapter} of {self.model} can't be loaded: {error}") from error
            self._adapters.note(adapter)
        self._begin(key, token_ids, params, counter, sampling, lora, prompt.cache_salt)

    def pool(self, key: str, request: PoolRequest) -> None:
        self._begin(key, request.token_ids, request.params, None, Sampling(), None, None)

    def _begin(
        self,
        key: str,
        token_ids: list[int],
        params: Any,
        counter: Counter | None,
        sampling: Sampling,
        lora: Any,
        salt: str | None,
    ) -> None:
        from vllm.exceptions import VLLMClientError

        try:
            rendered = token_input(token_ids, salt)
            self._ids[key] = self._engine.add_request(key, rendered, params, lora_request=lora)
        except (VLLMClientError, ValueError) as error:
            raise refused(error, sampling) from error
        self._counters[key] = counter

    def abort(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._counters.pop(key, None)
        if ids := [self._ids.pop(key) for key in keys if key in self._ids]:
            self._engine.abort_request(ids, internal=True)
        if not self._ids:
            self._probe.idle()

    def busy(self) -> bool:
        return bool(self._ids)

    def step(self) -> list[tuple[str, Item]]:
        items: list[tuple[str, Item]] = []
        self._probe.step_begins()
        for output in self._engine.step():
            key = output.request_id
            if key not in self._counters:
                continue
            counter = self._counters[key]
            if counter is not None:
                items += ((key, chunk) for chunk in counter.chunks(output))
            elif output.finished:
                items.append((key, pooled(output)))
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
