"""Requests in OpenAI's protocol, and what different servers understand of it. Pure: `modelnet.engines.endpoint` carries
them, `modelnet.engines.openai_answers` reads what comes back.

What a server does not understand it mostly passes over in silence, so nothing is sent that it is not known to take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelnet.engines.base import Ability, Grammar, Prompt, Sampling
from modelnet.engines.endpoint import Route, Software

__all__ = ["MOST_STOPS", "abilities_of", "request_body"]

MOST_STOPS = 4
"""Stop strings that a server takes in one request; more are looked for here."""

_BEYOND: Mapping[Software, frozenset[Ability]] = {
    "vllm": frozenset({"top_k", "seed", "tokens", "choices", "logprobs", "penalties", "json", "grammar", "tools"}),
    "llama.cpp": frozenset({"top_k", "seed", "json", "tools"}),
    "ollama": frozenset({"seed", "json", "tools"}),
    "other": frozenset({"seed", "choices", "json", "tools", "logprobs"}),
}
"""What servers that generate do beyond answering."""
_ROUTES: Mapping[Route, Ability] = {
    "completions": "prompt",
    "chat": "chat",
    "embeddings": "embed",
    "rerank": "score",
}


def abilities_of(software: Software, routes: frozenset[Route]) -> frozenset[Ability]:
    """What a server can do by its kind and the routes that it has."""
    can: set[Ability] = set()
    if routes & {"completions", "chat"}:
        can |= {"generate", *_BEYOND[software]}
        if "chat" not in routes:
            can -= {"tools"} if software == "vllm" else {"tools", "json"}
    can |= {ability for route, ability in _ROUTES.items() if route in routes}
    return frozenset(can)


def request_body(
    model: str,
    prompt: Prompt,
    sampling: Sampling,
    software: Software,
    *,
    max_model_len: int | None,
    usage: bool = True,
    limit: str = "max_tokens",
) -> dict[str, Any]:
    """A request for a stream of what `abilities_of` the server has. `max_model_len`: None if unknown. `usage`: whether
    it is asked what it used. `limit`: what it calls the most tokens of an answer."""
    most = sampling.max_tokens if max_model_len is None else min(sampling.max_tokens, max_model_len - 1)
    body: dict[str, Any] = {"model": model, "stream": True, limit: most, "temperature": sampling.temperature}
    if prompt.messages is None:
        body["prompt"] = prompt.text if prompt.text is not None else list(prompt.token_ids or ())
    else:
        body["messages"] = [*map(dict, prompt.messages)]
    if prompt.tools:
        body |= {"tools": [*map(dict, prompt.tools)], "tool_choice": prompt.tool_choice}
    given = {
        "n": (sampling.n, 1),
        "top_p": (sampling.top_p, 1.0),
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "seed": (sampling.seed, None),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
    }
    body |= {name: value for name, (value, default) in given.items() if value != default}
    if 0 < len(sampling.stop) <= MOST_STOPS:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        chat = prompt.messages is not None
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs} if chat else {"logprobs": sampling.logprobs}
    if sampling.grammar is not None:
        body |= _form(sampling.grammar, software)
    if usage:
        body["stream_options"] = {"include_usage": True}
        if software == "vllm":
            body["stream_options"]["continuous_usage_stats"] = True
    if software == "vllm":
        body["return_token_ids"] = True
        if prompt.cache_salt is not None:
            body["cache_salt"] = prompt.cache_salt
    return body


def _form(grammar: Grammar, software: Software) -> dict[str, Any]:
    """The form that an answer must have, as this server is told of it."""
    if software == "vllm":
        forms = {
            "json": grammar.json_schema,
            "json_object": grammar.json_object or None,
            "regex": grammar.regex,
            "choice": list(grammar.choice) or None,
        }
        return {"structured_outputs": {name: form for name, form in forms.items() if form is not None}}
    if grammar.json_schema is None:
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": dict(grammar.json_schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
