"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from pydantic_core import to_json

from modelnet.messages import Final
from workers.gateway.exchange import Exchange

from .question import Question
from .requests import CompletionRequest, unsupported
from .shapes import extension, marks_of, now, text_logprobs, usage_of

__all__ = ["completions"]

MOST_PROMPTS = 256


async def completions(exchange: Exchange) -> None:
    """Continue one text, or each of several."""
    request = await exchange.read(CompletionRequest)
    async with exchange.while_connected():
        inputs = request.inputs()
        if len(inputs) > (1 if request.stream else MOST_PROMPTS):
            raise unsupported("prompt", f"at most {MOST_PROMPTS} at once, and in a stream one")
        questions = [await Question.of(exchange, request.model, one, request.modelnet) for one in inputs]
        if request.stream:
            await _stream(questions[0], request)
            return
        finals = await asyncio.gather(*(question.answer(part) for part, question in enumerate(questions)))
    said = [one for question, final in zip(questions, finals, strict=True) for one in question.choices(final)]
    choices = [
        {
            "index": index,
            "text": one["text"],
            "logprobs": text_logprobs(marks_of(one)),
            "finish_reason": one["finish_reason"],
        }
        for index, one in enumerate(said)
    ]
    body = _head(finals[0].task, request.model) | {"choices": choices, "usage": usage_of(finals)}
    await exchange.answer(to_json(body), finals[0] if len(finals) == 1 else None)


def _head(task: str, model: str) -> dict[str, Any]:
    return {"id": f"cmpl-{task}", "object": "text_completion", "created": now(), "model": model}


async def _stream(question: Question, request: CompletionRequest) -> None:
    exchange = question.exchange
    task = await question.submit()
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    before = b"data: " + to_json(_head(task.id, request.model))[:-1] + b',"choices":['
    after = b'],"usage":null}\n\n' if wants_usage else b"]}\n\n"
    lengths = Counter[int]()
    final: Final | None = None
    async for piece in question.pieces(task):
        if isinstance(piece, Final):
            final = piece
            continue
        marks = text_logprobs(piece.logprobs, lengths[piece.index])
        lengths[piece.index] += len(piece.text)
        said = {"index": piece.index, "text": piece.text, "logprobs": marks, "finish_reason": None}
        await exchange.say(before + to_json(said) + after)
    assert final is not None
    ends: list[dict[str, Any]] = [
        {"index": index, "text": "", "logprobs": None, "finish_reason": one["finish_reason"]}
        for index, one in enumerate(question.choices(final))
    ]
    for end in ends[:-1]:
        await exchange.say(before + to_json(end) + after)
    last = to_json({"modelnet": extension(final)})[1:]
    await exchange.say(before + to_json(ends[-1]) + after[:-3] + b"," + last + b"\n\n")
    tail = b""
    if wants_usage:
        tail = before + b'],"usage":' + to_json(usage_of([final])) + b"}\n\n"
    await exchange.end_stream(tail + b"data: [DONE]\n\n")
