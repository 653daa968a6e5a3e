"""Any OpenAI-compatible server as an engine: a running `vllm serve`, llama.cpp, Ollama, an API that is paid for.

The model runs elsewhere. It may be away for a while, may be shared with others, and may want to be asked seldom; all of
that is told as any engine tells it, by errors and by `state`. Where the server is vLLM it tokenizes for us too, so that
answers carry token ids and are continued exactly.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar, get_args

import structlog
from pydantic import SecretStr

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
)
from modelnet.engines.endpoint import ROUTES, Endpoint, Listed, Software
from modelnet.engines.errors import (
    BadPrompt,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineUnavailable,
    PromptTooLong,
    Unsupported,
)
from modelnet.engines.limits import RateLimits
from modelnet.engines.meter import Meter
from modelnet.engines.openai_answers import Reader, read_embeddings, read_scores
from modelnet.engines.openai_requests import MOST_STOPS, abilities_of, request_body
from modelnet.engines.prompts import plain_messages
from modelnet.engines.requests import Request, Requests, Silent
from modelnet.engines.vllm_metrics import END_S, Neighbours

__all__ = ["LACKS", "OpenAIEngine"]

log = structlog.get_logger(__name__)

UNBOUNDED = 1 << 20
"""Tokens of context of a server that does not say."""
AGAIN_S = 0.25
"""A server that went away is looked for after this long, then after twice as long, and so on."""
AGAIN_MAX_S = 15.0
LACKS = frozenset({"usage", *get_args(Ability)} - {"generate"})
"""What a server may be said to lack: an ability, or to tell what it used."""
_NEWER_LIMIT = "max_completion_tokens"
"""What some models want the limit of an answer to be called."""
_DOUBTFUL = frozenset({"connection_lost", "stalled", "server_error"})
"""After these it is asked for its health before more is sent."""

Found = TypeVar("Found")


class OpenAIEngine:
    """A model of an OpenAI-compatible server as an `Engine`."""

    def __init__(
        self,
        model: str,
        *,
        url: str,
        key: SecretStr | None = None,
        concurrency: int = 64,
        max_model_len: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        first_token_s: float = 120.0,
        between_tokens_s: float = 30.0,
        lacks: Sequence[str] = (),
    ) -> None:
        """`url`: of the API, `http://host:port/v1`. `concurrency`: requests that it works on at once; more wait there.

        `max_model_len`: tokens of prompt and answer, where the server does not say. `requests_per_minute`,
        `tokens_per_minute`: what it may be asked. `first_token_s`, `between_tokens_s`: how long it may be silent before
        it counts as stalled. `lacks`: of `LACKS`, what it can't do although others of its kind can. Raises
        `EngineUnavailable` for an address that is none.
        """
        if unknown := sorted(set(lacks) - LACKS):
            raise EngineUnavailable(f"a server can't lack {', '.join(unknown)}; it can: {', '.join(sorted(LACKS))}")
        self._model = model
        self._limits = RateLimits(requests_per_minute, tokens_per_minute)
        self._endpoint = Endpoint(url, key=key, limits=self._limits)
        self._concurrency = concurrency
        self._max_model_len = max_model_len
        self._first_token_s, self._between_tokens_s = first_token_s, between_tokens_s
        self._lacks = frozenset(lacks)
        self._kind: Software = "other"
        self._software = "OpenAI-compatible server"
        self._abilities: frozenset[Ability] = frozenset()
        self._limit_name = "max_tokens"
        self._meter = Meter()
        self._requests = Requests[dict[str, Any]]()
        self._neighbours = Neighbours()
        self._looking: asyncio.Task[None] | None = None
        self._dead: EngineDead | None = EngineDead(f"the engine of {model} was not started")
        self._closed = False
        self._there, self._gone = asyncio.Event(), asyncio.Event()
        self._returning: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        return self._model

    @property
    def software(self) -> str:
        return self._software

    @property
    def max_model_len(self) -> int:
        return self._max_model_len or UNBOUNDED

    @property
    def abilities(self) -> frozenset[Ability]:
        return self._abilities

    async def start(self) -> None:
        """Find the server and its model, and out what can be asked of it."""
        try:
            await self._find(await self._endpoint.models())
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(f"{self._endpoint.url}: {error.message}") from None
        self._dead = None
        self._there.set()

    async def _find(self, listed: Sequence[Listed]) -> None:
        found = next((one for one in listed if one.name == self._model), None)
        if found is None:
            names = ", ".join(sorted(one.name for one in listed)[:20]) or "none"
            raise EngineUnavailable(f"{self._endpoint.url} has no model {self._model!r}; it has: {names}")
        self._kind, self._software = await self._endpoint.software(found.owner)
        self._max_model_len = found.max_model_len or self._max_model_len
        has = await asyncio.gather(*(self._endpoint.has(route, self._model) for route in ROUTES))
        routes = frozenset(route for route, there in zip(ROUTES, has, strict=True) if there)
        abilities = abilities_of(self._kind, routes) - self._lacks
        if self._kind == "vllm" and "tools" in abilities and not await self._endpoint.takes_tools(self._model):
            abilities -= {"tools"}
        if not abilities & {"prompt", "chat", "embed", "score"}:
            raise EngineUnavailable(f"{self._endpoint.url} lists {self._model!r}, but has no route to ask it anything")
        self._abilities = frozenset(abilities)

    # ------------------------------------------------------------------ tokens

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        self._require_tokenizer()
        if prompt.text is not None:
            return await self._tokenize({"prompt": prompt.text + answer})
        if prompt.messages is not None:
            chat = {"messages": plain_messages(prompt.messages), "tools": [*prompt.tools] or None}
            ids = await self._tokenize(chat)
        else:
            ids = list(prompt.token_ids or ())
        return [*ids, *await self._tokenize({"prompt": answer, "add_special_tokens": False})] if answer else ids

    async def decode(self, token_ids: list[int]) -> str:
        self._require_tokenizer()
        body = {"model": self._model, "tokens": token_ids}
        found = await self._meant(self._endpoint.post("/detokenize", body, within_s=self._between_tokens_s))
        return str(found.get("prompt", ""))

    async def _tokenize(self, what: dict[str, Any]) -> list[int]:
        body = {"model": self._model, **what}
        found = await self._meant(self._endpoint.post("/tokenize", body, within_s=self._between_tokens_s))
        ids = found.get("tokens")
        if not isinstance(ids, list):
            raise EngineError("the server answers with no tokens", code="bad_answer")
        if len(ids) >= self.max_model_len:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; the model takes {self.max_model_len - 1}")
        return ids

    def _require_tokenizer(self) -> None:
        self._require_alive()
        if "tokens" not in self._abilities:
            raise Unsupported("the server does not tokenize")

    # ------------------------------------------------------------------ answers

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """`adapter`: served under its own name beside the model, as vLLM does."""
        self._require_alive()
        prompt = self._checked(prompt, sampling)
        with self._requests.one(request_id) as request:
            try:
                async with aclosing(self._answer(request, prompt, sampling, adapter or self._model)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except EngineError as error:
                raise await self._meaning(error) from None

    def _checked(self, prompt: Prompt, sampling: Sampling) -> Prompt:
        """The prompt as it is sent. Raises `BadPrompt`, `Unsupported` for what need not be sent to be refused."""
        require(self._abilities, needed(prompt, sampling), self._model)
        if prompt.messages is not None:
            return replace(prompt, messages=tuple(plain_messages(prompt.messages)))
        if not (prompt.text or prompt.token_ids):
            raise BadPrompt("the prompt has no tokens")
        if (length := len(prompt.token_ids or ())) >= self.max_model_len:
            raise PromptTooLong(f"the prompt has {length} tokens; the model takes {self.max_model_len - 1}")
        if prompt.token_ids and min(prompt.token_ids) < 0:
            raise BadPrompt("token ids must be 0 or more")
        return prompt

    async def _answer(
        self, request: Request[dict[str, Any]], prompt: Prompt, sampling: Sampling, model: str
    ) -> AsyncGenerator[Chunk, None]:
        guess = _guessed_tokens(prompt)
        tokens = guess + sampling.max_tokens * sampling.n
        if (wait_s := self._limits.wait_s(tokens, time.monotonic())) > 0:
            raise EngineBusy(f"the server may be asked again in {math.ceil(wait_s)} s")
        sent = self._limits.send(tokens, time.monotonic())
        reader = Reader(sampling, guess, stop=sampling.stop if len(sampling.stop) > MOST_STOPS else ())
        last = request.began
        try:
            async with aclosing(self._events(prompt, sampling, model)) as events:
                request.read(events)
                while not reader.over and (event := await self._next(request, last)) is not None:
                    for chunk in reader.read(event):
                        last = self._measure(request, reader, chunk, last)
                        yield chunk
            if request.aborted:
                self._require_open()
                yield aborted(reader.prompt_tokens, reader.completion_tokens)
                return
            for chunk in reader.end():
                yield chunk
            if reader.usage_odd:
                log.warning("usage_odd", url=self._endpoint.url, model=model, counted=reader.completion_tokens)
        finally:
            sent.tokens = reader.prompt_tokens + reader.completion_tokens

    async def _events(self, prompt: Prompt, sampling: Sampling, model: str) -> AsyncGenerator[dict[str, Any], None]:
        """The server's events; sent once more if it only wants the limit to be called otherwise."""
        path = "completions" if prompt.messages is None else "chat/completions"
        while True:
            known = self._max_model_len
            usage = "usage" not in self._lacks
            body = request_body(
                model, prompt, sampling, self._kind, max_model_len=known, usage=usage, limit=self._limit_name
            )
            try:
                async with aclosing(self._endpoint.stream(path, body)) as events:
                    async for event in events:
                        yield event
                return
            except Unsupported as error:
                if self._limit_name == _NEWER_LIMIT or _NEWER_LIMIT not in error.message:
                    raise
                self._limit_name = _NEWER_LIMIT

    async def _next(self, request: Request[dict[str, Any]], last: float) -> dict[str, Any] | None:
        patience_s = self._between_tokens_s if request.streaming else self._first_token_s
        try:
            return await request.next(last + patience_s)
        except Silent:
            raise EngineError(f"the server sent no token for {patience_s:g} s", code="stalled") from None

    def _measure(self, request: Request[dict[str, Any]], reader: Reader, chunk: Chunk, last: float) -> float:
        now = time.monotonic()
        if request.streaming:
            self._meter.token((now - last) / max(len(chunk.token_ids or ()), 1))
        else:
            request.streaming = True
            self._meter.first_token(now - request.began)
            self._meter.prefill(reader.prompt_tokens - reader.cached_tokens, now - request.began)
        return now

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        """Vectors of one `texts`, all in one request."""
        body: dict[str, Any] = {"model": self._model, "input": [*texts], "encoding_format": "float"}
        if dimensions is not None:
            body["dimensions"] = dimensions
        return read_embeddings(await self._ask(request_id, "embed", "embeddings", body, texts), len(texts))

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        """By the reranking route that vLLM and several others have."""
        body = {"model": self._model, "query": query, "documents": [*documents], "top_n": len(documents)}
        found = await self._ask(request_id, "score", "rerank", body, [query, *documents])
        return read_scores(found, len(documents))

    async def _ask(
        self, request_id: str, ability: Ability, path: str, body: dict[str, Any], texts: Sequence[str]
    ) -> dict[str, Any]:
        self._require_alive()
        require(self._abilities, frozenset({ability}), self._model)
        if not all(texts):
            raise BadPrompt("a text must not be empty")
        tokens = sum(len(text.encode(errors="replace")) for text in texts) // 4 + 1
        with self._requests.one(request_id):
            if (wait_s := self._limits.wait_s(tokens, time.monotonic())) > 0:
                raise EngineBusy(f"the server may be asked again in {math.ceil(wait_s)} s")
            self._limits.send(tokens, time.monotonic())
            return await self._meant(self._endpoint.post(path, body, within_s=self._first_token_s))

    async def abort(self, request_id: str) -> None:
        await self._requests.abort(request_id)

    # ------------------------------------------------------------------ how it is

    def state(self) -> EngineState:
        if self._kind == "vllm" and self._dead is None:
            self._look()
        others = self._neighbours.at(time.monotonic())
        streaming = self._requests.streaming
        return EngineState(
            running=streaming + others.running,
            waiting=self._requests.count - streaming + others.waiting,
            max_running=self._concurrency,
            kv_cache_usage=others.kv_cache_usage,
            ttft_ms=self._meter.ttft_ms,
            decode_tokens_per_s=self._meter.decode_tokens_per_s,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            prefix_hit_rate=self._meter.prefix_hit_rate,
        )

    def _look(self) -> None:
        """Read vLLM's counters, if it is time: a later call of `state` has them."""
        if (self._looking is None or self._looking.done()) and self._neighbours.stale(time.monotonic()):
            self._looking = asyncio.create_task(self._read_counters())

    async def _read_counters(self) -> None:
        try:
            text = await self._endpoint.get_text(f"{self._endpoint.root}/metrics")
        except EngineError:
            text = ""
        self._neighbours.learn(text, self._requests.lately(END_S), time.monotonic())

    def wait_s(self, tokens: int) -> float:
        """By the server's limits and those that were given; infinite while it is away."""
        return math.inf if self._dead is not None else self._limits.wait_s(tokens, time.monotonic())

    async def returned(self) -> None:
        """Wait until a server that went away is there again."""
        await self._there.wait()

    async def lost(self) -> None:
        """Wait until the server goes away."""
        await self._gone.wait()

    async def health(self) -> None:
        if self._dead is None:
            try:
                await self._endpoint.health()
            except EngineDead as error:
                self._lost(error)
        self._require_alive()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._dead = EngineDead(f"the engine of {self._model} was closed")
        for task in (self._looking, self._returning):
            if task is not None:
                task.cancel()
        await self._requests.abort_all()
        await self._endpoint.close()

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise EngineDead(self._dead.message)

    def _require_open(self) -> None:
        if self._closed:
            self._require_alive()

    async def _meant(self, asked: Awaitable[Found]) -> Found:
        try:
            return await asked
        except EngineError as error:
            raise await self._meaning(error) from None

    async def _meaning(self, error: EngineError) -> EngineError:
        """An error, or that the server is away, if that is what it comes from."""
        if error.wire_code in _DOUBTFUL:
            try:
                self._require_alive()
                await self._endpoint.health()
            except EngineDead as dead:
                error = dead
        if isinstance(error, EngineDead) and not self._closed:
            self._lost(error)
        return error

    def _lost(self, error: EngineDead) -> None:
        """The server is away, or does not let us in: look for it until it is there again."""
        if self._dead is not None:
            return
        log.warning("server_lost", url=self._endpoint.url, model=self._model, error=error.message)
        self._dead = error
        self._there.clear()
        self._gone.set()
        self._returning = asyncio.create_task(self._return())

    async def _return(self) -> None:
        pause_s = AGAIN_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, AGAIN_MAX_S)
            try:
                await self._endpoint.health()
                await self._find(await self._endpoint.models())
                break
            except EngineError as error:
                log.debug("server_still_lost", url=self._endpoint.url, error=error.message)
        self._dead = None
        self._gone.clear()
        self._there.set()
        log.info("server_back", url=self._endpoint.url, model=self._model)


def _guessed_tokens(prompt: Prompt) -> int:
    """Until the server tells: a token is about four bytes of English."""
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    parts = [prompt.text] if prompt.text is not None else [str(one.get("content")) for one in prompt.messages or ()]
    return sum(len(part.encode(errors="replace")) for part in parts if part) // 4 + 1
