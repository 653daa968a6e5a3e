"""Between the contracts of text.generate and the engine's interface: what is asked, and what was answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelnet import Piece
from modelnet.engines import Ability, Chunk, Grammar, Prompt, Sampling
from modelnet.messages import TokenAlternative, TokenLogprob

__all__ = ["Answers", "length_price", "needed", "prompt_of", "sampling_of", "token_price"]

_PENALTIES = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_AS_THEY_ARE = ("max_tokens", "temperature", "top_p", "top_k", "seed", "n", "logprobs", *_PENALTIES)


def needed(input: Mapping[str, Any]) -> set[Ability]:
    """What an engine must be able to do for an input, or for one of which only the shape is known."""
    wants: dict[Ability, bool] = {
        "choices": input.get("n", 1) > 1,
        "logprobs": "logprobs" in input,
        "penalties": any(name in input for name in _PENALTIES),
        "grammar": "grammar" in input,
        "tools": "tools" in input,
    }
    return {ability for ability, wanted in wants.items() if wanted}


def prompt_of(input: Mapping[str, Any]) -> Prompt:
    """What the model is asked. Raises `BadPrompt`."""
    messages = input.get("messages")
    return Prompt(
        text=input.get("prompt"),
        messages=tuple(messages) if messages is not None else None,
        tools=tuple(input.get("tools", ())),
        tool_choice=input.get("tool_choice", "auto"),
    )


def sampling_of(input: Mapping[str, Any]) -> Sampling:
    """How it is to answer. Raises `BadSampling`."""
    given = {key: input[key] for key in _AS_THEY_ARE if key in input}
    stop, grammar = input.get("stop") or (), input.get("grammar")
    if grammar is not None:
        grammar = Grammar(**{**grammar, "choice": tuple(grammar.get("choice", ()))})
    return Sampling(**given, stop=(stop,) if isinstance(stop, str) else tuple(stop), grammar=grammar)


def token_price(base: int, per_token: int) -> int | Callable[[dict[str, Any]], int]:
    """A price by the tokens that may be drawn."""
    if not per_token:
        return base

    def price(input: dict[str, Any]) -> int:
        return base + per_token * int(input.get("max_tokens") or Sampling().max_tokens) * int(input.get("n") or 1)

    return price


def length_price(base: int, per_token: int) -> int | Callable[[dict[str, Any]], int]:
    """A price by the length of the texts that are read: their tokens are not known to who sees lengths."""
    if not per_token:
        return base

    def price(input: dict[str, Any]) -> int:
        texts = [
            *input.get("texts", ()),
            *(input.get("documents", ())),
            *([input["query"]] if "query" in input else ()),
        ]
        return base + per_token * sum(-(-len(text) // 4) for text in texts)

    return price


@dataclass(slots=True)
class _Answer:
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish_reason: str | None = None


class Answers:
    """What an engine's chunks come to."""

    def __init__(self, sampling: Sampling, prompt: Prompt, begun: str = "") -> None:
        """`begun`: what an earlier attempt said of the only answer."""
        self._answers = [_Answer() for _ in range(sampling.n)]
        self._answers[0].texts.append(begun)
        self._logprobs = sampling.logprobs is not None
        # Where more than text counts, or the text hangs on a state that it does not tell, nobody can go on behind it.
        self._restarts = bool(prompt.tools) or sampling.grammar is not None or sampling.n > 1 or self._logprobs

    @property
    def whole(self) -> bool:
        """Whether all have ended."""
        return all(answer.finish_reason is not None for answer in self._answers)

    def add(self, chunk: Chunk) -> Piece:
        """Take a chunk in: the piece that it is on the stream."""
        answer = self._answers[chunk.index]
        answer.texts.append(chunk.text)
        answer.logprobs += (_facts(one) for one in chunk.logprobs or ())
        for part in chunk.tool_calls:
            call = answer.calls.setdefault(part.position, {"id": "", "name": "", "arguments": ""})
            call["id"] += part.id or ""
            call["name"] += part.name or ""
            call["arguments"] += part.arguments
        if chunk.finish_reason is not None:
            answer.finish_reason = chunk.finish_reason
        return Piece(
            chunk.text,
            chunk.token_ids,
            answer=chunk.index,
            logprobs=chunk.logprobs,
            tool_calls=chunk.tool_calls,
            restarts=self._restarts,
        )

    def output(self) -> dict[str, Any]:
        """The output that the contract wants."""
        choices = [self._choice(answer) for answer in self._answers]
        return choices[0] if len(choices) == 1 else {**choices[0], "choices": choices}

    def _choice(self, answer: _Answer) -> dict[str, Any]:
        found: dict[str, Any] = {"text": "".join(answer.texts), "finish_reason": answer.finish_reason or "stop"}
        if answer.calls:
            found["tool_calls"] = [call for _, call in sorted(answer.calls.items())]
        if self._logprobs:
            found["logprobs"] = answer.logprobs
        return found


def _facts(one: TokenAlternative) -> dict[str, Any]:
    found: dict[str, Any] = {"token": one.token, "logprob": one.logprob}
    if one.bytes is not None:
        found["bytes"] = list(one.bytes)
    if isinstance(one, TokenLogprob):
        found["top"] = [_facts(other) for other in one.top]
    return found
