"""Answers in OpenAI's protocol, read event by event into chunks. Nothing in them is believed that can't be. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from modelnet.engines.base import Chunk, Embeddings, FinishReason, Sampling, Scores
from modelnet.engines.continuation import StopFilter
from modelnet.engines.errors import EngineBusy, EngineError
from modelnet.messages import TokenAlternative, TokenLogprob, ToolCallPart

__all__ = ["Reader", "read_embeddings", "read_scores"]

_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "repetition": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


@dataclass(slots=True)
class _Answer:
    """One of the answers to a request."""

    stops: StopFilter
    tokens: int = 0
    """Drawn, as far as can be told."""
    pieces: int = 0
    """Of text or calls that came."""
    called: bool = False
    ids_told: bool = True
    """Whether the ids of all its tokens came."""
    finish: FinishReason | None = None
    held: Chunk | None = None
    """What came with its end: told with it, so that nobody goes on behind an end-of-text token."""
    over: bool = False
    """Whether its last chunk was given out."""


class Reader:
    """What came of one request, `n` answers side by side. The last of all ends is held back until the server has said
    what it used."""

    def __init__(self, sampling: Sampling, prompt_tokens: int, *, stop: tuple[str, ...] = ()) -> None:
        """`prompt_tokens`: a guess, until the server tells. `stop`: strings that the server does not look for."""
        self._sampling = sampling
        self._answers = [_Answer(StopFilter(stop)) for _ in range(sampling.n)]
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.usage_odd = False
        """Whether the server said of its use what can't be."""
        self._told: int | None = None

    @property
    def completion_tokens(self) -> int:
        """Drawn so far for all answers."""
        return sum(one.tokens for one in self._answers)

    @property
    def over(self) -> bool:
        """Whether all answers have come to an end that was decided here."""
        return all(one.over for one in self._answers)

    def read(self, event: Mapping[str, Any]) -> list[Chunk]:
        """The chunks of an event. Raises `EngineError` for what breaks the protocol."""
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise _bad("an event without choices", event)
        chunks = [chunk for choice in choices if (chunk := self._choice(choice, event)) is not None]
        self._note_usage(event.get("usage"))
        return chunks

    def end(self) -> list[Chunk]:
        """The last chunks. Raises `EngineError` if the stream broke off."""
        open_ones = [(n, one) for n, one in enumerate(self._answers) if not one.over]
        if any(one.finish is None for _, one in open_ones):
            raise EngineError("the server's stream ends in the middle of the answer", code="connection_lost")
        if self._told is not None and not any(one.over for one in self._answers):
            # Its own count is exact; what was counted here need not be.
            rest = self._told - self.completion_tokens
            self._answers[-1].tokens += rest
        return [self._last(n, one) for n, one in open_ones]

    def _last(self, index: int, answer: _Answer) -> Chunk:
        answer.over = True
        held = answer.held or self._chunk(index, "", () if answer.ids_told else None)
        return replace(
            held,
            text=held.text + answer.stops.end(),
            finish_reason=answer.finish,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )

    def _chunk(self, index: int, text: str, ids: tuple[int, ...] | None) -> Chunk:
        return Chunk(
            text=text,
            token_ids=ids,
            index=index,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )

    def _choice(self, choice: Any, event: Mapping[str, Any]) -> Chunk | None:
        index = choice.get("index", 0) if isinstance(choice, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(self._answers):
            raise _bad("a choice that is none of those asked for", choice)
        answer = self._answers[index]
        if answer.over:
            return None
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict):
            raise _bad("a delta that is no object", delta)
        text = delta.get("content") or choice.get("text") or ""
        if not isinstance(text, str):
            raise _bad("text that is no string", text)
        ids = _token_ids(choice.get("token_ids"))
        calls = _tool_calls(delta.get("tool_calls"))
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        self._count(answer, event, ids, something=bool(text or calls or thought))
        answer.called |= bool(calls)
        if (reason := choice.get("finish_reason")) is not None:
            answer.finish = _finish(reason, called=answer.called)
        if not (text or ids or calls):
            return None
        answer.ids_told &= ids is not None
        shown, stopped = answer.stops.push(_whole(text))
        logprobs = None
        if self._sampling.logprobs is not None:
            logprobs = _logprobs(choice.get("logprobs"), self._sampling.logprobs)
        chunk = replace(self._chunk(index, shown, ids), logprobs=logprobs, tool_calls=calls)
        if answer.finish is None and not stopped:
            return chunk
        answer.held = chunk
        if not stopped:
            return None
        answer.finish = "stop"
        return self._last(index, answer)

    def _count(
        self, answer: _Answer, event: Mapping[str, Any], ids: tuple[int, ...] | None, *, something: bool
    ) -> None:
        """Tokens so far: by the ids that came, else as the server tells, else one for each piece."""
        answer.pieces += something
        usage = event.get("usage")
        told = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if ids is not None:
            answer.tokens += len(ids)
        elif len(self._answers) == 1 and self._plausible(told):
            answer.tokens = max(answer.tokens, told)
        else:
            answer.tokens += something
        prompt = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if _is_count(prompt) and prompt > 0:
            self.prompt_tokens = prompt

    def _plausible(self, tokens: Any) -> TypeGuard[int]:
        least = sum(one.pieces > 0 for one in self._answers)
        return _is_count(tokens) and least <= tokens <= self._sampling.max_tokens * len(self._answers)

    def _note_usage(self, usage: Any) -> None:
        """What it says it used; the last word counts, which comes behind all ends."""
        if usage is None or not all(one.finish or one.over for one in self._answers):
            return
        found = usage if isinstance(usage, dict) else {}
        prompt, told, details = (
            found.get(name) for name in ("prompt_tokens", "completion_tokens", "prompt_tokens_details")
        )
        if not _is_count(prompt) or prompt == 0 or not self._plausible(told):
            self.usage_odd = True
            return
        self.prompt_tokens, self._told = prompt, told
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        if _is_count(cached):
            self.cached_tokens = min(cached, prompt)


def read_embeddings(body: Mapping[str, Any], count: int) -> Embeddings:
    """The vectors of an answer, in the order of the `count` texts. Raises `EngineError`."""
    vectors: list[tuple[float, ...] | None] = [None] * count
    for one in _rows(body, "data"):
        index, vector = one.get("index"), one.get("embedding")
        if not _is_count(index) or index >= count or not isinstance(vector, list) or not vector:
            raise _bad("a vector that is none", one)
        vectors[index] = tuple(map(_number, vector))
    if any(vector is None for vector in vectors):
        raise _bad(f"fewer than {count} vectors", None)
    return Embeddings(vectors=tuple(vector for vector in vectors if vector), prompt_tokens=_prompt_tokens(body))


def read_scores(body: Mapping[str, Any], count: int) -> Scores:
    """The scores of an answer, in the order of the `count` documents. Raises `EngineError`."""
    scores: list[float | None] = [None] * count
    for one in _rows(body, "results"):
        index = one.get("index")
        if not _is_count(index) or index >= count:
            raise _bad("a score of no document", one)
        scores[index] = _number(one.get("relevance_score"))
    if any(score is None for score in scores):
        raise _bad(f"fewer than {count} scores", None)
    return Scores(scores=tuple(score for score in scores if score is not None), prompt_tokens=_prompt_tokens(body))


def _rows(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = body.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _bad(f"no {name}", body)
    return rows


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    usage = body.get("usage")
    told = usage.get("prompt_tokens", usage.get("total_tokens")) if isinstance(usage, dict) else None
    return told if _is_count(told) else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _bad("what is no number", value)
    return float(value)


def _finish(reason: Any, *, called: bool) -> FinishReason:
    found = _REASONS.get(reason) if isinstance(reason, str) else None
    if found is not None:  # a call that was asked for by name ends with stop
        return "tool_calls" if called and found == "stop" else found
    if reason == "content_filter":
        raise EngineError("the server's filter stopped the answer", code="filtered")
    if reason == "abort":
        raise EngineBusy("the server gave the request up")
    raise _bad("an end for a reason that nobody knows", reason)


def _token_ids(found: Any) -> tuple[int, ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(_is_count(one) for one in found):
        raise _bad("token ids that are none", found)
    return tuple(found)


def _tool_calls(found: Any) -> tuple[ToolCallPart, ...]:
    if not found:
        return ()
    try:
        return tuple(
            ToolCallPart(
                position=part.get("index", 0),
                id=part.get("id") or None,
                name=part["function"].get("name") or None,
                arguments=_whole(part["function"].get("arguments") or ""),
            )
            for part in found
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _bad("a call that is none", found) from None


def _logprobs(found: Any, count: int) -> tuple[TokenLogprob, ...]:
    """Either of the two forms: of a chat, and of a plain prompt."""
    if found is None:
        return ()
    try:
        if (content := found.get("content")) is not None:
            return tuple(
                TokenLogprob(
                    **_alternative(one), top=tuple(TokenAlternative(**_alternative(t)) for t in one["top_logprobs"])
                )
                for one in content
            )
        tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
        return tuple(
            TokenLogprob(
                token=_whole(token),
                logprob=min(_number(logprob), 0.0),
                top=tuple(
                    TokenAlternative(token=_whole(t), logprob=min(_number(p), 0.0))
                    for t, p in sorted((top or {}).items(), key=lambda one: -one[1])[:count]
                ),
            )
            for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _bad("log probabilities that are none", found) from None


def _alternative(one: Mapping[str, Any]) -> dict[str, Any]:
    token, raw = one["token"], one.get("bytes")
    part = raw if raw and bytes(raw) != token.encode(errors="replace") else None
    return {"token": _whole(token), "logprob": min(_number(one["logprob"]), 0.0), "bytes": part}


def _whole(text: str) -> str:
    """Halves of a character, which JSON may hold and no message can, become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _bad(what: str, found: Any) -> EngineError:
    return EngineError(f"the server answers with {what}: {repr(found)[:120]}", code="bad_answer")
