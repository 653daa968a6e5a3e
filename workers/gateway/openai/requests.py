"""Requests of OpenAI's API: the fields that are understood. Others change nothing, as elsewhere with this API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.gateway.exchange import Terms
from workers.gateway.refusal import Refusal

__all__ = ["ChatRequest", "CompletionRequest", "EmbeddingRequest", "Message", "ResponsesRequest", "Sampling"]


_DRAWN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "seed",
    "n",
    "max_tokens",
)


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(_Said):
    """What a stream ends with."""

    include_usage: bool = False


class Sampling(_Said):
    """What chat and completions share: a model's name, how tokens are drawn, and the network's terms."""

    model: str = Field(default="auto", max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    max_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    structured_outputs: dict[str, Any] | None = None
    """Of vLLM: {json: schema}, {regex: …} or {choice: […]}."""
    modelnet: Terms | None = None

    def drawn(self) -> dict[str, Any]:
        """As `text.generate` takes it. Raises `Refusal` for what no contract has."""
        if self.logit_bias:
            raise unsupported("logit_bias")
        found = {name: value for name in _DRAWN if (value := getattr(self, name)) is not None and value != []}
        if found.get("n") == 1:
            del found["n"]
        if found.get("top_k") == -1:  # as vLLM says: all
            del found["top_k"]
        if self.structured_outputs:
            found["grammar"] = _grammar(self.structured_outputs)
        return found


class Function(_Said):
    """A function's call, or its name."""

    name: str
    arguments: str = ""


class ToolCall(_Said):
    """A call that an assistant has made."""

    id: str
    function: Function


class Message(_Said):
    """One of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """As `text.generate` takes it."""
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        if self.content is not None or not self.tool_calls:
            found["content"] = text_of(self.content)
        if self.name:
            found["name"] = self.name
        if self.tool_calls:
            found["tool_calls"] = [
                {"id": one.id, "type": "function", "function": one.function.model_dump()} for one in self.tool_calls
            ]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        return found


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    audio: dict[str, Any] | None = None

    def input(self) -> dict[str, Any]:
        """As `text.generate` takes it."""
        for name in ("functions", "audio"):
            if getattr(self, name):
                raise unsupported(name)
        found = self.drawn() | {"messages": [message.plain() for message in self.messages]}
        if self.max_completion_tokens is not None:
            found["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            found["logprobs"] = self.top_logprobs or 0
        if self.response_format and self.response_format.get("type") != "text":
            found["grammar"] = _format(self.response_format)
        if self.tools:
            found["tools"] = [{**tool, "function": _without_nulls(tool.get("function"))} for tool in self.tools]
            if self.tool_choice is not None:
                found["tool_choice"] = self.tool_choice
        return found


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def inputs(self) -> list[dict[str, Any]]:
        """As `text.generate` takes them, one for each prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not prompts or not all(isinstance(one, str) for one in prompts):
            raise unsupported("prompt", "a prompt is a text or several: token ids would belong to one model only")
        for name in ("echo", "suffix"):
            if getattr(self, name):
                raise unsupported(name)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of")
        found = self.drawn()
        if self.logprobs is not None:
            found["logprobs"] = self.logprobs
        return [found | {"prompt": prompt} for prompt in prompts]


class EmbeddingRequest(_Said):
    """POST /v1/embeddings."""

    model: str = Field(default="auto", max_length=256)
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    modelnet: Terms | None = None

    def texts(self) -> list[str]:
        """The texts."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        found = [text for text in texts if isinstance(text, str)]
        if not texts or len(found) != len(texts):
            raise unsupported("input", "the input is a text or several: token ids would belong to one model only")
        return found


class ResponsesRequest(_Said):
    """POST /v1/responses."""

    model: str = Field(default="auto", max_length=256)
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    metadata: dict[str, str] | None = None
    modelnet: Terms | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens' probabilities are to be told."""
        return "message.output_text.logprobs" in (self.include or ())

    def to_input(self) -> dict[str, Any]:
        """As `text.generate` takes it."""
        for name in ("previous_response_id", "conversation", "background", "prompt"):
            if getattr(self, name):
                raise unsupported(name, "nothing is kept here: send the whole conversation as `input`")
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        messages += _conversation(self.input)
        found: dict[str, Any] = {"messages": messages}
        for name, ours in (("max_output_tokens", "max_tokens"), ("temperature", "temperature"), ("top_p", "top_p")):
            if getattr(self, name) is not None:
                found[ours] = getattr(self, name)
        if self.wants_logprobs:
            found["logprobs"] = self.top_logprobs or 0
        form = (self.text or {}).get("format")
        if isinstance(form, dict) and form.get("type") != "text":
            found["grammar"] = _format({"type": form.get("type"), "json_schema": form})
        if self.tools:
            found["tools"] = [_tool(tool) for tool in self.tools]
            choice = self.tool_choice
            if isinstance(choice, dict) and choice.get("type") == "function":
                choice = {"type": "function", "function": {"name": choice.get("name")}}
            if choice is not None:
                found["tool_choice"] = choice
        return found


def unsupported(name: str, why: str = "no contract of this network has it") -> Refusal:
    """The error for what a client wants and cannot have."""
    return Refusal(400, "unsupported_parameter", f"{name}: {why}", param=name)


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """A content's text. Raises `Refusal` for pictures and sounds."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(
            text := part.get("text", part.get("refusal")), str
        ):
            raise unsupported("content", f"a part of type {kind!r} is no text")
        texts.append(text)
    return "".join(texts)


def _format(said: dict[str, Any]) -> dict[str, Any]:
    match said.get("type"):
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            schema = (said.get("json_schema") or {}).get("schema")
            if isinstance(schema, dict):
                return {"json_schema": schema}
            raise Refusal(
                400, "invalid_value", "response_format.json_schema.schema is missing", param="response_format"
            )
    raise unsupported("response_format", f"type {said.get('type')!r} is not known")


def _grammar(said: dict[str, Any]) -> dict[str, Any]:
    names = {"json": "json_schema", "json_object": "json_object", "regex": "regex", "choice": "choice"}
    found = {names[name]: value for name, value in said.items() if value is not None and name in names}
    if len(found) != 1:
        raise unsupported("structured_outputs", f"one of {', '.join(names)}")
    return found


def _tool(said: dict[str, Any]) -> dict[str, Any]:
    """A function, which the responses API says without the object around it."""
    if said.get("type") != "function":
        raise unsupported("tools", f"type {said.get('type')!r}: only functions can be called")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: said[name] for name in names if said.get(name) is not None}}


def _without_nulls(said: Any) -> Any:
    return {name: value for name, value in said.items() if value is not None} if isinstance(said, dict) else said


def _conversation(said: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    found: list[dict[str, Any]] = []
    for item in said:
        match item.get("type", "message"):
            case "message":
                role = item.get("role")
                if role not in ("system", "developer", "user", "assistant"):
                    raise Refusal(400, "invalid_value", f"input: no role {role!r}", param="input")
                content = item.get("content")
                if content is not None and not isinstance(content, str | list):
                    raise Refusal(400, "invalid_value", "input: content is a text or a list of parts", param="input")
                found.append({"role": "system" if role == "developer" else role, "content": text_of(content)})
            case "function_call":
                call = {"name": item.get("name"), "arguments": item.get("arguments")}
                entry = {"id": item.get("call_id"), "type": "function", "function": call}
                if found and found[-1]["role"] == "assistant":
                    found[-1].setdefault("tool_calls", []).append(entry)
                else:
                    found.append({"role": "assistant", "content": None, "tool_calls": [entry]})
            case "function_call_output":
                output = item.get("output")
                text = text_of(output) if isinstance(output, str | list) else ""
                found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
            case "reasoning":
                continue  # of another turn, and only its model's own
            case kind:
                raise unsupported("input", f"items of type {kind!r} are not known")
    return found
