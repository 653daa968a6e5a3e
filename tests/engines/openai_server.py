"""A real HTTP server that speaks OpenAI's protocol, with one of our engines behind it, and fails when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from modelnet.engines import BadPrompt, BadSampling, Chunk, Engine, EngineDead, Prompt, PromptTooLong, Sampling

__all__ = ["Fault", "OpenAIServer"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How one request goes wrong."""

    after: int = 0
    """Events that still come before it does."""
    status: int | None = None
    """Instead of an answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "out of order"}}'
    send: bytes | None = None
    """Sent as it is, in place of an event."""
    cut: bool = False
    """The connection breaks."""
    stall: bool = False
    """Nothing more comes, for ever, but for comments."""
    usage: Any = None
    """What it says it has used."""


class OpenAIServer:
    """`engine` behind a port of 127.0.0.1. Requests take the `faults` in turn."""

    def __init__(self, engine: Engine, model: str, *, vllm: bool = False, key: str = "") -> None:
        self.engine, self.model, self.vllm, self.key = engine, model, vllm, key
        self.faults: deque[Fault] = deque()
        self.headers: dict[str, str] = {}
        """Of each answer to a request for text."""
        self.asked: list[dict[str, Any]] = []
        """The bodies of all requests."""
        self.gone: asyncio.Queue[str] = asyncio.Queue()
        """An entry for each answer that its reader left before the end."""
        self.port = 0
        self._ids = itertools.count(1)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """As it is given to `--openai`."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """Listen; once more on the same port."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
        ]
        if self.vllm:
            routes += [
                Route("/health", self._health),
                Route("/version", self._version),
                Route("/metrics", self._metrics),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
                Route("/v1/rerank", self._rerank, methods=["POST"]),
            ]
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, lifespan="off")
        config.load()
        self._server = server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # Not `serve`, which would take the signals of the test run.
        await server.startup(sockets=[listener])
        self._serving = asyncio.create_task(server.main_loop())

    async def stop(self) -> None:
        """As kill -9 would: nothing is finished and nobody is told."""
        if self._server is None or self._serving is None:
            return
        server, self._server = self._server, None
        server.should_exit = server.force_exit = True
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await self._serving
        await server.shutdown()

    # ------------------------------------------------------------------ small questions

    async def _models(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        model: dict[str, Any] = {"id": self.model, "object": "model", "owned_by": "vllm" if self.vllm else "me"}
        if self.vllm:
            model["max_model_len"] = self.engine.max_model_len
        return JSONResponse({"object": "list", "data": [model, {"id": "another", "object": "model"}]})

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": "0.0.test"})

    async def _metrics(self, request: Request) -> Response:
        state = self.engine.state()
        values = {
            "num_requests_running": state.running,
            "num_requests_waiting": state.waiting,
            "kv_cache_usage_perc": state.kv_cache_usage,
        }
        return PlainTextResponse("".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in values.items()))

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        if body.get("add_special_tokens") is False:
            return JSONResponse({"tokens": await self.engine.encode(Prompt(token_ids=()), body["prompt"])})
        chat = "messages" in body
        prompt = Prompt(messages=tuple(body["messages"])) if chat else Prompt(text=body["prompt"])
        try:
            tokens = await self.engine.encode(prompt)
        except BadPrompt as error:
            return _complaint(400, error.message)
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": self.engine.max_model_len})

    async def _detokenize(self, request: Request) -> Response:
        return JSONResponse({"prompt": await self.engine.decode((await request.json())["tokens"])})

    async def _embeddings(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        texts = body["input"]
        if not isinstance(texts, list):
            return _complaint(400, "input must be a list")
        data = [{"index": n, "embedding": _vector(text)} for n, text in enumerate(texts)]
        used = sum(map(len, texts))
        return JSONResponse({"data": data[::-1], "usage": {"prompt_tokens": used, "total_tokens": used}})

    async def _rerank(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if not isinstance(body["documents"], list):
            return _complaint(400, "documents must be a list")
        query = _vector(body["query"])
        scored = [
            {"index": n, "relevance_score": sum(a * b for a, b in zip(query, _vector(text), strict=True))}
            for n, text in enumerate(body["documents"])
        ]
        scored.sort(key=lambda one: -one["relevance_score"])
        return JSONResponse({"results": scored, "usage": {"prompt_tokens": 7, "total_tokens": 7}})

    # ------------------------------------------------------------------ text

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        prompt = body.get("prompt")
        if not isinstance(prompt, str | list):
            return _complaint(400, "prompt must be text or tokens")
        asked = Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=tuple(prompt))
        return await self._answer(request, body, asked, chat=False)

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        if not isinstance(body.get("messages"), list):
            return _complaint(400, "messages must be a list")
        return await self._answer(request, body, Prompt(messages=tuple(body["messages"])), chat=True)

    async def _answer(self, request: Request, body: dict[str, Any], prompt: Prompt, *, chat: bool) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        self.asked.append(body)
        fault = self.faults.popleft() if self.faults else Fault()
        if fault.status is not None:
            return Response(fault.body, fault.status, dict(fault.headers), "application/json")
        try:
            sampling = _sampling(body)
            streams = [self._generate(prompt, sampling, n) for n in range(body.get("n", 1))]
            firsts = [await anext(stream) for stream in streams]
        except BadSampling as error:
            return _complaint(400, error.message, param="temperature")
        except PromptTooLong as error:
            return _complaint(400, f"This model's maximum context length is less: {error.message}")
        except BadPrompt as error:
            return _complaint(400, error.message)
        except EngineDead as error:
            return _complaint(500, error.message)
        events = self._events(body, streams, firsts, fault, chat=chat)
        return StreamingResponse(events, media_type="text/event-stream", headers=self.headers)

    async def _generate(self, prompt: Prompt, sampling: Sampling, n: int) -> AsyncIterator[Chunk]:
        async with aclosing(self.engine.generate(f"{next(self._ids)}", prompt, sampling)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _events(
        self,
        body: dict[str, Any],
        streams: list[AsyncIterator[Chunk]],
        firsts: list[Chunk],
        fault: Fault,
        *,
        chat: bool,
    ) -> AsyncIterator[bytes]:
        sent, used, finished = 0, [0, 0], False
        try:
            for index, (stream, first) in enumerate(zip(streams, firsts, strict=True)):
                async for chunk in _chain(first, stream):
                    if fault != Fault() and sent == fault.after:
                        if fault.cut:
                            raise ConnectionError("cut")
                        if fault.send is not None:
                            yield fault.send
                        while fault.stall:
                            yield b": still here\n\n"
                            await asyncio.sleep(0.05)
                    sent += 1
                    yield _event(self._choice(body, index, chunk, chat=chat))
                used = [chunk.prompt_tokens, used[1] + chunk.completion_tokens]
            if body.get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
                yield _event({"choices": [], "usage": usage if fault.usage is None else fault.usage})
            yield b"data: [DONE]\n\n"
            finished = True
        finally:
            if not finished:
                self.gone.put_nowait("left")
            for stream in streams:
                with contextlib.suppress(RuntimeError):
                    await stream.aclose()  # type: ignore[attr-defined]

    def _choice(self, body: dict[str, Any], index: int, chunk: Chunk, *, chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": chunk.finish_reason}
        choice |= {"delta": {"content": chunk.text}} if chat else {"text": chunk.text}
        if self.vllm and body.get("return_token_ids"):
            choice["token_ids"] = list(chunk.token_ids or ())
        event: dict[str, Any] = {"object": "chunk", "model": self.model, "choices": [choice]}
        if self.vllm and body.get("stream_options", {}).get("continuous_usage_stats"):
            event["usage"] = {"prompt_tokens": chunk.prompt_tokens, "completion_tokens": chunk.completion_tokens}
        return event

    def _refused(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _complaint(401, "wrong key", param="")
        return None


async def _chain(first: Chunk, rest: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    yield first
    async for chunk in rest:
        yield chunk


def _sampling(body: dict[str, Any]) -> Sampling:
    given = {k: body[k] for k in ("max_tokens", "temperature", "top_p", "top_k", "seed") if body.get(k) is not None}
    stop = body.get("stop") or ()
    return Sampling(**given, stop=(stop,) if isinstance(stop, str) else tuple(stop))


def _vector(text: str) -> list[float]:
    """How often each of eight kinds of byte is in it, as a vector of length 1."""
    counts = [0.0] * 8
    for byte in text.encode():
        counts[byte % 8] += 1
    length = sum(x * x for x in counts) ** 0.5 or 1.0
    return [x / length for x in counts]


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _complaint(status: int, message: str, *, param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "code": status, "param": param}}, status)
