"""Contracts at work: loading them, checking against them, and what bidders learn of an input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet.contracts import check, compile_schema, features_of, load_contract, sketch, standard_contract
from modelnet.errors import UsageError
from modelnet.messages import Contract, Features, Task

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "max_tokens": {"type": "integer", "x-public": True},
        "style": {"type": "object", "x-public": True},
        "parts": {
            "type": "array",
            "items": {"type": "object", "properties": {"kind": {"type": "string", "x-public": True}}},
        },
    },
    "required": ["text"],
}


def shape(value: dict[str, Any], schema: dict[str, Any] | None = None) -> Any:
    return features_of(value, 1, SCHEMA if schema is None else schema).shape


# ---------------------------------------------------------------------- checking


@pytest.mark.parametrize(
    ("value", "violation"),
    [
        ({"text": "a"}, None),
        ({}, '"text" is a required property'),
        ({"text": 1}, 'text: 1 is not of type "string"'),
        ({"text": "a", "parts": [{}, {"kind": 2}]}, 'parts[1].kind: 2 is not of type "string"'),
        ([], '[] is not of type "object"'),
    ],
)
def test_a_violation_is_told_in_one_line(value: Any, violation: str | None) -> None:
    assert check(compile_schema(SCHEMA), value) == violation


def test_a_long_violation_is_cut() -> None:
    found = check(compile_schema({"type": "integer"}), "x" * 10_000)
    assert found is not None
    assert len(found) <= 501


def test_formats_are_checked() -> None:
    date = compile_schema({"type": "string", "format": "date"})
    assert check(date, "2001-03-03") is None
    assert check(date, "3.3.2001") is not None


def test_an_empty_schema_permits_all() -> None:
    assert check(compile_schema({}), {"any": [1, None]}) is None


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"minimum": "one"}, {"pattern": "("}, {"$ref": "#/nowhere"}])
def test_what_is_no_schema(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not a JSON Schema"):
        compile_schema(schema)


@pytest.mark.parametrize("address", ["file:///etc/hosts", "http://localhost:1/schema.json"])
def test_references_reach_nowhere_outside(address: str) -> None:
    """A contract comes from anybody: it must not make its readers open files or connections."""
    with pytest.raises(UsageError, match="Retrieval is disabled") as raised:
        compile_schema({"$ref": address})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ['{"x": NaN}', '{"x": 1e999}', '{"x": 1' + "0" * 400 + "}"])
def test_numbers_beyond_json_end_in_an_answer(text: str) -> None:
    body = b'{"id":"k","capability":"a","input":' + text.encode() + b"}"
    for schema in ({}, {"type": "object"}, {"properties": {"x": {"type": "integer", "maximum": 5}}}):
        check(compile_schema(schema), Task.decode(body).input)


# ---------------------------------------------------------------------- loading


def test_a_contract_in_every_form(tmp_path: Path) -> None:
    given = {"input": SCHEMA, "output": {"type": "object"}}
    file = tmp_path / "contract.json"
    file.write_text(json.dumps({**given, "capability": "another.name"}))
    forms: list[Any] = [given, file, str(file), Contract(capability="x", **given)]
    loaded = [load_contract("a.b", form) for form in forms]
    assert {contract.capability for contract in loaded} == {"a.b"}
    assert len({contract.digest for contract in loaded}) == 1


def test_without_one_the_standard_contract_counts() -> None:
    standard = standard_contract("math.sum")
    assert standard is not None
    assert load_contract("math.sum", None).digest == standard.digest
    under_a_prefix = load_contract("normalize.date.de", None)
    assert under_a_prefix.capability == "normalize.date.de"
    assert under_a_prefix.input["required"] == ["text"]
    assert load_contract("normalize.>", None).capability == "normalize.>"
    assert load_contract("vision.caption", None) == Contract(capability="vision.caption")


@pytest.mark.parametrize(
    "contract",
    [
        {"inputs": {}},
        {"input": {"type": "nonsense"}},
        {"output": {"type": "nonsense"}},
        "no/such/file.json",
        ["input"],
    ],
)
def test_what_is_no_contract(contract: Any) -> None:
    with pytest.raises(UsageError):
        load_contract("a.b", contract)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"input": 3}', '{"input": "x", "output": {}}'])
def test_a_file_that_holds_no_contract(tmp_path: Path, text: str) -> None:
    file = tmp_path / "contract.json"
    file.write_text(text)
    with pytest.raises(UsageError):
        load_contract("a.b", file)


# ---------------------------------------------------------------------- what bidders learn


def test_the_shape_of_an_input() -> None:
    value = {"text": "secret", "max_tokens": 64, "temperature": 0.5, "parts": [{"kind": "b", "body": "xyz"}, None]}
    assert shape(value) == {
        "object": {
            "text": 6,
            "max_tokens": {"public": 64},
            "temperature": None,
            "parts": {"array": [{"object": {"kind": {"public": "b"}, "body": 3}}, None]},
        }
    }


def test_a_whole_object_may_be_public() -> None:
    assert shape({"style": {"tone": "dry"}}) == {"object": {"style": {"public": {"tone": "dry"}}}}


@pytest.mark.parametrize("mark", ["true", 1, False, None])
def test_only_true_makes_a_property_public(mark: Any) -> None:
    assert shape({"a": "xy"}, {"properties": {"a": {"x-public": mark}}}) == {"object": {"a": 2}}


@pytest.mark.parametrize("schema", [{}, {"properties": {"text": True}}, {"properties": {"parts": {"items": False}}}])
def test_schemas_that_say_little(schema: dict[str, Any]) -> None:
    assert shape({"text": "abc", "parts": [1]}, schema) == {"object": {"text": 3, "parts": {"array": [None]}}}


def test_a_large_shape_is_left_out() -> None:
    features = features_of({"parts": [0] * 3000}, 6010, SCHEMA)
    assert (features.input_bytes, features.shape) == (6010, {"object": {"parts": None}})
    features = features_of({f"part {n}": 0 for n in range(300)}, 6010, SCHEMA)
    assert (features.input_bytes, features.shape) == (6010, None)
    assert shape({"text": "x" * 100_000}) == {"object": {"text": 100_000}}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=5))
def test_a_sketch_has_the_same_shape_and_none_of_the_words(value: dict[str, Any]) -> None:
    features = features_of(value, 1, {})
    if features.shape is not None:
        sketched = sketch(features.shape)
        assert shape(sketched, {}) == features.shape
        assert set("".join(strings(sketched))) <= {"x"}
    assert Features.model_validate_json(features.model_dump_json()) == features


def test_a_sketch_shows_what_is_public() -> None:
    assert sketch(shape({"text": "abc", "max_tokens": 64, "n": 3})) == {"text": "xxx", "max_tokens": 64, "n": 0}


def strings(value: Any) -> list[str]:
    """The strings in a value, keys left out."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in inner for text in strings(item)]
