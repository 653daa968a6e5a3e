"""The standard contracts, each with inputs and outputs that keep it and such that break it."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.contracts import check, compile_schema, features_of, standard_contract
from modelnet.schemas import FOLDER

GENERATE = {"prompt": "Once"}
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}

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
]

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
    *(
        ("text.generate", {**GENERATE, **wrong})
        for wrong in (
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
        )
    ),
]

GOOD_OUTPUTS: list[tuple[str, dict[str, Any]]] = [
    ("normalize.date.en", {"value": "2001-03-03"}),
    ("math.sum", {"value": "-12.50"}),
    ("math.multiply", {"value": "9" * 900}),
    ("text.upper", {"text": "ÄSS"}),
    ("text.generate", {"text": "", "finish_reason": "stop"}),
    ("text.generate", {"text": "a", "finish_reason": "length"}),
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
    assert [file.stem for file in files] == ["math.multiply", "math.sum", "normalize", "text.generate", "text.upper"]
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
