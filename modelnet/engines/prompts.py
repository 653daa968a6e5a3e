"""What every engine checks about a prompt, whatever tokenizer it has."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelnet.engines.errors import BadPrompt, PromptTooLong

__all__ = ["checked_token_ids", "plain_messages"]


def plain_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chat in the form templates expect: content as one string. Raises `BadPrompt`."""
    plain = []
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadPrompt(f"message {n} needs a role")
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(_text_part(n, part) for part in content)
        if content is not None and not isinstance(content, str):
            raise BadPrompt(f"the content of message {n} must be text, not {type(content).__name__}")
        calls = [_with_arguments(n, call) for call in message.get("tool_calls") or ()]
        plain.append({**message, "content": content, **({"tool_calls": calls} if calls else {})})
    if not plain:
        raise BadPrompt("a chat needs at least one message")
    return plain


def _with_arguments(n: int, call: Any) -> dict[str, Any]:
    """A call as templates expect it: its arguments as an object, where OpenAI's form has them as text."""
    try:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        if not isinstance(arguments, dict):
            raise ValueError("they are no object")
    except (ValueError, TypeError, KeyError) as error:
        raise BadPrompt(f"message {n} has a tool call without good arguments: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _text_part(n: int, part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise BadPrompt(f"message {n} has a part of kind {kind!r}; this engine takes text only")


def checked_token_ids(token_ids: Iterable[int], *, max_model_len: int, vocab_size: int) -> list[int]:
    """The prompt, if it can be run. Raises `BadPrompt`, `PromptTooLong`."""
    ids = list(token_ids)
    if not ids:
        raise BadPrompt("the prompt has no tokens")
    if len(ids) >= max_model_len:
        raise PromptTooLong(
            f"the prompt has {len(ids)} tokens; with one token of answer at least, the model takes {max_model_len - 1}"
        )
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise BadPrompt(f"token ids must be from 0 to {vocab_size - 1}")
    return ids
