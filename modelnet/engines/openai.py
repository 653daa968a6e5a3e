"""Any OpenAI-compatible server as an engine: a running `vllm serve`, llama.cpp, Ollama, an API that is paid for.

The model runs elsewhere. It may be away for a while, may be shared with others, and may want to be asked seldom; all of
that is told as any engine tells it, by errors and by `state`. Where the server is vLLM it tokenizes for us too, so that
answers carry token ids and are continued exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import SecretStr

from modelnet.engines.base import (
    BadPrompt,
    Chunk,
    DuplicateRequest,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineState,
    EngineUnavailable,
    Prompt,
    PromptTooLong,
    Sampling,
    Unsupported,
    aborted,
)
from modelnet.engines.continuation import StopFilter
from modelnet.engines.endpoint import ABILITIES, Ability, Endpoint, Listed
from modelnet.engines.limits import RateLimits
from modelnet.engines.meter import Meter
from modelnet.engines.openai_requests import MOST_STOPS, Answer, Dialect, Feature, request_body
from modelnet.engines.prompts import plain_messages

__all__ = ["OpenAIEngine"]

log = structlog.get_logger(__name__)

UNBOUNDED = 1 << 20
"""Tokens of context of a server that does not say."""
AGAIN_S = 0.25
"""A server that went away is looked for after this long, then after twice as long, and so on."""
AGAIN_MAX_S = 15.0
STATE_S = 1.0
"""How often vLLM's own counters are read while somebody wants to know."""
_NEWER_LIMIT = "max_completion_tokens"
"""What some models want the limit of an answer to be called."""
ODD_TRANSPORT = frozenset({"connection_lost", "stalled", "server_error"})
"""After these it is asked for its health before more is sent."""


@dataclass(slots=True)
class _Request:
    """One that runs."""

    began: float
    reading: asyncio.Timeout | None = None
    """Around the read that goes on now."""
    events: AsyncGenerator[dict[str, Any], None] | None = None
    aborted: bool = False
    streaming: bool = False
    """Whether its first token has come."""
    tokens: Answer | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a shared server has to do beside what we gave it."""

    at: float
    running: int
    waiting: int
    kv_cache_usage: float


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
        lacks: Sequence[Feature | Ability] = (),
    ) -> None:
        """`url`: of the API, `http://host:port/v1`. `concurrency`: requests that it works on at once; more wait there.

        `max_model_len`: tokens of prompt and answer, where the server does not say. `requests_per_minute`,
        `tokens_per_minute`: what it may be asked. `first_token_s`, `between_tokens_s`: how long it may be silent before
        it counts as stalled. `lacks`: what it can't do although others of its kind can. Raises `EngineUnavailable` for
        an address that is none.
        """
        self._model = model
        self._limits = RateLimits(requests_per_minute, tokens_per_minute)
        self._endpoint = Endpoint(url, key=key, limits=self._limits)
        self._concurrency = concurrency
        self._max_model_len = max_model_len
        self._first_token_s, self._between_tokens_s = first_token_s, between_tokens_s
        self._lacks = tuple(lacks)
        self._dialect = Dialect.of("other")
        self._software = "OpenAI-compatible server"
        self._abilities: frozenset[Ability] = frozenset()
        self._limit_name = "max_tokens"
        self._meter = Meter()
        self._requests: dict[str, _Request] = {}
        self._dead: EngineDead | None = EngineDead(f"the engine of {model} was not started")
        self._closed = False
        self._there = asyncio.Event()
        self._seen: _Seen | None = None
        self._looking: asyncio.Task[None] | None = None
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
        """The kinds of request that the server takes; known once started."""
        return self._abilities

    @property
    def continues(self) -> bool:
        """Whether an answer that another began can be gone on with, whatever it answers."""
        return self._dialect.software == "vllm" or ("completions" in self._abilities and "chat" not in self._abilities)

    async def start(self) -> None:
        try:
            listed = await self._endpoint.models()
            await self._find(listed)
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(f"{self._endpoint.url}: {error.message}") from None
        self._dead = None
        self._there.set()

    async def _find(self, listed: Sequence[Listed]) -> None:
        """Find the model, and out what can be asked of it."""
        found = next((one for one in listed if one.name == self._model), None)
        if found is None:
            names = ", ".join(sorted(one.name for one in listed)[:20]) or "none"
            raise EngineUnavailable(f"{self._endpoint.url} has no model {self._model!r}; it has: {names}")
        kind, self._software = await self._endpoint.software(found.owner)
        self._max_model_len = found.max_model_len or self._max_model_len
        wanted = [one for one in ABILITIES if one not in self._lacks]
        can = await asyncio.gather(*(self._endpoint.can(one, self._model) for one in wanted))
        self._abilities = frozenset(one for one, able in zip(wanted, can, strict=True) if able)
        if not self._abilities:
            raise EngineUnavailable(f"{self._endpoint.url} lists {self._model!r}, but has no route to ask it anything")
        self._dialect = Dialect.of(kind, self._lacks)

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        self._require_alive()
        self._require_tokenizer()
        if prompt.token_ids is not None:
            ids = list(prompt.token_ids)
        elif prompt.text is not None:
            return await self._tokenize({"prompt": prompt.text + answer})
        else:
            ids = await self._tokenize({"messages": plain_messages(prompt.messages or ())})
        return [*ids, *await self._tokenize({"prompt": answer, "add_special_tokens": False})] if answer else ids

    async def decode(self, token_ids: list[int]) -> str:
        self._require_alive()
        self._require_tokenizer()
        body = {"model": self._model, "tokens": token_ids}
        found = await self._endpoint.post("/detokenize", body, within_s=self._between_tokens_s)
        return str(found.get("prompt", ""))

    async def _tokenize(self, what: dict[str, Any]) -> list[int]:
        found = await self._endpoint.post("/tokenize", {"model": self._model, **what}, within_s=self._between_tokens_s)
        ids = found.get("tokens")
        if not isinstance(ids, list):
            raise EngineError("the server answers with no tokens", code="bad_answer")
        if len(ids) >= self.max_model_len:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; the model takes {self.max_model_len - 1}")
        return ids

    def _require_tokenizer(self) -> None:
        if self._dialect.software != "vllm":
            raise Unsupported("the server does not tokenize")

    # ------------------------------------------------------------------ answers

    async def generate(self, request_id: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        self._require_alive()
        if request_id in self._requests:
            raise DuplicateRequest(f"a request {request_id!r} is running in this engine")
        self._body(prompt, sampling)  # refused before anything is noted
        request = self._requests[request_id] = _Request(time.monotonic())
        try:
            while True:
                try:
                    async with aclosing(self._answer(request, prompt, sampling)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    return
                except Unsupported as error:
                    if self._limit_name == _NEWER_LIMIT or _NEWER_LIMIT not in error.message:
                        raise
                    self._limit_name = _NEWER_LIMIT
        except EngineError as error:
            raise await self._meaning(error) from error.__cause__
        finally:
            del self._requests[request_id]

    def _body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The request. Raises `BadPrompt`, `Unsupported` for what need not be sent to be refused."""
        if prompt.messages is not None:
            prompt = Prompt(messages=tuple(plain_messages(prompt.messages)))
        elif not (prompt.text or prompt.token_ids):
            raise BadPrompt("the prompt has no tokens")
        elif prompt.token_ids is not None and self._dialect.software != "vllm":
            raise Unsupported("the server takes text, not token ids")
        ability: Ability = "completions" if prompt.messages is None else "chat"
        if ability not in self._abilities:
            raise Unsupported(f"the server has no route for {ability}")
        length = len(prompt.token_ids or ())
        if length >= self.max_model_len:
            raise PromptTooLong(f"the prompt has {length} tokens; the model takes {self.max_model_len - 1}")
        return request_body(
            self._model, prompt, sampling, self._dialect, max_model_len=self._max_model_len, limit=self._limit_name
        )

    async def _answer(self, request: _Request, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        body = self._body(prompt, sampling)
        stops = StopFilter(sampling.stop if len(sampling.stop) > MOST_STOPS else ())
        guess = _guessed_tokens(prompt)
        answer = request.tokens = Answer(sampling.max_tokens, guess)
        if (wait_s := self._limits.wait_s(guess + sampling.max_tokens, time.monotonic())) > 0:
            raise EngineBusy(f"the server may be asked again in {math.ceil(wait_s)} s")
        sent = self._limits.send(guess + sampling.max_tokens, time.monotonic())
        path = "completions" if prompt.messages is None else "chat/completions"
        request.events = self._endpoint.stream(path, body)
        last = request.began
        try:
            async with aclosing(request.events):
                while not request.aborted:
                    event = await self._next(request, last)
                    if event is None:
                        break
                    chunk = answer.read(event)
                    if chunk is None:
                        continue
                    last = self._measure(request, answer, chunk, last)
                    shown, stopped = stops.push(chunk.text)
                    if stopped:
                        yield answer.end(shown, "stop")
                        return
                    yield _with_text(chunk, shown)
            if request.aborted:
                yield aborted(answer.prompt_tokens, answer.completion_tokens)
                return
            yield answer.end(stops.end())
            if answer.usage_odd:
                log.warning("usage_odd", url=self._endpoint.url, model=self._model, counted=answer.completion_tokens)
        finally:
            sent.tokens = answer.prompt_tokens + answer.completion_tokens

    async def _next(self, request: _Request, last: float) -> dict[str, Any] | None:
        """The next event, None at the end or for one that was aborted."""
        assert request.events is not None
        patience_s = self._between_tokens_s if request.streaming else self._first_token_s
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + last + patience_s - time.monotonic()) as request.reading:
                return await anext(request.events, None)
        except TimeoutError:
            if request.aborted:
                return None
            if self._closed:
                self._require_alive()
            raise EngineError(f"the server sent no token for {patience_s:g} s", code="stalled") from None
        except (EngineError, RuntimeError):
            if request.aborted:  # its connection was closed under it
                return None
            raise
        finally:
            request.reading = None

    def _measure(self, request: _Request, answer: Answer, chunk: Chunk, last: float) -> float:
        now = time.monotonic()
        if request.streaming:
            self._meter.token((now - last) / max(len(chunk.token_ids), 1))
        else:
            request.streaming = True
            self._meter.first_token(now - request.began)
            self._meter.prefill(answer.prompt_tokens - answer.cached_tokens, now - request.began)
        return now

    async def _meaning(self, error: EngineError) -> EngineError:
        """An error, or that the server is away, if that is what it comes from."""
        if error.wire_code in ODD_TRANSPORT and self._dead is None:
            try:
                await self._endpoint.health()
            except EngineDead as dead:
                error = dead
        if isinstance(error, EngineDead) and not self._closed:
            self._lost(error)
        return error

    async def abort(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is None or request.aborted:
            return
        request.aborted = True
        if request.reading is not None:
            request.reading.reschedule(asyncio.get_running_loop().time())
        elif request.events is not None:
            await request.events.aclose()

    # ------------------------------------------------------------------ how it is

    def state(self) -> EngineState:
        ours = [one for one in self._requests.values() if not one.aborted]
        streaming = sum(one.streaming for one in ours)
        seen = self._seen
        if self._dialect.software == "vllm" and self._dead is None:
            self._look()
        if seen is None or time.monotonic() - seen.at > 3 * STATE_S:
            seen = _Seen(0.0, 0, 0, 0.0)
        return EngineState(
            running=streaming + seen.running,
            waiting=len(ours) - streaming + seen.waiting,
            max_running=self._concurrency,
            kv_cache_usage=seen.kv_cache_usage,
            ttft_ms=self._meter.ttft_ms,
            decode_tokens_per_s=self._meter.decode_tokens_per_s,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            prefix_hit_rate=self._meter.prefix_hit_rate,
        )

    def busy_s(self, tokens: int) -> float:
        """Seconds until a request of so many tokens, prompt and answer, may be sent; infinite while the server is
        away."""
        if self._dead is not None:
            return math.inf
        return self._limits.wait_s(tokens, time.monotonic())

    async def returned(self) -> None:
        """Wait until a server that went away is there again."""
        await self._there.wait()

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
        for request in self._requests.values():
            if request.reading is not None:
                request.reading.reschedule(asyncio.get_running_loop().time())
        await self._endpoint.close()

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise EngineDead(self._dead.message)

    def _lost(self, error: EngineDead) -> None:
        """The server is away, or does not let us in: look for it until it is there again."""
        if self._dead is not None:
            return
        log.warning("server_lost", url=self._endpoint.url, model=self._model, error=error.message)
        self._dead = error
        self._there.clear()
        self._returning = asyncio.create_task(self._return())

    async def _return(self) -> None:
        pause_s = AGAIN_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, AGAIN_MAX_S)
            try:
                await self._endpoint.health()
                if any(one.name == self._model for one in await self._endpoint.models()):
                    break
            except EngineError as error:
                log.debug("server_still_lost", url=self._endpoint.url, error=error.message)
        self._dead = None
        self._there.set()
        log.info("server_back", url=self._endpoint.url, model=self._model)

    def _look(self) -> None:
        """Read vLLM's counters, if it is time: another turn of `state` has them."""
        seen, now = self._seen, time.monotonic()
        if (self._looking is None or self._looking.done()) and (seen is None or now - seen.at > STATE_S):
            self._looking = asyncio.create_task(self._read_counters())

    async def _read_counters(self) -> None:
        with contextlib.suppress(EngineError):
            text = await self._endpoint.get_text(f"{self._endpoint.root}/metrics")
            ours = sum(not one.aborted for one in self._requests.values())
            running, waiting, usage = (
                _total(text, name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            )
            others = max(int(running + waiting) - ours, 0)
            queued = min(int(waiting), others)
            self._seen = _Seen(time.monotonic(), others - queued, queued, min(usage, 1.0))


def _total(text: str, name: str) -> float:
    """The sum of one of vLLM's gauges over its engines."""
    marker, total = f"vllm:{name}{{", 0.0
    for line in text.splitlines():
        if line.startswith(marker):
            with contextlib.suppress(ValueError):
                total += float(line.rpartition(" ")[2])
    return total


def _guessed_tokens(prompt: Prompt) -> int:
    """Until the server tells: a token is about four bytes of English."""
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    parts = [prompt.text] if prompt.text is not None else [str(one.get("content")) for one in prompt.messages or ()]
    return sum(len(part.encode(errors="replace")) for part in parts if part) // 4 + 1


def _with_text(chunk: Chunk, text: str) -> Chunk:
    return Chunk(
        text=text,
        token_ids=chunk.token_ids,
        prompt_tokens=chunk.prompt_tokens,
        completion_tokens=chunk.completion_tokens,
    )
