"""Requests in OpenAI's protocol, and how their answers are read. Pure: `modelnet.engines.endpoint` carries them.

Servers understand more or less of it, see `Dialect`. What one does not understand it mostly passes over in silence, so
nothing is sent that it is not known to take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from modelnet.engines.base import Chunk, EngineBusy, EngineError, FinishReason, Prompt, Sampling, Unsupported
from modelnet.engines.endpoint import Software

__all__ = ["MOST_STOPS", "Answer", "Dialect", "Feature", "request_body"]

Feature = Literal["top_k", "seed", "usage", "token_ids"]
"""What a server may lack, by the names that a workers file has for it."""

FEATURES: Mapping[Software, frozenset[Feature]] = {
    "vllm": frozenset({"top_k", "seed", "usage", "token_ids"}),
    "llama.cpp": frozenset({"top_k", "seed", "usage"}),
    "ollama": frozenset({"seed", "usage"}),
    "other": frozenset({"seed", "usage"}),
}
MOST_STOPS = 4
"""Stop strings that a server takes in one request; more are looked for here."""
_REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "eos": "stop", "repetition": "stop"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """What of the protocol a server understands."""

    software: Software
    features: frozenset[Feature]

    @classmethod
    def of(cls, software: Software, lacks: Sequence[str] = ()) -> Dialect:
        """That of a server, less what it is said to lack."""
        return cls(software, FEATURES[software] - frozenset(lacks))

    def require(self, sampling: Sampling) -> None:
        """Raises `Unsupported` for what this server does not do."""
        wanted: list[tuple[Feature, bool]] = [
            ("top_k", sampling.top_k > 0),
            ("seed", sampling.seed is not None),
        ]
        for feature, asked in wanted:
            if asked and feature not in self.features:
                raise Unsupported(f"this server does not know {feature}")


def request_body(
    model: str,
    prompt: Prompt,
    sampling: Sampling,
    dialect: Dialect,
    *,
    max_model_len: int | None,
    begun: str = "",
    limit: str = "max_tokens",
) -> dict[str, Any]:
    """A request for a stream. `begun`: of the answer to a chat, to be continued. `limit`: what this server calls the
    most tokens of an answer. Raises `Unsupported`."""
    dialect.require(sampling)
    most = sampling.max_tokens if max_model_len is None else min(sampling.max_tokens, max_model_len - 1)
    body: dict[str, Any] = {"model": model, "stream": True, limit: most, "temperature": sampling.temperature}
    if prompt.messages is None:
        body["prompt"] = prompt.text if prompt.text is not None else list(prompt.token_ids or ())
    else:
        body["messages"] = [*map(dict, prompt.messages)]
        if begun:
            body["messages"].append({"role": "assistant", "content": begun})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    if sampling.top_p < 1.0:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if 0 < len(sampling.stop) <= MOST_STOPS:
        body["stop"] = list(sampling.stop)
    if "usage" in dialect.features:
        body["stream_options"] = {"include_usage": True}
        if dialect.software == "vllm":
            body["stream_options"]["continuous_usage_stats"] = True
    if "token_ids" in dialect.features:
        body["return_token_ids"] = True
    return body


@dataclass(slots=True)
class Answer:
    """What came of one request. The end is held back until the server has said what it used."""

    most_tokens: int
    prompt_tokens: int
    """Guessed until the server tells."""
    completion_tokens: int = 0
    finish: FinishReason | None = None
    usage_odd: bool = field(default=False)
    """Whether the server said of its use what can't be."""
    cached_tokens: int = 0
    _told: int | None = None
    _texts: int = 0

    def read(self, event: Mapping[str, Any]) -> Chunk | None:
        """The chunk of an event, None if nothing is in it for a reader. Raises `EngineError` for what breaks the
        protocol."""
        self._note_usage(event.get("usage"))
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise _bad("an event without choices", event)
        if not choices:
            return None
        choice = choices[0]
        if not isinstance(choice, dict):
            raise _bad("a choice that is no object", choice)
        delta = choice.get("delta")
        text = (delta.get("content") if isinstance(delta, dict) else choice.get("text")) or ""
        if not isinstance(text, str):
            raise _bad("text that is no string", text)
        text = _whole(text)
        ids = _token_ids(choice.get("token_ids"))
        self._count(event, text, ids)
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish = _finish(reason)
        if not text and not ids:
            return None
        return Chunk(
            text=text,
            token_ids=ids,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )

    def end(self, text: str = "", finish: FinishReason | None = None) -> Chunk:
        """The last chunk. `finish`: why it ends, if that was decided here. Raises `EngineError` if the stream broke
        off."""
        reason = finish or self.finish
        if reason is None:
            raise EngineError("the server's stream ends in the middle of the answer", code="connection_lost")
        if finish is None and self._told is not None:
            self.completion_tokens = self._told
        return Chunk(
            text=text,
            token_ids=(),
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )

    def _count(self, event: Mapping[str, Any], text: str, ids: tuple[int, ...]) -> None:
        """Tokens so far: as the server tells, else the ids that came, else one for each piece of text."""
        self._texts += bool(text)
        told = event.get("usage")
        running = told.get("completion_tokens") if isinstance(told, dict) else None
        if ids:
            self.completion_tokens += len(ids)
        elif self._plausible(running):
            self.completion_tokens = max(self.completion_tokens, running)
        elif text:
            self.completion_tokens += 1

    def _plausible(self, tokens: Any) -> TypeGuard[int]:
        least = 1 if self._texts else 0
        return isinstance(tokens, int) and not isinstance(tokens, bool) and least <= tokens <= self.most_tokens

    def _note_usage(self, usage: Any) -> None:
        if usage is None:
            return
        prompt = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        told = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not isinstance(prompt, int) or isinstance(prompt, bool) or not 0 < prompt < 2**31:
            self.usage_odd = True
            return
        self.prompt_tokens = prompt
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        if isinstance(cached, int) and 0 <= cached <= prompt:
            self.cached_tokens = cached
        if self._plausible(told):
            self._told = told
        elif self.finish is not None:
            self.usage_odd = True


def _finish(reason: Any) -> FinishReason:
    if reason in _REASONS:
        return _REASONS[reason]
    if reason == "content_filter":
        raise EngineError("the server's filter stopped the answer", code="filtered")
    if reason == "abort":
        raise EngineBusy("the server gave the request up")
    raise _bad("an end for a reason that nobody knows", reason)


def _token_ids(found: Any) -> tuple[int, ...]:
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, int) for one in found):
        raise _bad("token ids that are no numbers", found)
    return tuple(found)


def _whole(text: str) -> str:
    """Halves of a character, which JSON may hold and no message can, become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _bad(what: str, found: Any) -> EngineError:
    return EngineError(f"the server streams {what}: {repr(found)[:120]}", code="bad_answer")
