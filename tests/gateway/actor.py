"""A function that plays a language model: what it says follows from what it is asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from modelnet import Context, Worker
from modelnet.deltas import Piece
from modelnet.errors import Reject
from modelnet.messages import TokenLogprob, ToolCallPart
from tests.network.stage import Network

__all__ = ["Actor"]


class Actor:
    """Worker `actor` with model `parrot`: it says again what it is told, word by word."""

    def __init__(self, network: Network, *, name: str = "actor", slots: int = 200) -> None:
        self.inputs: list[dict[str, Any]] = []
        self.begun = asyncio.Event()
        """Set when it has said its first word to `wait`."""
        self.go_on = asyncio.Event()
        """What `wait` waits for."""
        self.left = asyncio.Event()
        """Set when `wait` was cancelled."""
        self.worker: Worker = network.worker(name, slots=slots)
        self.worker.capability("text.generate", model="parrot", price=3)(self.generate)
        self.worker.capability("text.embed", model="ruler", price=1)(self.embed)

    async def embed(self, ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
        """The texts' lengths, and a half."""
        ctx.count(prompt_tokens=sum(len(text.split()) for text in input["texts"]))
        return {"vectors": [[float(len(text)), 0.5] for text in input["texts"]]}

    async def generate(self, ctx: Context, input: dict[str, Any]) -> AsyncIterator[Any]:
        """An answer."""
        self.inputs.append(input)
        said = input.get("prompt") or input["messages"][-1]["content"]
        words = said.split()
        ctx.count(prompt_tokens=len(words), completion_tokens=len(words) * input.get("n", 1))
        if said.startswith("fail "):
            raise Reject("it cannot be done", code=said.removeprefix("fail "))
        if said == "wait":
            yield "begun "
            self.begun.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
            yield "and done"
            yield {"text": "begun and done", "finish_reason": "stop"}
        elif "tools" in input and input.get("tool_choice") != "none":
            name, arguments = input["tools"][0]["function"]["name"], '{"city": "Köln"}'
            parts = [
                ToolCallPart(position=0, id="call_1", name=name),
                ToolCallPart(position=0, arguments=arguments[:5]),
                ToolCallPart(position=0, arguments=arguments[5:]),
                ToolCallPart(position=1, id="call_2", name=name, arguments="{}"),
            ]
            for part in parts:
                yield Piece("", tool_calls=[part])
            calls = [{"id": f"call_{n}", "name": name, "arguments": a} for n, a in ((1, arguments), (2, "{}"))]
            yield {"text": "", "finish_reason": "tool_calls", "tool_calls": calls}
        elif "grammar" in input:
            text = json.dumps({"name": "Ada", "age": 36})
            yield text
            yield {"text": text, "finish_reason": "stop"}
        else:
            async for one in self._repeat(words[: input.get("max_tokens")], words, input):
                yield one

    async def _repeat(self, words: list[str], all_words: list[str], input: dict[str, Any]) -> AsyncIterator[Any]:
        marks = []
        for answer in range(input.get("n", 1)):
            for at, word in enumerate(words):
                token = word if at == 0 else f" {word}"
                mark = None
                if "logprobs" in input:
                    top = [{"token": f"{other}", "logprob": -1.0} for other in range(input["logprobs"])]
                    mark = TokenLogprob(token=token, logprob=-0.5, top=top)
                    marks += [mark.to_dict()] if answer == 0 else []
                yield Piece(token, answer=answer, logprobs=[mark] if mark else None)
        reason = "stop" if words == all_words else "length"
        said: dict[str, Any] = {"text": " ".join(words), "finish_reason": reason}
        if marks:
            said["logprobs"] = [{k: v for k, v in one.items() if v is not None} for one in marks]
            for one in said["logprobs"]:
                one["top"] = [{k: v for k, v in other.items() if v is not None} for other in one["top"]]
        if input.get("n", 1) > 1:
            said["choices"] = [dict(said) for _ in range(input["n"])]
        yield said
