"""Calls of functions in a chat: the grammar that forces one, and the readers that find them in what the model says.

A call that is forced (`tool_choice` required, or a function named) is made by a grammar, so it is JSON whatever the
model's own syntax is. Calls of the model's own accord stand in its own syntax, which vLLM's parser of that name reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from uuid_utils import uuid7

from modelnet.engines.base import Grammar, Prompt
from modelnet.engines.errors import BadPrompt, EngineUnavailable
from modelnet.messages import ToolCallPart

__all__ = ["CallReader", "ToolSyntax", "forcing_grammar"]

Read = tuple[str, tuple[ToolCallPart, ...]]
"""Text that is for people, and calls or more of them."""


class CallReader(Protocol):
    """Reads one answer."""

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Read:
        """What is sure now that this has come."""


def forcing_grammar(prompt: Prompt) -> Grammar | None:
    """What makes a model call a function where it must. Raises `BadPrompt` for a function that is not there."""
    if not prompt.tools or prompt.tool_choice in ("auto", "none"):
        return None
    functions = {tool["function"]["name"]: tool["function"] for tool in prompt.tools}
    if isinstance(prompt.tool_choice, Mapping):
        name = prompt.tool_choice["function"]["name"]
        if name not in functions:
            raise BadPrompt(f"tool_choice names {name}, which is not among the tools")
        return Grammar(json_schema=_parameters(functions[name]))
    return Grammar(
        json_schema={
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"name": {"const": name}, "parameters": _parameters(function)},
                        "required": ["name", "parameters"],
                        "additionalProperties": False,
                    }
                    for name, function in functions.items()
                ]
            },
        }
    )


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any]:
    return function.get("parameters") or {"type": "object", "properties": {}}


def _call_id() -> str:
    return f"call_{uuid7().hex}"


class _Named:
    """The answer is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Read:
        if not text:
            return "", ()
        name, self._name = self._name, None
        return "", (ToolCallPart(position=0, id=_call_id() if name else None, name=name, arguments=text),)


class _Required:
    """The answer is a list of calls."""

    def __init__(self) -> None:
        self._text = ""

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Read:
        self._text += text
        if not last:
            return "", ()
        try:
            calls = [(call["name"], json.dumps(call["parameters"])) for call in json.loads(self._text)]
        except (ValueError, TypeError, KeyError):  # cut short
            return self._text, ()
        return "", tuple(
            ToolCallPart(position=n, id=_call_id(), name=name, arguments=arguments)
            for n, (name, arguments) in enumerate(calls)
        )


class _Parsed:
    """The answer is text with calls in the model's own syntax."""

    def __init__(self, make: Callable[[], Any], request: Any) -> None:
        self._make, self._request = make, request
        self._parser = make()
        self._text, self._ids, self._shown = "", list[int](), ""
        self._called = 0

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Read:
        before, before_ids = self._text, list(self._ids)
        self._text += text
        self._ids += token_ids
        shown, parts = "", list[ToolCallPart]()
        if text or token_ids:
            found = self._parser.extract_tool_calls_streaming(
                before, self._text, text, before_ids, self._ids, token_ids, self._request
            )
            if found is not None:
                shown = found.content or ""
                parts = [self._part(call) for call in found.tool_calls or ()]
        self._shown += shown
        self._called = max([self._called, *(part.position + 1 for part in parts)])
        if last:
            rest, more = self._end()
            shown, parts = shown + rest, [*parts, *more]
        return shown, tuple(parts)

    @staticmethod
    def _part(call: Any) -> ToolCallPart:
        function = call.function
        name = function.name if function is not None else None
        arguments = (function.arguments if function is not None else None) or ""
        return ToolCallPart(
            position=call.index, id=(call.id or _call_id()) if name else None, name=name, arguments=arguments
        )

    def _end(self) -> Read:
        """What the parser held back until more would come."""
        if self._called:
            rest = self._parser.get_remaining_unstreamed_args()
            return "", (ToolCallPart(position=self._called - 1, arguments=rest),) if rest else ()
        whole = self._make().extract_tool_calls(self._text, self._request)
        content = (whole.content if whole.tools_called else self._text) or ""
        text = content.removeprefix(self._shown) if content.startswith(self._shown) else ""
        return text, tuple(
            ToolCallPart(
                position=n, id=call.id or _call_id(), name=call.function.name, arguments=call.function.arguments
            )
            for n, call in enumerate(whole.tool_calls if whole.tools_called else ())
        )


class ToolSyntax:
    """How one model writes its calls: a parser of vLLM's, by its name there."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        """Raises `EngineUnavailable` if vLLM has no parser of this name."""
        from vllm.tool_parsers import ToolParserManager

        try:
            self._parser = ToolParserManager.get_tool_parser(name)
        except KeyError:
            known = ", ".join(ToolParserManager.list_registered())
            raise EngineUnavailable(f"vLLM has no tool parser {name}; it has {known}") from None
        self._tokenizer = tokenizer

    def reader(self, prompt: Prompt) -> tuple[Callable[[], CallReader], bool]:
        """What makes a reader for each answer to this prompt, and whether special tokens must stand in the text."""
        choice = prompt.tool_choice
        if isinstance(choice, Mapping):
            name = choice["function"]["name"]
            return lambda: _Named(name), False
        if choice == "required":
            return _Required, False
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        try:
            request = ChatCompletionRequest(
                messages=[], tools=[dict(tool) for tool in prompt.tools], tool_choice="auto", model=""
            )
            parser = self._parser(self._tokenizer, request.tools)
            request = parser.adjust_request(request)
        except (ValueError, TypeError) as error:
            raise BadPrompt(f"vLLM refused the tools: {error}") from error
        special = not request.skip_special_tokens
        return lambda: _Parsed(lambda: self._parser(self._tokenizer, request.tools), request), special
