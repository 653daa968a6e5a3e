"""A `StepCore` as an `Engine`: the event loop's side of a model that is stepped in a thread."""

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
from modelnet.engines.errors import DuplicateRequest, EngineDead, EngineError, EngineUnavailable
from modelnet.engines.pooling import Pooled, Pooler, PoolRequest
from modelnet.engines.stepping import Item, StepCore, StepThread

__all__ = ["ThreadEngine"]


@dataclass(slots=True)
class _Stream:
    """A running request, as its consumer's side sees it. Touched on the event loop only."""

    key: str
    open: int = 1
    """Answers that have not ended."""
    items: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    aborted: bool = False
    finished: bool = False

    def put(self, item: Item) -> None:
        if self.finished:
            return
        if isinstance(item, Chunk):
            self.completion_tokens = item.completion_tokens
        if _ends_an_answer(item):
            self.open -= 1
        self.finished = self.open == 0 or isinstance(item, EngineError) or _is_abort(item)
        self.items.put_nowait(item)


def _ends_an_answer(item: Item) -> bool:
    return not isinstance(item, Chunk) or item.finish_reason is not None


def _is_abort(item: Item) -> bool:
    return isinstance(item, Chunk) and item.finish_reason == "abort"


class ThreadEngine:
    """A `StepCore` as an `Engine`."""

    def __init__(self, core: StepCore, thread: StepThread) -> None:
        self._core = core
        self._thread = thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dead: EngineDead | None = None
        self._closed = False
        self._streams: dict[str, _Stream] = {}  # by request id
        self._by_key: dict[str, _Stream] = {}
        # A key of its own for each request: an id used again must not meet its predecessor's late output.
        self._keys = map(str, itertools.count(1))
        # Keys in the core, and how many answers each has to come; touched on the stepping thread only.
        self._live: dict[str, int] = {}

    @property
    def model(self) -> str:
        return self._core.model

    @property
    def software(self) -> str:
        return self._core.software

    @property
    def max_model_len(self) -> int:
        return self._core.max_model_len

    @property
    def abilities(self) -> frozenset[Ability]:
        return self._core.abilities

    async def start(self) -> None:
        if self._loop is not None:
            raise EngineUnavailable(f"the engine of {self.model} was started before")
        self._loop = asyncio.get_running_loop()
        self._thread.join(self)
        try:
            await asyncio.wrap_future(self._thread.call(self._core.load))
        except BaseException as error:
            await self._end(EngineDead(f"{self.model} did not start: {error}"))
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            raise EngineUnavailable(f"{self.model} did not start: {error}") from error

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        self._require_alive()
        return self._core.encode(prompt, answer)

    async def decode(self, token_ids: list[int]) -> str:
        self._require_alive()
        return self._core.decode(token_ids)

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        pooler = self._pooler("embed")
        requests = await self._prepared(pooler.embed, texts, dimensions)
        pooled = await self._pool(request_id, requests)
        return Embeddings(
            vectors=tuple(one.data for one in pooled), prompt_tokens=sum(one.prompt_tokens for one in pooled)
        )

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        pooler = self._pooler("score")
        requests = await self._prepared(pooler.score, query, documents)
        pooled = await self._pool(request_id, requests)
        return Scores(scores=pooler.scores(pooled), prompt_tokens=sum(one.prompt_tokens for one in pooled))

    def _pooler(self, ability: Ability) -> Pooler:
        self._require_alive()
        require(self.abilities, frozenset({ability}), self.model)
        assert self._core.pooler is not None
        return self._core.pooler

    async def _prepared(self, prepare: Callable[..., list[PoolRequest]], *args: Any) -> list[PoolRequest]:
        requests = await asyncio.to_thread(prepare, *args)
        self._require_alive()
        return requests

    async def _pool(self, request_id: str, requests: list[PoolRequest]) -> list[Pooled]:
        """All at once: the engine batches them."""
        if f"{request_id}#0" in self._streams:
            raise DuplicateRequest(f"a request {request_id!r} is running in this engine")
        streams = {f"{request_id}#{n}": _Stream(next(self._keys)) for n in range(len(requests))}
        for name, stream in streams.items():
            self._streams[name] = self._by_key[stream.key] = stream
        try:
            for stream, request in zip(streams.values(), requests, strict=True):
                self._thread.call(self._add_pooling, stream.key, request)
            pooled = []
            for stream in streams.values():
                item = await stream.items.get()
                if isinstance(item, EngineError):
                    raise item
                assert isinstance(item, Pooled)
                pooled.append(item)
            return pooled
        finally:
            for name, stream in streams.items():
                del self._streams[name], self._by_key[stream.key]
                if not stream.finished:
                    self._thread.call(self._drop, stream.key)

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        self._require_alive()
        require(self.abilities, needed(prompt, sampling), self.model)
        if request_id in self._streams:
            raise DuplicateRequest(f"a request {request_id!r} is running in this engine")
        stream = _Stream(next(self._keys), sampling.n)
        self._streams[request_id] = self._by_key[stream.key] = stream
        added = False
        try:
            token_ids = await tokenized(self._core.encode, prompt)
            self._require_alive()
            stream.prompt_tokens = len(token_ids)
            if not stream.aborted:  # while it was being tokenized
                self._thread.call(self._add, stream.key, token_ids, prompt, sampling, adapter)
                added = True
            while True:
                item = await stream.items.get()
                if isinstance(item, EngineError):
                    raise item
                assert isinstance(item, Chunk)
                yield item
                if stream.finished and stream.items.empty():
                    return
        finally:
            del self._streams[request_id]
            del self._by_key[stream.key]
            if added and not stream.finished:
                # Not awaited: this may be running because the consumer was cancelled.
                self._thread.call(self._drop, stream.key)

    async def abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if self._loop is None or self._closed:
            return
        if stream is not None:
            stream.aborted = True
        # Also for an unknown id: on return every drop asked for before has been done.
        await asyncio.wrap_future(self._thread.call(self._drop, stream.key if stream else None))
        if stream is not None:
            stream.put(aborted(stream.prompt_tokens, stream.completion_tokens))

    def state(self) -> EngineState:
        state = self._core.state()
        if self._dead is not None:
            return replace(state, running=0, waiting=0)
        # A burst is known here before the stepping thread has taken it in.
        unfinished = sum(not stream.finished for stream in self._streams.values())
        return replace(state, waiting=max(state.waiting, unfinished - state.running))

    def wait_s(self, tokens: int) -> float:
        return 0.0 if self._dead is None and self._loop is not None else math.inf

    async def health(self) -> None:
        self._require_alive()

    async def close(self) -> None:
        if self._loop is not None and not self._closed:
            await self._end(EngineDead(f"the engine of {self.model} was closed"))

    async def _end(self, error: EngineDead) -> None:
        self._closed = True
        self._fail(error)
        closing = self._thread.call(self._unload)
        # The thread does what was handed to it before it ends, so nothing leaks if this is cancelled.
        self._thread.leave(self)
        await asyncio.shield(asyncio.wrap_future(closing))

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise EngineDead(self._dead.message) from self._dead.__cause__
        if self._loop is None:
            raise EngineDead(f"the engine of {self.model} was not started")

    def _fail(self, error: EngineDead) -> None:
        self._dead = error
        for stream in self._streams.values():
            own = EngineDead(error.message)  # an exception raised by several tasks would mix their tracebacks
            own.__cause__ = error.__cause__
            stream.put(own)

    def _deliver(self, items: list[tuple[str, Item]]) -> None:
        for key, item in items:
            stream = self._by_key.get(key)
            if stream is not None:
                stream.put(item)

    # What follows runs on the stepping thread.

    def busy(self) -> bool:
        return bool(self._live)

    def step(self) -> None:
        try:
            items = self._core.step()
        except Exception as error:
            self._live.clear()
            dead = EngineDead(f"{self.model} died in a step: {type(error).__name__}: {error}")
            dead.__cause__ = error
            self._post(self._fail, dead)
            return
        if items:
            for key, item in items:
                if _ends_an_answer(item) and key in self._live:
                    self._live[key] = 0 if isinstance(item, EngineError) else self._live[key] - 1
                    if self._live[key] == 0:
                        del self._live[key]
            self._post(self._deliver, items)

    def _add(self, key: str, token_ids: list[int], prompt: Prompt, sampling: Sampling, adapter: str | None) -> None:
        try:
            self._core.add(key, token_ids, prompt, sampling, adapter)
        except EngineError as error:
            self._post(self._deliver, [(key, error)])
        else:
            self._live[key] = sampling.n

    def _add_pooling(self, key: str, request: PoolRequest) -> None:
        assert self._core.pooler is not None
        try:
            self._core.pool(key, request)
        except EngineError as error:
            self._post(self._deliver, [(key, error)])
        else:
            self._live[key] = 1

    def _unload(self) -> None:
        self._live.clear()
        self._core.close()

    def _drop(self, key: str | None) -> None:
        if key is not None and key in self._live:
            del self._live[key]
            self._core.abort([key])

    def _post(self, function: Callable[[Any], None], argument: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # the loop is closed: nobody is left to read
            self._core.abort(self._live)
            self._live.clear()
