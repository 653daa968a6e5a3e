"""What an A2A message asks for: the skill, its input, and the id of the task that it becomes. Pure.

A message sent again is the same task: the id follows from what it says. And it names the context, so that nobody has to
remember which task is of which.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from a2a.types.a2a_pb2 import Message, SendMessageRequest
from a2a.utils.errors import ContentTypeNotSupportedError, InvalidParamsError

from modelnet.agents.a2a_view import from_value
from modelnet.messages import Contract

__all__ = ["DEFAULT_SKILL", "OPTIONS", "Asked", "asked", "context_of", "task_id"]

DEFAULT_SKILL = "text.generate"
"""What text is for that names no skill."""

OPTIONS = ("budget", "deadline_s", "priority", "value", "min_quality", "strategy", "require", "exclude")
"""What the metadata of a message or a request may say of the task."""

_TAIL = 22
"""Characters of a task's id behind the context: 128 bits."""
_CONTEXT = re.compile(r"[A-Za-z0-9_-]{1,41}")
_TEXT_MODES = ("text/plain", "text/*", "application/json", "application/*", "*/*")


@dataclass(frozen=True, slots=True)
class Asked:
    """A task that a message asks for."""

    id: str
    context: str
    capability: str
    input: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


def asked(request: SendMessageRequest, tenant: str, contract_of: Callable[[str], Contract | None]) -> Asked:
    """Read a request. Raises `InvalidParamsError` and `ContentTypeNotSupportedError`."""
    message = request.message
    metadata = {**from_value(request.metadata), **from_value(message.metadata)}
    skill = metadata.get("skill", DEFAULT_SKILL)
    contract = contract_of(skill) if isinstance(skill, str) else None
    if contract is None:
        missing = "" if "skill" in metadata else " (name one in the metadata as `skill`)"
        raise InvalidParamsError(f"no agent on this network has the skill {str(skill)[:200]!r} now{missing}")
    modes = list(request.configuration.accepted_output_modes)
    if modes and not any(mode.split(";")[0].strip().lower() in _TEXT_MODES for mode in modes):
        raise ContentTypeNotSupportedError(f"answers are text/plain and application/json, not {', '.join(modes)[:200]}")
    if message.context_id and not _CONTEXT.fullmatch(message.context_id):
        raise InvalidParamsError("a contextId is 1 to 41 letters, digits, - and _")
    options = {key: metadata[key] for key in OPTIONS if key in metadata}
    context, id = task_id(request, tenant)
    return Asked(id, context, skill, _input(message, contract), options)


def task_id(request: SendMessageRequest, tenant: str) -> tuple[str, str]:
    """Context and id of the task that a message becomes."""
    said = request.message.SerializeToString(deterministic=True) + request.metadata.SerializeToString(
        deterministic=True
    )
    digest = hashlib.blake2b(said, digest_size=16, key=tenant.encode(), person=b"modelnet.a2a").digest()
    context = request.message.context_id or hashlib.blake2b(digest, digest_size=16).hexdigest()
    return context, f"{context}_{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def context_of(task: str) -> str:
    """The context of a task by its id. One that did not come through A2A is a context of its own."""
    context, mark = task[: -_TAIL - 1], task[-_TAIL - 1 : -_TAIL]
    return context if mark == "_" and _CONTEXT.fullmatch(context) else task


def _input(message: Message, contract: Contract) -> dict[str, Any]:
    """A data part is the input; text is its text."""
    data, texts = list[Any](), list[str]()
    for part in message.parts:
        match part.WhichOneof("content"):
            case "text":
                texts.append(part.text)
            case "data":
                data.append(from_value(part.data))
            case other:
                raise ContentTypeNotSupportedError(f"a message is text and data parts, not {other or 'empty ones'}")
    if len(data) > 1 or (data and not isinstance(data[0], dict)):
        raise InvalidParamsError("a message has one data part at most, an object: the input of the skill")
    input: dict[str, Any] = data[0] if data else {}
    if texts:
        name = _text_property(contract.input)
        if name is None:
            raise ContentTypeNotSupportedError(f"the skill {contract.capability} takes a data part, not text")
        if name in input:
            raise InvalidParamsError(f"both the text and the data say what {name!r} is")
        input = {**input, name: "\n".join(texts)}
    return input


def _text_property(schema: Mapping[str, Any]) -> str | None:
    """The property of an input that text is meant for: `prompt`, `text`, or the only required string."""
    properties = schema.get("properties", {})
    for name in ("prompt", "text"):
        if name in properties:
            return name
    required = [n for n in schema.get("required", ()) if properties.get(n, {}).get("type") == "string"]
    return required[0] if len(required) == 1 else None
