"""An OpenAI-compatible server at a URL: the HTTP client, what its errors mean, and what it turns out to be able to do.

What is asked of it and how its answers are read is in `modelnet.engines.openai_requests`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, get_args

import httpx2 as httpx
from pydantic import SecretStr

from modelnet.engines.errors import (
    BadPrompt,
    BadSampling,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineUnavailable,
    PromptTooLong,
    Unsupported,
)
from modelnet.engines.limits import RateLimits

__all__ = ["ROUTES", "Endpoint", "Listed", "Route", "Software"]

Software = Literal["vllm", "llama.cpp", "ollama", "other"]
Route = Literal["completions", "chat", "embeddings", "rerank"]

CONNECT_S = 5.0
ANSWER_S = 10.0
"""For questions that no model has to think about."""
LONGEST_BODY = 256 * 1024 * 1024
"""Bytes of an answer that is no stream: 2,048 embeddings of 4,096 numbers as text fit into it."""
LONGEST_EVENT = 8 * 1024 * 1024
"""Bytes: the ids of a prompt of a million tokens fit into it."""
SHOWN = 300
"""Characters of a server's complaint that are shown."""

ROUTES: tuple[Route, ...] = get_args(Route)
_PATHS: Mapping[Route, str] = {
    "completions": "completions",
    "chat": "chat/completions",
    "embeddings": "embeddings",
    "rerank": "rerank",
}
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum.{0,20}(length|tokens)|too (long|many tokens)"
    r"|exceeds? the.{0,30}(context|limit)|max_tokens must be at least 1, got (0|-)",
    re.IGNORECASE,
)
_OF_PROMPT = frozenset({"", "prompt", "messages", "input", "input_text", "model"})
"""Parameters that a complaint may be about and that are no sampling."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model, as the server lists it."""

    name: str
    max_model_len: int | None
    """Tokens of prompt and answer together, where it says."""
    owner: str
    """`owned_by`: servers show by it what they are."""


class Endpoint:
    """One server. Raises engine errors only. None shows the key, nor do those that travel to whoever asked show where
    the server is."""

    def __init__(self, url: str, *, key: SecretStr | None = None, limits: RateLimits | None = None) -> None:
        """`url`: with or without `/v1`. Raises `EngineUnavailable` for one that is no address of a server."""
        self.url = _checked(url)
        self.root = self.url.removesuffix("/v1")
        self.limits = limits or RateLimits()
        headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key and key.get_secret_value() else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_S, write=30.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    # ------------------------------------------------------------------ what it is

    async def models(self) -> list[Listed]:
        """What it serves."""
        body = await self.get(f"{self.url}/models")
        found = body.get("data") if isinstance(body, dict) else None
        if not isinstance(found, list):
            raise EngineUnavailable(f"{self.url}/models lists no models: is this an OpenAI-compatible server?")
        return [_listed(one) for one in found if isinstance(one, dict) and isinstance(one.get("id"), str)]

    async def software(self, owner: str) -> tuple[Software, str]:
        """What it runs, for us and for people. `owner`: of the model, as it is listed."""
        if owner == "vllm":
            return "vllm", f"vLLM {await self._version('version')}".strip()
        if owner == "llamacpp":
            return "llama.cpp", "llama.cpp"
        if owner == "library" and (version := await self._version("api/version")):
            return "ollama", f"Ollama {version}"
        return "other", "OpenAI-compatible server"

    async def _version(self, path: str) -> str:
        try:
            body = await self.get(f"{self.root}/{path}")
        except EngineError:
            return ""
        version = body.get("version") if isinstance(body, dict) else None
        return version[:32] if isinstance(version, str) else ""

    async def has(self, route: Route, model: str) -> bool:
        """Whether it has a route. Asked with a request that no server can begin: 404 says that there is no such route,
        another error that there is one."""
        impossible = {"model": model, "prompt": {}, "messages": {}, "input": {}, "query": {}, "documents": {}}
        answer = await self._ask(_PATHS[route], impossible)
        return answer.status_code not in (404, 405, 501)

    async def takes_tools(self, model: str) -> bool:
        """Whether a vLLM was started with what reads calls. An empty chat is refused too, but for another reason."""
        tool = {"type": "function", "function": {"name": "f"}}
        empty = {"model": model, "messages": [], "tools": [tool], "tool_choice": "auto"}
        answer = await self._ask(_PATHS["chat"], empty)
        return "--enable-auto-tool-choice" not in answer.text

    async def _ask(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._client.post(f"{self.url}/{path}", json=body)
        except (httpx.HTTPError, TimeoutError) as error:
            raise EngineDead(f"the server {_why(error)}") from None

    async def health(self) -> None:
        """Raises `EngineDead` if it does not answer, or is not well."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._client.get(f"{self.root}/health")
                if answer.status_code in (401, 403, 404, 405):  # it has none, or not for us
                    answer = await self._client.get(f"{self.url}/models")
        except (httpx.HTTPError, TimeoutError) as error:
            raise EngineDead(f"the server {_why(error)}") from None
        if answer.status_code != 200 and answer.status_code != 429:
            raise EngineDead(f"the server answers {answer.status_code} when asked for its health")

    # ------------------------------------------------------------------ requests

    async def get(self, url: str) -> Any:
        """A JSON document, None for what is none."""
        return _json(await self.get_text(url))

    async def get_text(self, url: str) -> str:
        """A document as text."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._client.get(url)
        except (httpx.HTTPError, TimeoutError) as error:
            raise EngineDead(f"the server {_why(error)}") from None
        if answer.status_code != 200:
            raise self._error(answer.status_code, answer.text)
        return answer.text

    async def post(self, path: str, body: Mapping[str, Any], *, within_s: float) -> dict[str, Any]:
        """The JSON object that answers."""
        whole = bytearray()
        try:
            async with asyncio.timeout(within_s), self._client.stream("POST", self._address(path), json=body) as answer:
                self._learn(answer)
                async for block in answer.aiter_bytes():
                    whole += block
                    if len(whole) > LONGEST_BODY:
                        raise EngineError(f"the server answers more than {LONGEST_BODY} bytes", code="bad_answer")
        except TimeoutError:
            raise EngineError(f"the server gave no answer for {within_s:g} s", code="stalled") from None
        except httpx.HTTPError as error:
            raise _broken(error) from None
        text = whole.decode(errors="replace")
        if answer.status_code != 200:
            raise self._error(answer.status_code, text)
        found = _json(text)
        if not isinstance(found, dict):
            raise EngineError(f"the server answers with no JSON object: {_short(text)}", code="bad_answer")
        return found

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events that answer, up to `[DONE]`. Closing the generator closes the connection, which is how a server
        is told to stop."""
        try:
            async with self._client.stream("POST", self._address(path), json=body) as answer:
                self._learn(answer)
                if answer.status_code != 200:
                    text = (await _beginning(answer)).decode(errors="replace")
                    raise self._error(answer.status_code, text)
                events = aiter(httpx.EventSource(answer, LONGEST_EVENT))
                async with aclosing(events):  # type: ignore[type-var]  # it is a generator
                    async for event in events:
                        if event.data == "[DONE]":
                            return
                        yield self._event(event.data)
        except httpx.SSEError as error:
            raise EngineError(f"the server does not stream: {_short(str(error))}", code="bad_answer") from None
        except httpx.HTTPError as error:
            raise _broken(error) from None

    def _address(self, path: str) -> str:
        return f"{self.root}{path}" if path.startswith("/") else f"{self.url}/{path}"

    def _learn(self, answer: httpx.Response) -> None:
        self.limits.answered(answer.status_code, answer.headers, time.monotonic())

    def _event(self, data: str) -> dict[str, Any]:
        event = _json(data)
        if not isinstance(event, dict):
            raise EngineError(f"the server streams what is no JSON object: {_short(data)}", code="bad_answer")
        if error := event.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            raise self._error(code if isinstance(code, int) and code >= 400 else 500, data)
        return event

    def _error(self, status: int, text: str) -> EngineError:
        """What an answer that is none means."""
        message, code, param = _complaint(text)
        said = f"the server answers {status}: {_short(message)}" if message else f"the server answers {status}"
        if status == 429 and code != "insufficient_quota":
            return EngineBusy(said)
        if status in (401, 402, 403) or status == 429:
            # Without the complaint, which may quote the key.
            return EngineDead(f"the server answers {status}: is the API key right, and may it use this model?")
        if status in (400, 413, 422):
            if status == 413 or code == "context_length_exceeded" or _TOO_LONG.search(message):
                return PromptTooLong(said)
            if code == "unsupported_parameter" or "not support" in message:
                return Unsupported(said)
            first = param.removeprefix("body.").partition(".")[0].partition("[")[0]
            return BadPrompt(said) if first in _OF_PROMPT else BadSampling(said)
        if status in (404, 405, 501):
            return EngineDead(f"{said} (is the model still there?)")
        return EngineBusy(said) if status == 503 else EngineError(said, code="server_error")


async def _beginning(answer: httpx.Response) -> bytes:
    """Enough of an answer to tell what it complains of."""
    found = b""
    async for block in answer.aiter_bytes():
        found += block
        if len(found) > 65_536:
            break
    return found


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise EngineUnavailable(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EngineUnavailable(f"{url!r} is no address of a server: write http://host:port/v1")
    if parsed.userinfo:
        raise EngineUnavailable("a URL with a password in it is shown in logs: give the key in the environment")
    if parsed.query or parsed.fragment:
        raise EngineUnavailable(f"{url!r}: the address of a server ends with its path")
    bare = str(parsed).rstrip("/")
    return bare if parsed.path.rstrip("/") else f"{bare}/v1"


def _listed(model: Mapping[str, Any]) -> Listed:
    meta = model.get("meta")
    lengths = (
        model.get("max_model_len"),  # vLLM
        model.get("context_length"),  # several that sell other people's models
        meta.get("n_ctx") if isinstance(meta, Mapping) else None,  # llama.cpp
    )
    length = next((n for n in lengths if isinstance(n, int) and n > 1), None)
    return Listed(model["id"], length, str(model.get("owned_by", "")))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _complaint(text: str) -> tuple[str, str, str]:
    """Message, code and parameter of an error, in any of the forms that servers give it."""
    body = _json(text)
    error = body.get("error", body) if isinstance(body, dict) else text
    if not isinstance(error, dict):
        return str(error), "", ""
    message = error.get("message") or error.get("detail") or text
    return str(message), str(error.get("code") or ""), str(error.get("param") or "")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _why(error: Exception) -> str:
    if isinstance(error, httpx.ConnectTimeout | TimeoutError):
        return "does not answer in time"
    if isinstance(error, httpx.ConnectError):
        return f"cannot be reached: {_short(str(error)) or 'no connection'} (does it run, and is this its address?)"
    return f"breaks off: {type(error).__name__} {_short(str(error))}".rstrip()


def _broken(error: httpx.HTTPError) -> EngineError:
    """A connection that was not made means that the server is away; one that broke, that this answer is lost."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return EngineDead(f"the server {_why(error)}")
    return EngineError(f"the server {_why(error)}", code="connection_lost")
