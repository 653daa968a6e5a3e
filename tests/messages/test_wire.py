"""Every message on the wire: what its schema permits is read, what was written is read back, garbage is refused."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from modelnet import messages as m
from modelnet.schemas import message_classes, message_schema
from tests.messages.samples import documents, json_values

DECODERS = [m.decode_bid_reply, m.decode_award_reply, m.decode_entry, m.decode_event]

UNIONS = [
    (m.decode_bid_reply, (m.Bid, m.Refusal)),
    (m.decode_award_reply, (m.Confirm, m.Decline)),
    (m.decode_entry, (m.Awarded, m.Planned, m.Waiting, m.CancelAsked, m.Final)),
    (m.decode_event, (m.Delta, m.Progress, m.Output, m.Failure)),
]

NO_KIND = [b'{"kind":"nonsense"}', b'{"kind":null}', b'{"kind":["bid"]}', b"{}"]
GARBAGE = [
    b"",
    b"null",
    b"[]",
    b"1",
    b'"text"',
    b"{",
    b"{}}",
    b"\xff\xfe",
    b"\x00",
    b'{"version":"new"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"text":"\\ud800"}',
    b'{"version":' + b"9" * 10_000 + b"}",
]


@cache
def permitted(message: type[m.Message]) -> st.SearchStrategy[Any]:
    return documents(message_schema(message))


messages = pytest.mark.parametrize("message", message_classes(), ids=lambda c: c.__name__)


@messages
@given(data=st.data())
@settings(max_examples=10)
def test_what_is_made_unchecked_is_as_pydantic_makes_it(message: type[m.Message], data: st.DataObject) -> None:
    read = message.model_validate(data.draw(permitted(message)))
    given = data.draw(st.sampled_from([set(read.model_fields_set), set(message.model_fields), set[str]()]))
    values = {name: getattr(read, name) for name in message.model_fields if name in given}
    made = message.model_construct(**values)
    pydantics = BaseModel.model_construct.__func__(message, **values)  # type: ignore[attr-defined]
    assert list(made.__dict__) == [name for name in message.model_fields if name in made.__dict__]
    made.__dict__.pop("id", None), pydantics.__dict__.pop("id", None)  # drawn anew for each task
    assert made == pydantics
    assert made.model_fields_set == pydantics.model_fields_set
    assert made.model_copy() == made


@messages
def test_has_a_version(message: type[m.Message]) -> None:
    field = message.model_fields["version"]
    assert (field.annotation, field.default) == (int, 1)


@messages
@settings(max_examples=40)
@given(data=st.data())
def test_what_the_schema_permits_is_read_and_survives_a_round_trip(message: type[m.Message], data: Any) -> None:
    document = data.draw(permitted(message))
    read = message.decode(json.dumps(document))
    assert message.decode(read.encode()) == read
    assert message.decode(read.encode()).encode() == read.encode()


@messages
@settings(max_examples=40)
@given(data=st.data(), news=st.dictionaries(st.text(min_size=1).map("new_".__add__), json_values, max_size=3))
def test_what_a_newer_peer_adds_is_ignored(message: type[m.Message], data: Any, news: dict[str, Any]) -> None:
    document = data.draw(permitted(message))
    read = message.decode(json.dumps(document))
    newer = message.decode(json.dumps({**news, **document, "version": 2}))
    assert newer.version == 2
    assert newer.to_dict() == read.to_dict()


@messages
@pytest.mark.parametrize("body", GARBAGE, ids=lambda b: repr(b[:16]))
def test_garbage_is_refused_as_such(message: type[m.Message], body: bytes) -> None:
    with pytest.raises(ValidationError):
        message.decode(body)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("body", GARBAGE + NO_KIND, ids=lambda b: repr(b[:16]))
def test_garbage_of_no_kind_is_refused_as_such(decode: Any, body: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(body)


@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    for decode in [*DECODERS, *(message.decode for message in message_classes())]:
        try:
            decode(body)
        except ValidationError:
            continue


@pytest.mark.parametrize(("decode", "members"), UNIONS)
@settings(max_examples=40)
@given(data=st.data())
def test_messages_that_share_a_subject_are_told_apart_by_kind(
    decode: Any, members: tuple[type[m.Message], ...], data: Any
) -> None:
    member = data.draw(st.sampled_from(members))
    document = data.draw(permitted(member))
    read = decode(json.dumps(document).encode())
    assert type(read) is member
    assert decode(read.encode()) == read
    del document["kind"]
    with pytest.raises(ValidationError):
        decode(json.dumps(document).encode())


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_number_that_json_lacks_is_refused(number: str) -> None:
    body = f'{{"kind":"bid","auction":"a","worker":"w","price":1,"p50_ms":1,"p90_ms":{number}}}'
    with pytest.raises(ValidationError):
        m.decode_bid_reply(body.encode())


@pytest.mark.parametrize("price", ["-1", "1.5", '"x"', "9007199254740993", "null"])
def test_money_is_a_bounded_integer(price: str) -> None:
    body = f'{{"kind":"bid","auction":"a","worker":"w","price":{price},"p50_ms":1,"p90_ms":1}}'
    with pytest.raises(ValidationError):
        m.decode_bid_reply(body.encode())


def test_messages_are_values() -> None:
    with pytest.raises(ValidationError):
        m.Confirm(worker="w").worker = "v"  # type: ignore[misc]
    assert m.Confirm(worker="w") == m.Confirm(worker="w")


def test_the_body_of_a_dead_letter_is_kept_whole() -> None:
    letter = m.DeadLetter(subject="task.1", reason="no JSON", body=bytes(range(256)))
    assert m.DeadLetter.decode(letter.encode()).body == bytes(range(256))
