"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from modelnet.messages import Final
from workers.gateway.exchange import Exchange
from workers.gateway.telling import Piece

from .question import Question
from .requests import ChatRequest
from .shapes import called, calling, chat_logprobs, extension, marks_of, now, usage_of

__all__ = ["chat"]


async def chat(exchange: Exchange) -> None:
    """Answer a conversation."""
    request = await exchange.read(ChatRequest)
    async with exchange.while_connected():
        question = await Question.of(exchange, request.model, request.input(), request.modelnet)
        calls = 1 if request.parallel_tool_calls is False else None
        if request.stream:
            await _stream(question, request, calls)
            return
        final = await question.answer()
    choices = [_choice(index, one, calls) for index, one in enumerate(question.choices(final))]
    body = _head(final.task, "chat.completion", request.model) | {"choices": choices, "usage": usage_of([final])}
    await exchange.answer(to_json(body), final)


def _head(task: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{task}", "object": kind, "created": now(), "model": model}


def _choice(index: int, said: Any, calls: int | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said["text"], "refusal": None}
    if said.get("tool_calls"):
        message["tool_calls"] = called(said["tool_calls"][:calls])
        message["content"] = said["text"] or None
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(marks_of(said)),
        "finish_reason": said["finish_reason"],
    }


async def _stream(question: Question, request: ChatRequest, calls: int | None) -> None:
    exchange = question.exchange
    task = await question.submit()
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    before = b"data: " + to_json(_head(task.id, "chat.completion.chunk", request.model))[:-1] + b',"choices":['
    after = b'],"usage":null}\n\n' if wants_usage else b"]}\n\n"
    spoken = set[int]()
    final: Final | None = None
    async for piece in question.pieces(task):
        if isinstance(piece, Final):
            final = piece
            continue
        delta = _delta(piece, calls, first=piece.index not in spoken)
        spoken.add(piece.index)
        said: dict[str, Any] = {"index": piece.index, "delta": delta, "finish_reason": None}
        if piece.logprobs is not None:
            said["logprobs"] = chat_logprobs(piece.logprobs)
        await exchange.say(before + to_json(said) + after)
    assert final is not None
    ends = []
    for index, one in enumerate(question.choices(final)):
        delta = {} if index in spoken else {"role": "assistant", "content": ""}
        ends.append({"index": index, "delta": delta, "finish_reason": one["finish_reason"]})
    last = to_json({"modelnet": extension(final)})[1:]
    for end in ends[:-1]:
        await exchange.say(before + to_json(end) + after)
    await exchange.say(before + to_json(ends[-1]) + after[:-3] + b"," + last + b"\n\n")
    tail = b""
    if wants_usage:
        tail = before + b'],"usage":' + to_json(usage_of([final])) + b"}\n\n"
    await exchange.end_stream(tail + b"data: [DONE]\n\n")


def _delta(piece: Piece, calls: int | None, *, first: bool) -> dict[str, Any]:
    delta: dict[str, Any] = {"role": "assistant", "content": piece.text} if first else {}
    if piece.text:
        delta["content"] = piece.text
    parts = [part for part in piece.tool_calls if calls is None or part.position < calls]
    if parts:
        delta["tool_calls"] = calling(parts)
    return delta
