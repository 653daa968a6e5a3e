"""Between the contracts of text.generate and the engine's interface: what is asked, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelnet import Piece
from modelnet.engines import Ability, Chunk, Grammar, Prompt, Sampling
from modelnet.messages import TokenAlternative, TokenLogprob

__all__ = ["Answers", "most_tokens", "needed", "prompt_of", "sampling_of"]

_PENALTIES = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_AS_THEY_ARE = ("max_tokens", "temperature", "top_p", "top_k", "seed", "n", "logprobs", *_PENALTIES)


def needed(input: Mapping[str, Any]) -> set[Ability]:
    """What an engine must be able to do for an input, or for one of which only the shape is known."""
    grammar = input.get("grammar") or {}
    wants: dict[Ability, bool] = {
        "prompt": "prompt" in input,
        "chat": "messages" in input,
        "top_k": "top_k" in input,
        "seed": "seed" in input,
        "choices": input.get("n", 1) > 1,
        "logprobs": "logprobs" in input,
        "penalties": any(name in input for name in _PENALTIES),
        "json": "json_schema" in grammar or "json_object" in grammar,
        "grammar": "regex" in grammar or "choice" in grammar,
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


def most_tokens(input: Mapping[str, Any]) -> int:
    """What an input may use, prompt and answer: a token of it is about four characters."""
    messages = input.get("messages")
    texts = [input.get("prompt"), input.get("query"), *(input.get("texts") or ()), *(input.get("documents") or ())]
    texts += [one.get("content") for one in messages] if isinstance(messages, list | tuple) else []
    read = sum(len(text) for text in texts if isinstance(text, str)) // 4 + 1
    answers = int(input.get("n") or 1) if "prompt" in input or "messages" in input else 0
    return read + answers * int(input.get("max_tokens") or Sampling().max_tokens)


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
