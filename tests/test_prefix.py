"""Prompts as hashes: what extends what, what tells nothing, and what stays small."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet.contracts import features_of, standard_contract
from modelnet.messages import BidRequest, Features
from modelnet.prefix import HASH_BYTES, MAX_BLOCKS, block_ends, hashes_in, is_marked, prefix_of, tenant_key

SCHEMA: dict[str, Any] = {
    "properties": {
        "messages": {"type": "array", "x-prefix": 1},
        "prompt": {"type": "string", "x-prefix": 1},
        "tools": {"type": "array", "x-prefix": 0},
        "seed": {"type": "integer"},
    }
}
KEY = tenant_key(b"s" * 32, "alice")

messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=400)}),
    min_size=1,
    max_size=8,
)


def hashes(value: dict[str, Any], key: bytes = KEY) -> list[bytes]:
    found = prefix_of(value, SCHEMA, key)
    assert found is not None
    assert len(found.hashes) % HASH_BYTES == 0
    return hashes_in(found.hashes)


@given(messages, messages)
def test_the_next_turn_extends_the_last(turn: list[Any], more: list[Any]) -> None:
    before, after = hashes({"messages": turn}), hashes({"messages": turn + more})
    assert after[: len(before)] == before


@given(st.text(min_size=1, max_size=3000), st.text(max_size=300))
def test_a_text_extends_its_beginning(text: str, more: str) -> None:
    before, after = hashes({"prompt": text}), hashes({"prompt": text + more})
    assert after[: len(before)] == before


@given(st.binary(min_size=1, max_size=4000), st.integers(0, 3999), st.integers(1, 255))
def test_what_stands_behind_a_difference_differs(body: bytes, at: int, flip: int) -> None:
    at %= len(body)
    text, other = (part.decode("latin-1") for part in (body, body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :]))
    changed = len(b"prompt\0" + text[:at].encode())
    same = [end <= changed for end in block_ends()]
    for block, (mine, theirs) in enumerate(zip(hashes({"prompt": text}), hashes({"prompt": other}), strict=False)):
        assert (mine == theirs) == same[block]


def test_tools_stand_before_messages_and_what_is_not_marked_nowhere() -> None:
    turn = [{"role": "user", "content": "x" * 600}]
    assert hashes({"messages": turn}) != hashes({"messages": turn, "tools": [{"name": "t"}]})
    assert hashes({"messages": turn}) == hashes({"messages": turn, "seed": 7})
    swapped = [{"content": "x" * 600, "role": "user"}]
    assert hashes({"messages": turn}) == hashes({"messages": swapped}), "the order of an object's names says nothing"


def test_tenants_share_nothing() -> None:
    other = tenant_key(b"s" * 32, "bob")
    elsewhere = tenant_key(b"t" * 32, "alice")
    prompt = {"prompt": "the same words " * 100}
    mine = set(hashes(prompt))
    assert len(mine) == 9
    assert not mine & set(hashes(prompt, other))
    assert not mine & set(hashes(prompt, elsewhere))


@pytest.mark.parametrize("value", [{}, {"seed": 1}, {"prompt": None}])
def test_no_prompt_no_hashes(value: dict[str, Any]) -> None:
    assert prefix_of(value, SCHEMA, KEY) is None


def test_only_marked_contracts_cost_anything() -> None:
    assert not is_marked({})
    assert not is_marked({"properties": {"a": True, "b": {"x-prefix": True}}})
    assert is_marked(SCHEMA)
    assert features_of({"prompt": "a" * 500}, 510, SCHEMA).prefix == b""
    assert features_of({"text": "a" * 500}, 510, {}, KEY).prompt_bytes is None


@pytest.mark.parametrize("size", [1 << 10, 1 << 16, 1 << 18, 10_000_000])
def test_a_request_stays_small(size: int) -> None:
    features = features_of({"prompt": "é" * (size // 2)}, size, SCHEMA, KEY)
    request = BidRequest(
        auction="a", negotiator="n", capability="text.generate", features=features, remaining_ms=1, window_ms=1
    )
    assert len(request.encode()) < 1200
    assert BidRequest.decode(request.encode()).features == features
    known = block_ends()[len(hashes_in(features.prefix)) - 1]
    assert known >= min(size, block_ends()[-1]) * 7 / 8, "a cut is never further off than an eighth"


def test_blocks_are_bounded_on_both_sides() -> None:
    assert len(block_ends()) == MAX_BLOCKS
    assert len(hashes_in(b"x" * 10_000)) == MAX_BLOCKS
    assert hashes_in(b"x" * 15) == [b"x" * 8]


def test_a_reader_that_knows_no_hashes_reads_the_request() -> None:
    features = Features.model_validate_json('{"input_bytes": 2, "shape": null}')
    assert (features.prefix, features.prompt_bytes) == (b"", None)


def test_text_generation_is_marked() -> None:
    contract = standard_contract("text.generate")
    assert contract is not None
    found = prefix_of(json.loads('{"messages": [{"role": "user", "content": "hi"}]}'), contract.input, KEY)
    assert found is not None
    assert found.size == len(b'messages\0{"content":"hi","role":"user"}\n')


def test_half_a_character_is_hashed_too() -> None:
    assert prefix_of({"prompt": "\ud800", "messages": ["\udfff"]}, SCHEMA, KEY) is not None
