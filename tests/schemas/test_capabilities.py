"""The standard contracts, each with inputs and outputs that keep it and such that break it."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.contracts import check, compile_schema, features_of, standard_contract
from modelnet.schemas import FOLDER

GENERATE = {"prompt": "Once"}
CHAT: dict[str, list[Any]] = {"messages": [{"role": "user", "content": "Hello"}]}

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLED: dict[str, Any] = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
}
ANSWERED = {"role": "tool", "tool_call_id": "1", "content": "wet"}
ANSWER: dict[str, Any] = {"text": "a", "finish_reason": "stop"}

GOOD_INPUTS: list[tuple[str, dict[str, Any]]] = [
    ("normalize.date.de", {"text": "dritter März zweitausendeinundzwanzig"}),
    ("normalize.number.fr", {"text": "x" * 2000}),
    ("math.sum", {"values": ["1"]}),
    ("math.sum", {"values": ["-0.10", "+7", "123456789012345678901234567890.5"]}),
    ("math.multiply", {"values": ["2"] * 1000}),
    ("text.upper", {"text": ""}),
    ("text.generate", GENERATE),
    ("text.generate", CHAT),
    ("text.generate", {"messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": "a"}]}),
    ("text.generate", {**GENERATE, "max_tokens": 32768, "temperature": 0, "top_p": 1, "top_k": 0, "seed": 0}),
    ("text.generate", {**CHAT, "max_tokens": 1, "temperature": 0.7, "top_p": 0.1, "top_k": 40, "stop": "\n"}),
    ("text.generate", {**CHAT, "stop": ["\n\n", "END"]}),
    ("text.generate", {**CHAT, "n": 16, "logprobs": 20, "min_p": 0.05, "repetition_penalty": 1.1}),
    ("text.generate", {**CHAT, "presence_penalty": -2, "frequency_penalty": 2, "logprobs": 0}),
    *(
        ("text.generate", {**GENERATE, "grammar": grammar})
        for grammar in (
            {"json_schema": {"type": "object"}},
            {"json_object": True},
            {"regex": "[0-9]+"},
            {"choice": ["yes", "no"]},
        )
    ),
    ("text.generate", {**CHAT, "tools": [WEATHER]}),
    *(
        ("text.generate", {**CHAT, "tools": [WEATHER], "tool_choice": choice})
        for choice in ("auto", "none", "required", {"type": "function", "function": {"name": "weather"}})
    ),
    ("text.generate", {"messages": [*CHAT["messages"], CALLED, ANSWERED]}),
    ("text.generate", {"messages": [*CHAT["messages"], {**CALLED, "content": None}, ANSWERED]}),
    ("text.generate", {"messages": [{"role": "user", "name": "ann", "content": "a"}]}),
    ("text.embed", {"texts": ["a"], "dimensions": 128}),
    ("text.rerank", {"query": "a", "documents": ["a", "b"], "top_n": 1}),
]

WRONG: tuple[dict[str, Any], ...] = (
    {"max_tokens": 0},
    {"max_tokens": 32769},
    {"max_tokens": 1.5},
    {"max_tokens": "9"},
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": -1},
    {"stop": ""},
    {"stop": [""]},
    {"stop": 1},
    {"seed": -1},
    {"seed": 2**63},
    {"temprature": 1},
    {"n": 0},
    {"n": 17},
    {"logprobs": True},
    {"logprobs": 21},
    {"min_p": 1.1},
    {"presence_penalty": 2.1},
    {"repetition_penalty": 0},
    {"grammar": {}},
    {"grammar": {"regex": "a", "choice": ["a"]}},
    {"grammar": {"json_object": False}},
    {"grammar": {"choice": []}},
    {"tools": [WEATHER]},
    {"tool_choice": "auto"},
)

BAD_INPUTS: list[tuple[str, Any]] = [
    ("normalize.date.de", {}),
    ("normalize.date.de", {"text": ""}),
    ("normalize.date.de", {"text": "x" * 2001}),
    ("normalize.date.de", {"text": 3}),
    ("normalize.date.de", {"text": "a", "lang": "de"}),
    ("normalize.date.de", ["a"]),
    ("math.sum", {"values": []}),
    ("math.sum", {"values": ["1"] * 1001}),
    ("math.sum", {"values": "12"}),
    ("math.sum", {"values": [1]}),
    *(("math.multiply", {"values": [text]}) for text in ("", "1,5", "1e9", "NaN", "1.", ".5", " 1", "1\n", "٣", "--1")),
    ("text.upper", {}),
    ("text.generate", {}),
    ("text.generate", {**GENERATE, **CHAT}),
    ("text.generate", {"prompt": ""}),
    ("text.generate", {"messages": []}),
    ("text.generate", {"messages": [{"role": "user"}]}),
    ("text.generate", {"messages": [{"role": "judge", "content": "a"}]}),
    ("text.generate", {"messages": ["Hello"]}),
    *(("text.generate", {**GENERATE, **wrong}) for wrong in WRONG),
    ("text.generate", {**CHAT, "tools": []}),
    ("text.generate", {**CHAT, "tools": [{"type": "function", "function": {"name": "no blanks"}}]}),
    ("text.generate", {**CHAT, "tools": [WEATHER], "tool_choice": "some"}),
    ("text.generate", {"messages": [{"role": "user", "content": None}]}),
    ("text.generate", {"messages": [{"role": "user", "tool_calls": CALLED["tool_calls"]}]}),
    ("text.generate", {"messages": [{"role": "tool", "content": "wet"}]}),
    ("text.embed", {"texts": []}),
    ("text.embed", {"texts": [""]}),
    ("text.embed", {"texts": ["a"], "dimensions": 0}),
    ("text.rerank", {"query": "a", "documents": []}),
    ("text.rerank", {"query": "", "documents": ["a"]}),
]

GOOD_OUTPUTS: list[tuple[str, dict[str, Any]]] = [
    ("normalize.date.en", {"value": "2001-03-03"}),
    ("math.sum", {"value": "-12.50"}),
    ("math.multiply", {"value": "9" * 900}),
    ("text.upper", {"text": "ÄSS"}),
    ("text.generate", {"text": "", "finish_reason": "stop"}),
    ("text.generate", {"text": "a", "finish_reason": "length"}),
    ("text.generate", {**ANSWER, "choices": [ANSWER, ANSWER]}),
    ("text.generate", {**ANSWER, "logprobs": [{"token": "a", "logprob": -1, "top": [{"token": "a", "logprob": -1}]}]}),
    (
        "text.generate",
        {
            "text": "",
            "finish_reason": "tool_calls",
            "tool_calls": [{"id": "1", "name": "weather", "arguments": "{}"}],
            "logprobs": [{"token": "\ufffd", "logprob": 0, "bytes": [255], "top": []}],
        },
    ),
    ("text.embed", {"vectors": [[0.5, -1]]}),
    ("text.rerank", {"results": [{"index": 1, "score": 0.5}]}),
]

BAD_OUTPUTS: list[tuple[str, Any]] = [
    ("normalize.date.en", {}),
    ("normalize.date.en", {"value": None}),
    ("math.sum", {"value": 12}),
    ("math.sum", {"value": "1E+9"}),
    ("math.multiply", {"value": ""}),
    ("text.upper", {"value": "A"}),
    ("text.generate", {"text": "a"}),
    ("text.generate", {"text": "a", "finish_reason": "abort"}),
    ("text.generate", {**ANSWER, "choices": [ANSWER]}),
    ("text.generate", {**ANSWER, "logprobs": [{"token": "a", "logprob": 0.5, "top": []}]}),
    ("text.generate", {**ANSWER, "tool_calls": []}),
    ("text.embed", {"vectors": [["a"]]}),
    ("text.rerank", {"results": []}),
]


def violation(capability: str, side: str, value: Any) -> str | None:
    contract = standard_contract(capability)
    assert contract is not None
    return check(compile_schema(getattr(contract, side)), value)


@pytest.mark.parametrize(("capability", "value"), GOOD_INPUTS)
def test_inputs_that_keep_the_contract(capability: str, value: dict[str, Any]) -> None:
    assert violation(capability, "input", value) is None


@pytest.mark.parametrize(("capability", "value"), BAD_INPUTS)
def test_inputs_that_break_it(capability: str, value: Any) -> None:
    assert violation(capability, "input", value)


@pytest.mark.parametrize(("capability", "value"), GOOD_OUTPUTS)
def test_outputs_that_keep_the_contract(capability: str, value: dict[str, Any]) -> None:
    assert violation(capability, "output", value) is None


@pytest.mark.parametrize(("capability", "value"), BAD_OUTPUTS)
def test_outputs_that_break_it(capability: str, value: Any) -> None:
    assert violation(capability, "output", value)


def test_every_file_is_a_contract_of_the_capability_it_is_named_for() -> None:
    files = sorted((FOLDER / "capabilities").glob("*.json"))
    names = ["math.multiply", "math.sum", "normalize", "text.embed", "text.generate", "text.rerank", "text.upper"]
    assert [file.stem for file in files] == names
    for file in files:
        contract = standard_contract(file.stem if file.stem != "normalize" else "normalize.>")
        assert contract is not None
        assert contract.capability.removesuffix(".>") == file.stem
        assert contract.description


def test_no_contract_for_what_has_no_standard() -> None:
    assert standard_contract("vision.caption") is None
    assert standard_contract("text") is None
    assert standard_contract("normalize") is None


def test_bidders_learn_how_many_tokens_are_wanted_and_nothing_else_of_what_a_prompt_says() -> None:
    contract = standard_contract("text.generate")
    assert contract is not None
    features = features_of({"prompt": "a secret", "max_tokens": 64, "temperature": 0.5}, 61, contract.input)
    assert features.shape == {"object": {"prompt": 8, "max_tokens": {"public": 64}, "temperature": None}}


def test_of_a_large_input_bidders_learn_what_is_in_it_and_the_public_properties() -> None:
    contract = standard_contract("text.generate")
    assert contract is not None
    messages = [{"role": "user", "content": "a"}] * 100
    features = features_of({"messages": messages, "n": 2, "stop": "END", "logprobs": 1}, 3000, contract.input)
    assert features.shape == {"object": {"messages": None, "n": {"public": 2}, "stop": 3, "logprobs": None}}
