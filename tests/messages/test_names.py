"""Ids, capabilities, patterns, digests: the small rules that everybody on the network must share."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelnet.messages import Contract, Selector, Task, digest_of, is_capability, matches, new_id


def accepted(capability: str) -> bool:
    try:
        Task(capability=capability, input={})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", ["a", "text.generate", "normalize.date.de", "a-b_c.1", "a" * 128])
def test_capabilities(name: str) -> None:
    assert is_capability(name)
    assert accepted(name)


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "A", "a b", "a.>", ">", "*", "a.*", "a\n", "ä", "a" * 129]
)
def test_no_capabilities(name: str) -> None:
    assert not is_capability(name)
    assert not accepted(name)


@given(st.text(alphabet="ab.>*A \n", max_size=8))
def test_both_checks_of_a_capability_agree(name: str) -> None:
    assert is_capability(name) == accepted(name)


@pytest.mark.parametrize(
    ("pattern", "capability", "heard"),
    [
        ("text.generate", "text.generate", True),
        ("text.generate", "text.generate.medical", False),
        ("text.generate.medical", "text.generate", False),
        ("text.>", "text.generate", True),
        ("text.>", "text.generate.medical", True),
        ("text.>", "text", False),
        ("text.>", "textile.weave", False),
        (">", "text", True),
        (">", "text.generate", True),
    ],
)
def test_a_pattern_hears_what_a_subject_of_nats_would(pattern: str, capability: str, heard: bool) -> None:
    assert matches(pattern, capability) is heard


def test_ids_are_tokens_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"[0-9a-f]{32}", found) for found in ids)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a>", "*", "a" * 65, "a\n", "ä"])
def test_an_id_is_one_token_of_a_subject(name: str) -> None:
    with pytest.raises(ValidationError):
        Task(id=name, capability="a", input={})
    with pytest.raises(ValidationError):
        Task(tenant=name, capability="a", input={})


def test_a_digest_knows_the_value_not_how_it_was_written() -> None:
    assert digest_of({"a": 1, "b": [2, "ß"]}) == digest_of({"b": [2, "ß"], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    # Fixed: workers in other languages compute the same.
    assert digest_of({"text": "ß"}) == "sha256:9c4db90aa35c9a78cf9fb7a68bcba6b84e5b2e4a7ced96768b23d5ea15ee48cf"


def test_a_contract_is_its_two_schemas() -> None:
    one = Contract(capability="a", description="x", input={"type": "object"})
    assert one.digest == Contract(capability="b.>", description="y", input={"type": "object"}).digest
    assert one.digest != Contract(capability="a", output={"type": "object"}).digest


@pytest.mark.parametrize(("priority", "found"), [(0, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 2), (9, 2)])
def test_priority_classes(priority: int, found: int) -> None:
    assert Task(capability="a", input={}, priority=priority).priority_class == found


def test_a_selector_judges_only_what_it_names() -> None:
    facts = ("w", "me", "llama", {"gpu": "h100"})
    assert not Selector()
    assert Selector().holds(*facts) == []
    assert Selector(model="llama", labels={"gpu": "h100", "zone": "eu"}).holds(*facts) == [True, True, False]
    assert Selector(worker="v", owner="me").holds(*facts) == [False, True]
    assert Selector(model="llama").holds("w", "me", None, {}) == [False]


@pytest.mark.parametrize(
    "field", [{"deadline_s": 0}, {"deadline_s": 86_401}, {"budget": -1}, {"priority": 10}, {"min_quality": 1.1}]
)
def test_a_task_out_of_range_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Task(capability="a", input={}, **field)
