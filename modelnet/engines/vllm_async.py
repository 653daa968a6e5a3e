"""vLLM in a process of its own: AsyncLLM, for GPUs and all large models."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from modelnet.cores import starting_on
from modelnet.engines.base import (
    Ability,
    Chunk,
    Embeddings,
    EngineState,
    Prompt,
    Sampling,
    Scores,
    aborted,
    needed,
    require,
    tokenized,
)
from modelnet.engines.errors import BadPrompt, DuplicateRequest, EngineDead, EngineError, EngineUnavailable
from modelnet.engines.pooling import Pooled, Pooler, PoolRequest
from modelnet.engines.vllm_adapters import Adapters
from modelnet.engines.vllm_model import LoadedModel, VllmOptions
from modelnet.engines.vllm_requests import Probe, engine_args, pooled, refused, token_input
from modelnet.engines.vllm_setup import prepare_environment, require_spawn_guard

__all__ = ["VllmAsyncEngine"]


class VllmAsyncEngine:
    """AsyncLLM as an `Engine`."""

    def __init__(self, model: str, options: VllmOptions) -> None:
        self._model = model
        self._options = options
        self._adapters = Adapters(options.adapters, options.max_loras, model)
        self._llm: Any = None
        self._loaded: LoadedModel | None = None
        self._probe = Probe()
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
        return self._loaded.max_model_len if self._loaded is not None else 0

    @property
    def abilities(self) -> frozenset[Ability]:
        return self._loaded.abilities if self._loaded is not None else self._options.abilities

    @property
    def processes(self) -> tuple[int, ...]:
        """Ids of the engine's own processes."""
        manager = self._llm.engine_core.resources.engine_manager if self._llm is not None else None
        return tuple(process.pid for process in manager.processes) if manager is not None else ()

    async def start(self) -> None:
        require_spawn_guard(self.model)
        try:
            # In a thread: it takes from ten seconds to minutes. vLLM binds itself to the loop on the first request.
            llm = await asyncio.to_thread(self._load)
            tasks = await llm.get_supported_tasks()
        except EngineError:
            raise
        except Exception as error:
            raise EngineUnavailable(f"{self.model} did not start: {error}") from error
        self._loaded = LoadedModel(llm, tasks, self._options)
        self._probe.configured(llm.vllm_config)
        self._llm = llm

    def _load(self) -> Any:
        prepare_environment(self.model, in_process=False)
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_args({"disable_log_stats": True, **self._options.arguments(self.model)})
        with starting_on(self._options.cores):
            return AsyncLLM.from_engine_args(arguments, stat_loggers=self._probe.loggers())

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        return self._require_loaded().encoder.encode(prompt, answer)

    async def decode(self, token_ids: list[int]) -> str:
        return self._require_loaded().encoder.decode(token_ids)

    def _require_loaded(self) -> LoadedModel:
        if self._loaded is None or self._closed:
            raise EngineDead(f"the engine of {self.model} does not run")
        return self._loaded

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        await self.health()
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        require(self.abilities, needed(prompt, sampling), self.model)
        loaded = self._require_loaded()
        self._admit(request_id)
        try:
            self._arriving += 1
            try:
                token_ids = await tokenized(loaded.encoder.encode, prompt)
                apart = self._probe.tokens_apart(len(self._requests))
                params, counter = loaded.request(token_ids, prompt, sampling, apart)
                lora = await self._adapter(adapter)
            finally:
                self._arriving -= 1
            if request_id in self._aborted:
                yield aborted(len(token_ids))
                return
            rendered = token_input(token_ids, prompt.cache_salt)
            outputs = self._llm.generate(rendered, params, request_id, lora_request=lora)
            async with aclosing(outputs):
                async for output in outputs:
                    for item in counter.chunks(output):
                        if isinstance(item, EngineError):
                            raise item
                        yield item
                        if item.finish_reason == "abort":
                            return
        except EngineDeadError as error:
            raise EngineDead(f"the engine process of {self.model} died: {error}") from error
        except (VLLMClientError, ValueError) as error:
            raise refused(error, sampling) from error
        finally:
            self._requests.discard(request_id)
            self._aborted.discard(request_id)

    def _admit(self, request_id: str) -> None:
        if request_id in self._requests:
            raise DuplicateRequest(f"a request {request_id!r} is running in this engine")
        self._requests.add(request_id)

    async def _adapter(self, name: str | None) -> Any:
        """vLLM's LoRARequest, loaded."""
        lora = self._adapters.request(name)
        if name is not None and not self._adapters.is_loaded(name):
            from vllm.v1.engine.exceptions import EngineDeadError

            try:
                await self._llm.add_lora(lora)
            except EngineDeadError:
                raise
            except Exception as error:  # whatever is wrong with its files
                raise EngineError(f"the adapter {name} of {self.model} can't be loaded: {error}") from error
            self._adapters.note(name)
        return lora

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        pooler = self._pooler("embed")
        found = await self._pool(request_id, await asyncio.to_thread(pooler.embed, texts, dimensions))
        return Embeddings(
            vectors=tuple(one.data for one in found), prompt_tokens=sum(one.prompt_tokens for one in found)
        )

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        pooler = self._pooler("score")
        found = await self._pool(request_id, await asyncio.to_thread(pooler.score, query, documents))
        return Scores(scores=pooler.scores(found), prompt_tokens=sum(one.prompt_tokens for one in found))

    def _pooler(self, ability: Ability) -> Pooler:
        loaded = self._require_loaded()
        require(self.abilities, frozenset({ability}), self.model)
        assert loaded.pooler is not None
        return loaded.pooler

    async def _pool(self, request_id: str, requests: list[PoolRequest]) -> list[Pooled]:
        """All at once: the engine batches them."""
        await self.health()
        self._admit(request_id)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._pool_one(f"{request_id}#{n}", one)) for n, one in enumerate(requests)]
            return [task.result() for task in tasks]
        except* EngineError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._requests.discard(request_id)

    async def _pool_one(self, request_id: str, request: PoolRequest) -> Pooled:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            async for output in self._llm.encode(token_input(request.token_ids), request.params, request_id):
                if output.finished:
                    found = pooled(output)
                    if isinstance(found, EngineError):
                        raise found
                    return found
        except EngineDeadError as error:
            raise EngineDead(f"the engine process of {self.model} died: {error}") from error
        except (VLLMClientError, ValueError) as error:
            raise BadPrompt(f"vLLM refused the request: {error}") from error
        raise EngineError("vLLM gave this request up")

    async def abort(self, request_id: str) -> None:
        if self._llm is not None and request_id in self._requests:
            self._aborted.add(request_id)  # it may not have reached vLLM yet
            await self._llm.abort(request_id)

    def state(self) -> EngineState:
        max_running = self._loaded.max_running if self._loaded is not None else 0
        if self._llm is None or self._llm.errored:
            return self._probe.state(max_running=max_running, running=0, waiting=0, kv_cache_usage=0.0)
        # What was recorded is of the engine's last step; after an abort there may be no other for a while, but the
        # requests it still has are known here.
        unfinished = self._llm.output_processor.get_num_unfinished_requests()
        last = self._probe.state(max_running=max_running)
        running = min(last.running, unfinished)
        return self._probe.state(
            max_running=max_running,
            running=running,
            waiting=unfinished - running + self._arriving,
            kv_cache_usage=last.kv_cache_usage if unfinished else 0.0,
        )

    def wait_s(self, tokens: int) -> float:
        return math.inf if self._closed or self._llm is None or self._llm.errored else 0.0

    async def health(self) -> None:
        if self._closed:
            raise EngineDead(f"the engine of {self.model} was closed")
        if self._llm is None:
            raise EngineDead(f"the engine of {self.model} was not started")
        try:
            await self._llm.check_health()
        except Exception as error:
            raise EngineDead(f"the engine process of {self.model} died: {error}") from error

    @property
    def can_sleep(self) -> bool:
        return self._options.naps

    async def sleep(self) -> None:
        await self._told(lambda llm: llm.sleep(level=1))  # its weights are kept in the machine's memory

    async def wake(self) -> None:
        await self._told(lambda llm: llm.wake_up())

    async def _told(self, tell: Callable[[Any], Awaitable[object]]) -> None:
        await self.health()
        try:
            await tell(self._llm)
        except Exception as error:  # of the engine's process, whatever it is: a GPU that others have filled
            raise EngineDead(f"{self.model}: {error}") from error

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
