"""What is sent in OpenAI's protocol, and what is read from it, for all that a request may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.engines import EngineError, Grammar, Prompt, Sampling
from modelnet.engines.base import Chunk
from modelnet.engines.openai_answers import Reader, read_embeddings, read_scores
from modelnet.engines.openai_requests import abilities_of, request_body
from modelnet.messages import ToolCallPart

TEXT = Prompt(text="a")
CHAT = Prompt(messages=({"role": "user", "content": "a"},))
SCHEMA = {"type": "object"}


def text_event(index: int, text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "finish_reason": reason, **more}]}


def delta_event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]}


def read(reader: Reader, *events: dict[str, Any]) -> list[Chunk]:
    return [chunk for event in events for chunk in reader.read(event)] + reader.end()


@pytest.mark.parametrize(
    ("grammar", "vllm", "other"),
    [
        (
            Grammar(json_schema=SCHEMA),
            {"structured_outputs": {"json": SCHEMA}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        (
            Grammar(json_object=True),
            {"structured_outputs": {"json_object": True}},
            {"response_format": {"type": "json_object"}},
        ),
        (Grammar(regex="a+"), {"structured_outputs": {"regex": "a+"}}, None),
        (Grammar(choice=("a", "b")), {"structured_outputs": {"choice": ["a", "b"]}}, None),
    ],
)
def test_the_form_of_an_answer_is_told_as_the_server_wants_it(
    grammar: Grammar, vllm: dict[str, Any], other: dict[str, Any] | None
) -> None:
    sampling = Sampling(grammar=grammar)
    assert vllm.items() <= request_body("m", CHAT, sampling, "vllm", max_model_len=None).items()
    can = abilities_of("other", frozenset({"chat"}))
    assert (("json" if grammar.is_json else "grammar") in can) == (other is not None)
    if other is not None:
        assert other.items() <= request_body("m", CHAT, sampling, "other", max_model_len=None).items()


def test_all_that_was_given_is_sent_and_nothing_else() -> None:
    plain = request_body("m", TEXT, Sampling(), "other", max_model_len=None)
    assert plain.keys() == {"model", "prompt", "stream", "max_tokens", "temperature", "stream_options"}
    tool = {"type": "function", "function": {"name": "f"}}
    prompt = Prompt(messages=CHAT.messages, tools=(tool,), tool_choice="required", cache_salt="acme")
    sampling = Sampling(n=2, logprobs=3, min_p=0.1, presence_penalty=1, repetition_penalty=1.1, max_tokens=9000)
    body = request_body("m", prompt, sampling, "vllm", max_model_len=512)
    assert {
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "min_p": 0.1,
        "presence_penalty": 1,
        "repetition_penalty": 1.1,
        "max_tokens": 511,
        "tools": [tool],
        "tool_choice": "required",
        "cache_salt": "acme",
        "return_token_ids": True,
    }.items() <= body.items()
    assert request_body("m", TEXT, sampling, "vllm", max_model_len=None)["logprobs"] == 3


def test_what_servers_can_do() -> None:
    everything = abilities_of("vllm", frozenset({"completions", "chat", "embeddings", "rerank"}))
    assert {"prompt", "chat", "embed", "score", "tokens", "grammar", "tools"} <= everything
    assert abilities_of("vllm", frozenset({"embeddings"})) == {"embed"}
    assert "tools" not in abilities_of("other", frozenset({"completions"}))
    assert "json" not in abilities_of("llama.cpp", frozenset({"completions"}))


def test_several_answers_side_by_side() -> None:
    reader = Reader(Sampling(n=2, max_tokens=8), 1)
    chunks = read(
        reader,
        text_event(0, "a"),
        text_event(1, "x"),
        text_event(0, "b", "stop"),
        text_event(1, "y"),
        text_event(1, "z", "length"),
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 6}},
    )
    assert [(c.index, c.text, c.finish_reason) for c in chunks] == [
        (0, "a", None),
        (1, "x", None),
        (1, "y", None),
        (0, "b", "stop"),
        (1, "z", "length"),
    ]
    assert (chunks[-1].prompt_tokens, chunks[-1].completion_tokens) == (7, 6)


def test_stop_strings_are_looked_for_in_each_answer() -> None:
    reader = Reader(Sampling(n=2, max_tokens=8), 1, stop=("!?",))
    chunks = []
    for event in (
        text_event(0, "a!"),
        text_event(1, "b!"),
        text_event(0, "?c"),
        text_event(1, "d"),
        text_event(1, "!?"),
    ):
        chunks += reader.read(event)
    assert reader.over
    texts = {n: "".join(c.text for c in chunks if c.index == n) for n in (0, 1)}
    assert texts == {0: "a", 1: "b!d"}
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop", "stop"]


def test_calls_of_functions_come_in_parts() -> None:
    def call(**function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, "id": "c1" if "name" in function else None, "function": function}]}

    chunks = read(
        Reader(Sampling(), 1),
        delta_event({"role": "assistant", "content": ""}),
        delta_event(call(name="f", arguments="")),
        delta_event(call(arguments='{"a":')),
        delta_event(call(arguments=" 1}")),
        delta_event({}, "stop"),  # as servers say where the function was asked for by name
    )
    parts = [part for chunk in chunks for part in chunk.tool_calls]
    assert parts[0] == ToolCallPart(position=0, id="c1", name="f")
    assert "".join(part.arguments for part in parts) == '{"a": 1}'
    assert chunks[-1].finish_reason == "tool_calls"
    assert chunks[-1].completion_tokens == 3


def test_log_probabilities_in_both_forms() -> None:
    legacy = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -2.0, "a": -0.5, "c": -3.0}]}
    chunks = read(Reader(Sampling(logprobs=2), 1), text_event(0, "a", "stop", logprobs=legacy))
    (one,) = chunks[-1].logprobs or ()
    assert (one.token, one.logprob, [(t.token, t.logprob) for t in one.top]) == ("a", -0.5, [("a", -0.5), ("b", -2.0)])
    top = [{"token": "\ufffd", "logprob": -0.1, "bytes": [200]}, {"token": "a", "logprob": -9999.0, "bytes": [97]}]
    content = {"content": [{**top[0], "top_logprobs": top}]}
    chunks = read(Reader(Sampling(logprobs=2), 1), delta_event({"content": "x"}, "stop", logprobs=content))
    (one,) = chunks[-1].logprobs or ()
    assert one.bytes == (200,)
    assert [t.bytes for t in one.top] == [(200,), None]


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"index": 5, "text": "a"}]},
        {"choices": [{"index": True, "text": "a", "token_ids": ["a"]}]},
        delta_event({"tool_calls": [{"function": 7}]}),
        delta_event({"tool_calls": 7}),
        text_event(0, "a", logprobs={"tokens": ["a"]}),
        text_event(0, "a", logprobs={"tokens": ["a"], "token_logprobs": [float("nan")]}),
        text_event(0, "a", "content_filter"),
        text_event(0, "a", "abort"),
    ],
)
def test_what_breaks_the_protocol_is_an_error(event: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        read(Reader(Sampling(logprobs=1), 1), event)


def test_vectors_and_scores_are_put_in_order() -> None:
    rows = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1, 2]}]
    found = read_embeddings({"data": rows, "usage": {"prompt_tokens": 9}}, 2)
    assert (found.vectors, found.prompt_tokens) == (((1.0, 2.0), (3.0, 4.5)), 9)
    results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
    assert read_scores({"results": results}, 2).scores == (0.1, 0.9)
    vectors: list[dict[str, Any]] = [
        {},
        {"data": rows[:1]},
        {"data": [{"index": 0, "embedding": ["a"]}, rows[0]]},
        {"data": [7]},
    ]
    for body in vectors:
        with pytest.raises(EngineError):
            read_embeddings(body, 2)
    scores: list[dict[str, Any]] = [{"results": results[:1]}, {"results": [{"index": 9, "relevance_score": 1}]}]
    for body in scores:
        with pytest.raises(EngineError):
            read_scores(body, 2)
