"""What a worker believes to be cached, against a plain model of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelnet.engines.prefix_cache import PrefixCache
from modelnet.prefix import HASH_BYTES, block_ends, prefix_of

SCHEMA = {"properties": {"prompt": {"x-prefix": 1}}}
PLENTY = 1 << 40


def prompt(text: str) -> tuple[bytes, int]:
    found = prefix_of({"prompt": text}, SCHEMA, b"k" * 32)
    assert found is not None
    return found.hashes, found.size


def test_a_conversation_is_known_up_to_its_last_prompt() -> None:
    cache, turns = PrefixCache(), ["s" * 500, "s" * 500 + "a" * 700, "s" * 500 + "b" * 700]
    hashes, size = prompt(turns[0])
    assert cache.known_bytes(hashes) == 0
    cache.put(hashes, size, 100, PLENTY)
    known = cache.known_bytes(prompt(turns[1])[0])
    assert size - 128 < known <= size
    cache.put(*prompt(turns[1]), 0, PLENTY)
    assert cache.known_bytes(prompt(turns[2])[0]) == known, "another way on from the same beginning"
    assert cache.known_bytes(prompt("t" + turns[1])[0]) == 0


def test_a_hole_ends_what_is_known() -> None:
    cache, (hashes, size) = PrefixCache(), prompt("x" * 2000)
    cache.put(hashes[HASH_BYTES:], size, 0, PLENTY)
    assert cache.known_bytes(hashes) == 0


def test_the_longest_unused_goes_first_and_of_a_prompt_its_end() -> None:
    cache, room = PrefixCache(), 4000
    old, new = prompt("o" * 2000), prompt("n" * 2000)
    cache.put(*old, 0, room)
    cache.put(*new, 1000, room)
    assert cache.known_bytes(new[0]) == len("prompt\0") + 2000 - (2007 - 1792)
    assert 0 < cache.known_bytes(old[0]) < 1792
    cache.put(*old, 0, room)
    cache.put(*prompt("z" * 2000), 0, room)
    assert cache.known_bytes(old[0]) == 1792
    assert cache.known_bytes(new[0]) < 1792


def test_answers_take_room_and_no_room_keeps_nothing() -> None:
    cache, (hashes, size) = PrefixCache(), prompt("x" * 2000)
    cache.put(hashes, size, 0, 0)
    assert (cache.known_bytes(hashes), len(cache)) == (0, 0)
    cache.put(hashes, size, 0, 5000)
    for n in range(10):
        cache.put(*prompt(str(n)), 1000, 5000)
    assert cache.known_bytes(hashes) == 0
    cache.put(hashes, size, 0, 5000)
    cache.clear()
    assert cache.known_bytes(hashes) == 0


@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=900), st.integers(0, 500)), max_size=30), st.integers(0, 9000)
)
def test_it_never_claims_what_was_not_there_and_keeps_to_its_room(served: list[tuple[str, int]], room: int) -> None:
    cache, seen = PrefixCache(), list[str]()
    for text, answer in served:
        hashes, size = prompt(text)
        known = cache.known_bytes(hashes)
        assert known in (0, *block_ends())
        assert known <= size
        if known:
            begin = text[: known - len("prompt\0")]
            assert any(old.startswith(begin) for old in seen)
        cache.put(hashes, size, answer, room)
        seen.append(text)
        assert sum(cache._blocks.values()) == cache._size <= room
