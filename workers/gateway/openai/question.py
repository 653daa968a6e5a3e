"""The question: what a conversation asks of a capability, and its output as text, whatever its contract."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from modelnet.handle import TaskHandle
from modelnet.messages import Final
from workers.gateway.directory import Meant, is_below
from workers.gateway.exchange import Exchange, Terms
from workers.gateway.refusal import Refusal, unsuccessful
from workers.gateway.telling import Piece, Telling

__all__ = ["GENERATE", "Question"]

GENERATE = "text.generate"


@dataclass(slots=True)
class Question:
    """One task to be published for an exchange, of which several may belong to one request."""

    exchange: Exchange
    meant: Meant
    input: Mapping[str, Any]
    terms: Terms | None

    @classmethod
    async def of(cls, exchange: Exchange, model: str, input: Mapping[str, Any], terms: Terms | None) -> Question:
        """`input`: as `text.generate` takes it. What has another contract gets its prompt, or its last message.

        That is the capability's input if it is a JSON object; else it stands for the one text that the contract has.
        """
        meant = await exchange.lobby.directory.meaning(model, family=GENERATE)
        if not is_below(meant.capability, GENERATE):
            input = await _plain(exchange, meant.capability, _last_said(input))
        return cls(exchange, meant, input, terms)

    @property
    def generates(self) -> bool:
        """Whether it is text that is asked for, and not a value of some contract."""
        return is_below(self.meant.capability, GENERATE)

    async def submit(self, part: int = 0) -> TaskHandle:
        """Publish it."""
        return await self.exchange.submit(self.meant, self.input, self.terms, part=part)

    async def answer(self, part: int = 0) -> Final:
        """Publish it, and wait for its Final."""
        return await self.exchange.completed(await self.submit(part))

    async def pieces(self, task: TaskHandle) -> AsyncIterator[Piece | Final]:
        """Its answer while it is made, the Final last. The stream begins when it is known that there may be an answer.

        Raises `Refusal` if the task does not complete.
        """
        telling = Telling()
        async for event in task.stream():
            if isinstance(event, Final):
                self.exchange.count(event)
                if event.status != "completed":
                    raise unsuccessful(event)
                if not self.exchange.begun:
                    await self.exchange.begin_stream(task)
                for piece in telling.end(self.said(event)):
                    yield piece
                yield event
                continue
            if not self.exchange.begun:
                await self.exchange.begin_stream(task)
            heard = telling.hear(event) if self.generates else None
            if heard is not None:
                yield heard

    def said(self, final: Final) -> Mapping[str, Any]:
        """The output as `text.generate` gives it; one of another contract is its JSON."""
        output = final.output or {}
        if self.generates:
            return output
        return {"text": json.dumps(output, ensure_ascii=False), "finish_reason": "stop"}

    def choices(self, final: Final) -> list[Mapping[str, Any]]:
        """All answers."""
        said = self.said(final)
        return list(said.get("choices") or [said])


def _last_said(input: Mapping[str, Any]) -> str:
    if "prompt" in input:
        return str(input["prompt"])
    said = [message.get("content") for message in input["messages"] if message["role"] == "user"]
    return said[-1] or "" if said else ""


async def _plain(exchange: Exchange, capability: str, text: str) -> Mapping[str, Any]:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    contract = await exchange.lobby.directory.contract(capability)
    schema = contract.input if contract is not None else {}
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    names = [name for name in required or properties if _takes_text(properties.get(name))]
    if len(names) == 1 and set(required) <= set(names):
        return {names[0]: text}
    raise Refusal(
        400,
        "contract_violation",
        f"the last message must be the input of {capability} as a JSON object that keeps its contract: "
        f"{json.dumps(schema)[:1000]}",
        param="messages",
    )


def _takes_text(schema: Any) -> bool:
    kind = schema.get("type") if isinstance(schema, dict) else None
    return kind == "string" or (isinstance(kind, list) and "string" in kind)
