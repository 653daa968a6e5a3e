"""Tools' names and capabilities' names: there and back, for any of them."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from modelnet.agents.tool_names import LONGEST, capability_named, label, labels, tool_name
from modelnet.messages import is_capability

CAPABILITY = st.from_regex(r"[a-z0-9_-]{1,9}(\.[a-z0-9_-]{1,9}){0,5}", fullmatch=True)


@given(CAPABILITY)
@example("a._b")
@example("a_.b")
@example("a__b.c_d")
@example("___.___")
def test_a_capability_comes_back_from_its_tools_name(capability: str) -> None:
    name = tool_name(capability)
    assert name is not None
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name)
    assert capability_named(name) == capability


@given(CAPABILITY, CAPABILITY)
def test_two_capabilities_never_share_a_name(one: str, other: str) -> None:
    assert (tool_name(one) == tool_name(other)) == (one == other)


@given(st.text(max_size=20))
def test_a_name_that_stands_for_no_capability_is_known_as_that(name: str) -> None:
    capability = capability_named(name)
    assert capability is None or (is_capability(capability) and tool_name(capability) == name)


def test_names_read_well_where_they_can() -> None:
    assert tool_name("text.generate") == "text__generate"
    assert tool_name("mcp.files.read_file") == "mcp__files__read_file"


def test_a_name_that_would_be_too_long_is_none() -> None:
    assert tool_name("a" * LONGEST) == "a" * LONGEST
    assert tool_name(".".join("a" * 65)[:127]) is None


@given(st.lists(st.text(max_size=12), max_size=8, unique=True))
def test_labels_are_parts_of_capabilities_and_tell_names_apart(names: list[str]) -> None:
    found = labels(names)
    assert sorted(found.values()) == sorted(names)
    assert all(is_capability(part) for part in found)


def test_a_label_keeps_what_it_can() -> None:
    assert label(" Read File (v2) ") == "read_file_v2"
    assert label("…") == "unnamed"
