"""Parts that the answers of chat and completions share, as OpenAI's API has them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelnet.messages import Final, TokenLogprob, ToolCallPart

__all__ = ["called", "calling", "chat_logprobs", "extension", "marks_of", "now", "text_logprobs", "usage_of"]


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())


def usage_of(finals: Iterable[Final]) -> dict[str, Any]:
    """Tokens taken and made."""
    usages = [final.usage for final in finals if final.usage is not None]
    taken, made = sum(one.prompt_tokens for one in usages), sum(one.completion_tokens for one in usages)
    return {"prompt_tokens": taken, "completion_tokens": made, "total_tokens": taken + made}


def extension(final: Final) -> dict[str, Any]:
    """`modelnet` in the last chunk of a stream: what stands in the headers of an answer that is no stream."""
    return {"task": final.task, "worker": final.worker, "price": final.price, "attempts": final.attempts}


def called(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whole calls of functions."""
    return [
        {
            "id": one["id"],
            "type": "function",
            "function": {"name": one["name"], "arguments": one["arguments"]},
        }
        for one in calls
    ]


def calling(parts: Sequence[ToolCallPart]) -> list[dict[str, Any]]:
    """Parts of calls, in a stream."""
    found = []
    for part in parts:
        function: dict[str, Any] = {"arguments": part.arguments}
        said: dict[str, Any] = {"index": part.position, "function": function}
        if part.name is not None:
            function["name"] = part.name
        if part.id is not None:
            said |= {"id": part.id, "type": "function"}
        found.append(said)
    return found


def marks_of(choice: Mapping[str, Any]) -> list[TokenLogprob] | None:
    """The log probabilities of an answer's tokens, if it has them."""
    marks = choice.get("logprobs")
    return None if marks is None else [TokenLogprob(**one) for one in marks]


def chat_logprobs(marks: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """As chat has them."""
    if marks is None:
        return None

    def one(token: str, logprob: float, octets: Sequence[int] | None) -> dict[str, Any]:
        octets = list(token.encode() if octets is None else octets)
        return {"token": token, "logprob": logprob, "bytes": octets}

    return {
        "content": [
            one(mark.token, mark.logprob, mark.bytes)
            | {"top_logprobs": [one(other.token, other.logprob, other.bytes) for other in mark.top]}
            for mark in marks
        ],
        "refusal": None,
    }


def text_logprobs(marks: Sequence[TokenLogprob] | None, offset: int = 0) -> dict[str, Any] | None:
    """As completions have them; `offset`: how much of the text stands before the first."""
    if marks is None:
        return None
    offsets = []
    for mark in marks:
        offsets.append(offset)
        offset += len(mark.token)
    return {
        "tokens": [mark.token for mark in marks],
        "token_logprobs": [mark.logprob for mark in marks],
        "top_logprobs": [{other.token: other.logprob for other in mark.top} for mark in marks],
        "text_offset": offsets,
    }
