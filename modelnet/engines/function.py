"""Python functions as an engine: a rule, a pipeline of another library, a model that nothing else here runs.

    def answer(prompt: Prompt, sampling: Sampling) -> str | Iterator[str]: ...
    def embed(texts: list[str]) -> Iterable[Sequence[float]]: ...
    def score(query: str, documents: list[str]) -> Iterable[float]: ...

Each may be `async`. Plain ones run in a thread each. What is said of tokens is then of pieces: a function that knows
better yields `Piece(text, token_ids)`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import itertools
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from modelnet.attempt import Threads
from modelnet.engines.base import (
    PLAIN,
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
)
from modelnet.engines.continuation import StopFilter
from modelnet.engines.errors import BadPrompt, EngineDead, EngineError, EngineUnavailable, Unsupported
from modelnet.engines.meter import Meter
from modelnet.engines.requests import Request, Requests

__all__ = ["FunctionEngine", "load_functions"]

UNBOUNDED = 1 << 20
_END = object()


class FunctionEngine:
    """Functions as an `Engine`. What one raises ends its request; other requests and the engine are well."""

    def __init__(
        self,
        model: str,
        *,
        answer: Callable[..., Any] | None = None,
        embed: Callable[..., Any] | None = None,
        score: Callable[..., Any] | None = None,
        concurrency: int = 64,
    ) -> None:
        """`concurrency`: calls that it makes sense to have at once. Raises `EngineUnavailable` without a function."""
        if answer is embed is score is None:
            raise EngineUnavailable(f"{model} has none of the functions answer, embed, score")
        self._model = model
        self._answer_by, self._embed_by, self._score_by = answer, embed, score
        self._concurrency = concurrency
        self._requests = Requests[str]()
        self._threads = Threads("function")
        self._meter = Meter()
        self._dead: EngineDead | None = EngineDead(f"the engine of {model} was not started")
        self._closed = False

    @property
    def model(self) -> str:
        return self._model

    @property
    def software(self) -> str:
        return "Python"

    @property
    def max_model_len(self) -> int:
        return UNBOUNDED

    @property
    def abilities(self) -> frozenset[Ability]:
        can: set[Ability] = set(PLAIN) if self._answer_by else set()
        can |= {"embed"} if self._embed_by else set()
        can |= {"score"} if self._score_by else set()
        return frozenset(can)

    async def start(self) -> None:
        if self._closed:
            raise EngineUnavailable(f"the engine of {self._model} was closed")
        self._dead = None

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        raise Unsupported("a function has no tokens")

    async def decode(self, token_ids: list[int]) -> str:
        raise Unsupported("a function has no tokens")

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        self._require_alive()
        require(self.abilities, needed(prompt, sampling), self._model)
        if adapter is not None:
            raise Unsupported("a function has no adapters")
        assert self._answer_by is not None
        with self._requests.one(request_id) as request:
            async with aclosing(self._pieces(self._answer_by, prompt, sampling)) as pieces:
                request.read(pieces)
                async with aclosing(self._chunks(request, prompt, sampling)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    async def _chunks(self, request: Request[str], prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        stops, drawn, known = StopFilter(sampling.stop), 0, True
        read = _length(prompt)
        last = request.began
        reason = "stop"
        shown, stopped = "", False
        while not stopped and reason == "stop" and (piece := await request.next()) is not None:
            ids = getattr(piece, "tokens", None)
            now = time.monotonic()
            if request.streaming:
                self._meter.token(now - last)
            else:
                self._meter.first_token(now - request.began)
                self._meter.prefill(read, now - request.began)
            request.streaming, last, known = True, now, known and ids is not None
            drawn += 1 if ids is None else len(ids)
            if drawn >= sampling.max_tokens:
                reason = "length"
            shown, stopped = stops.push(piece)
            yield Chunk(text=shown, token_ids=ids, prompt_tokens=read, completion_tokens=drawn)
        if request.aborted:
            if self._closed:
                self._require_alive()
            yield aborted(read, drawn)
            return
        yield Chunk(
            text="" if stopped else stops.end(),
            token_ids=() if known else None,
            finish_reason="stop" if stopped or reason == "stop" else "length",
            prompt_tokens=read,
            completion_tokens=drawn,
        )

    async def _pieces(
        self, function: Callable[..., Any], prompt: Prompt, sampling: Sampling
    ) -> AsyncGenerator[str, None]:
        """What the function says, in whatever way."""
        said = await self._call(function, prompt, sampling)
        try:
            if isinstance(said, str):
                yield said
            elif hasattr(said, "__anext__"):
                async for piece in said:
                    yield _text(piece)
            elif isinstance(said, Iterator):
                loop = asyncio.get_running_loop()
                while (piece := await loop.run_in_executor(self._threads, next, said, _END)) is not _END:
                    yield _text(piece)
            else:
                _text(said)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self._model} failed: {type(error).__name__}: {error}") from error
        finally:
            if hasattr(said, "aclose"):
                await said.aclose()

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                said = function(*arguments)
            else:
                loop = asyncio.get_running_loop()
                said = await loop.run_in_executor(self._threads, function, *arguments)
            return await said if inspect.isawaitable(said) else said
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self._model} failed: {type(error).__name__}: {error}") from error

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        self._require_alive()
        require(self.abilities, frozenset({"embed"}), self._model)
        if dimensions is not None:
            raise Unsupported(f"{self._model} can't shorten its vectors")
        _require_texts(texts)
        with self._requests.one(request_id):
            found = await self._call(self._embed_by or list, [*texts])
        vectors = tuple(tuple(map(float, vector)) for vector in found)
        if len(vectors) != len(texts):
            raise EngineError(f"{self._model} gave {len(vectors)} vectors for {len(texts)} texts")
        return Embeddings(vectors=vectors, prompt_tokens=sum(map(len, texts)))

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        self._require_alive()
        require(self.abilities, frozenset({"score"}), self._model)
        _require_texts([query, *documents])
        with self._requests.one(request_id):
            found = await self._call(self._score_by or list, query, [*documents])
        scores = tuple(map(float, found))
        if len(scores) != len(documents):
            raise EngineError(f"{self._model} gave {len(scores)} scores for {len(documents)} documents")
        return Scores(scores=scores, prompt_tokens=sum(map(len, itertools.chain([query], documents))))

    async def abort(self, request_id: str) -> None:
        await self._requests.abort(request_id)

    def state(self) -> EngineState:
        streaming = self._requests.streaming
        return EngineState(
            running=streaming,
            waiting=self._requests.count - streaming,
            max_running=self._concurrency,
            kv_cache_usage=0.0,
            ttft_ms=self._meter.ttft_ms,
            decode_tokens_per_s=self._meter.decode_tokens_per_s,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
        )

    def wait_s(self, tokens: int) -> float:
        return 0.0 if self._dead is None else math.inf

    async def health(self) -> None:
        self._require_alive()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._dead = EngineDead(f"the engine of {self._model} was closed")
            await self._requests.abort_all()

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise EngineDead(self._dead.message)


def load_functions(file: str) -> dict[str, Callable[..., Any]]:
    """The functions `answer`, `embed`, `score` that a Python file has. Raises `EngineUnavailable`."""
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise EngineUnavailable(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EngineUnavailable(f"{file}: {type(error).__name__}: {error}") from error
    found = {name: getattr(module, name, None) for name in ("answer", "embed", "score")}
    return {name: function for name, function in found.items() if callable(function)}


def _text(piece: object) -> str:
    if not isinstance(piece, str):
        raise EngineError(f"a function says text, not {type(piece).__name__}")
    return piece


def _require_texts(texts: Sequence[str]) -> None:
    if not texts or not all(texts):
        raise BadPrompt("a text must not be empty")


def _length(prompt: Prompt) -> int:
    """Of a prompt: its tokens, or its characters where nobody counts tokens."""
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    return (
        len(prompt.text) if prompt.text is not None else sum(len(str(m.get("content"))) for m in prompt.messages or ())
    )
