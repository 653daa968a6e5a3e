"""POST /v1/responses. Nothing is kept of a conversation: each request brings the whole of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from modelnet.messages import Final
from workers.gateway.exchange import Exchange
from workers.gateway.telling import Piece

from .question import Question
from .requests import ResponsesRequest
from .shapes import chat_logprobs, extension, marks_of, now, usage_of

__all__ = ["responses"]


async def responses(exchange: Exchange) -> None:
    """Answer a conversation, in items."""
    request = await exchange.read(ResponsesRequest)
    async with exchange.while_connected():
        question = await Question.of(exchange, request.model, request.to_input(), request.modelnet)
        calls = 1 if request.parallel_tool_calls is False else None
        if request.stream:
            await _stream(question, request, calls)
            return
        final = await question.answer()
    said = question.choices(final)[0]
    items = [_message(final.task, said)] if said["text"] or not said.get("tool_calls") else []
    items += [_call(final.task, at, one) for at, one in enumerate((said.get("tool_calls") or [])[:calls])]
    await exchange.answer(to_json(_response(request, final.task, now(), items, final, said)), final)


def _response(
    request: ResponsesRequest,
    task: str,
    created: int,
    items: Sequence[Mapping[str, Any]],
    final: Final | None = None,
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    cut = said is not None and said["finish_reason"] == "length"
    return {
        "id": f"resp_{task}",
        "object": "response",
        "created_at": created,
        "status": "in_progress" if final is None else "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": list(items),
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": request.temperature,
        "text": request.text or {"format": {"type": "text"}},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_p": request.top_p,
        "usage": None if final is None else _usage(final),
        **({} if final is None else {"modelnet": extension(final)}),
    }


def _usage(final: Final) -> dict[str, Any]:
    counted = usage_of([final])
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }


def _text(text: str, marks: Any = None) -> dict[str, Any]:
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": (chat_logprobs(marks) or {}).get("content", []),
    }


def _message(task: str, said: Mapping[str, Any] | None) -> dict[str, Any]:
    content = [] if said is None else [_text(said["text"], marks_of(said))]
    status = "in_progress" if said is None else "incomplete" if said["finish_reason"] == "length" else "completed"
    return {"type": "message", "id": f"msg_{task}", "role": "assistant", "status": status, "content": content}


def _call(task: str, at: int, call: Mapping[str, Any], status: str = "completed") -> dict[str, Any]:
    said = {"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}
    return {"type": "function_call", "id": f"fc_{task}_{at}", "status": status, **said}


@dataclass(slots=True)
class _Call:
    """A call while it is made."""

    index: int
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class _Teller:
    """Says a response's events, numbered, and keeps what was said of its items."""

    exchange: Exchange
    task: str
    number: int = 0
    items: int = 0
    message: int | None = None
    """Index of the message's item, once it has begun."""
    text: str = ""
    calls: dict[int, _Call] = field(default_factory=dict)

    async def say(self, kind: str, **fields: Any) -> None:
        """One event."""
        body = to_json({"type": kind, "sequence_number": self.number, **fields})
        self.number += 1
        await self.exchange.say(b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n")

    async def tell(self, piece: Piece, most_calls: int | None) -> None:
        """More of the answer."""
        if piece.text or piece.logprobs:
            place = await self.begin_message()
            marks = (chat_logprobs(piece.logprobs) or {}).get("content", [])
            self.text += piece.text
            await self.say("response.output_text.delta", **place, delta=piece.text, logprobs=marks)
        for part in piece.tool_calls:
            if most_calls is not None and part.position >= most_calls:
                continue
            call = self.calls.get(part.position)
            if call is None:
                call = self.calls[part.position] = _Call(self.items, part.id or "", part.name or "")
                self.items += 1
                item = self._item(part.position, call, "in_progress")
                await self.say("response.output_item.added", output_index=call.index, item=item)
            if part.arguments:
                call.arguments += part.arguments
                await self.say(
                    "response.function_call_arguments.delta",
                    item_id=f"fc_{self.task}_{part.position}",
                    output_index=call.index,
                    delta=part.arguments,
                )

    async def begin_message(self) -> dict[str, Any]:
        """The message's place; it begins if it has not."""
        place = {"item_id": f"msg_{self.task}", "content_index": 0}
        if self.message is None:
            self.message, self.items = self.items, self.items + 1
            item = _message(self.task, None)
            await self.say("response.output_item.added", output_index=self.message, item=item)
            await self.say("response.content_part.added", **place, output_index=self.message, part=_text(""))
        return {**place, "output_index": self.message}

    async def end(self, said: Mapping[str, Any]) -> list[dict[str, Any]]:
        """End all items; they are returned."""
        found: dict[int, dict[str, Any]] = {}
        if self.message is None and not self.calls:
            await self.begin_message()
        if self.message is not None:
            place = await self.begin_message()
            item = _message(self.task, {**said, "text": self.text})
            part = item["content"][0]
            await self.say("response.output_text.done", **place, text=self.text, logprobs=part["logprobs"])
            await self.say("response.content_part.done", **place, part=part)
            await self.say("response.output_item.done", output_index=self.message, item=item)
            found[self.message] = item
        for position, call in self.calls.items():
            item = self._item(position, call, "completed")
            place = {"item_id": item["id"], "output_index": call.index}
            await self.say("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
            await self.say("response.output_item.done", output_index=call.index, item=item)
            found[call.index] = item
        return [found[index] for index in sorted(found)]

    def _item(self, position: int, call: _Call, status: str) -> dict[str, Any]:
        said = {"id": call.id, "name": call.name, "arguments": call.arguments}
        return _call(self.task, position, said, status)


async def _stream(question: Question, request: ResponsesRequest, calls: int | None) -> None:
    task, created = await question.submit(), now()
    teller, final = _Teller(question.exchange, task.id), None
    async for piece in question.pieces(task):
        if teller.number == 0:
            begun = _response(request, task.id, created, [])
            await teller.say("response.created", response=begun)
            await teller.say("response.in_progress", response=begun)
        if isinstance(piece, Final):
            final = piece
            continue
        await teller.tell(piece, calls)
    assert final is not None
    said = question.choices(final)[0]
    response = _response(request, task.id, created, await teller.end(said), final, said)
    await teller.say(f"response.{response['status']}", response=response)
    await question.exchange.end_stream()
