"""A prompt's beginning as hashes: enough to see that two prompts of one tenant begin alike, not what they say. Pure.

The properties that a contract marks `x-prefix` are written one behind the other as bytes, in the order of their marks,
so that a conversation's next turn extends the last. The bytes are cut at places that grow further apart, and each
hash is of all that stands before a cut. So no tokenizer is shared, and a hash that is known says how many bytes are.

Hashes are keyed by tenant. Equal beginnings of two tenants have nothing in common, and without the key nobody can try
out what a prompt may say.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "HASH_BYTES",
    "MARK",
    "MAX_BLOCKS",
    "Prefix",
    "block_ends",
    "hashes_in",
    "is_marked",
    "prefix_of",
    "tenant_key",
]

MARK = "x-prefix"
"""In a contract's input schema: this property is part of the prompt. Its value is an integer, the order among them."""

HASH_BYTES = 8
MAX_BLOCKS = 64

_FIRST_BYTES = 128
_PER_DOUBLING = 8
"""Blocks of one size before they are twice as large: a cut is never further away than an eighth of what is before."""


def block_ends() -> tuple[int, ...]:
    """Where blocks end, in bytes from the beginning: 128, 256, … 1024, 1280, … up to 255 KiB."""
    return tuple(itertools.accumulate(_FIRST_BYTES << (n // _PER_DOUBLING) for n in range(MAX_BLOCKS)))


_ENDS = block_ends()


class Prefix(NamedTuple):
    """What bidders learn of a prompt."""

    size: int
    """Bytes of the whole prompt."""
    hashes: bytes
    """One hash of 8 bytes for each block that is full, in order."""


def tenant_key(secret: bytes, tenant: str) -> bytes:
    """The key of a tenant's hashes, from the network's secret of 32 bytes."""
    return hashlib.blake2b(tenant.encode(), key=secret, digest_size=32, person=b"modelnet-prefix").digest()


def prefix_of(value: Mapping[str, Any], schema: Mapping[str, Any], key: bytes) -> Prefix | None:
    """The prompt in `value`, an input under this schema; None where nothing is marked, or nothing marked is there."""
    written = _written(value, schema)
    if written is None:
        return None
    hashed, start, hashes = hashlib.blake2b(key=key, digest_size=HASH_BYTES), 0, bytearray()
    for end in _ENDS:
        if end > len(written):
            break
        hashed.update(written[start:end])
        hashes += hashed.copy().digest()
        start = end
    return Prefix(len(written), bytes(hashes))


def is_marked(schema: Mapping[str, Any]) -> bool:
    """Whether inputs under this schema have a prompt."""
    return bool(_marked(schema))


def hashes_in(hashes: bytes) -> list[bytes]:
    """The hashes of a request, one a block; what is more than a request holds is left out."""
    whole = min(len(hashes) // HASH_BYTES, MAX_BLOCKS)
    return [hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(whole)]


def _marked(schema: Mapping[str, Any]) -> list[str]:
    """The properties that make the prompt, in order."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return []
    orders = {name: about.get(MARK) for name, about in properties.items() if isinstance(about, Mapping)}
    found = [(order, name) for name, order in orders.items() if isinstance(order, int) and not isinstance(order, bool)]
    return [name for _, name in sorted(found)]


def _written(value: Mapping[str, Any], schema: Mapping[str, Any]) -> memoryview | None:
    """The marked properties as bytes. A list is written an element a line: one more makes it longer, and changes
    nothing before."""
    out = bytearray()
    for name in _marked(schema):
        if (item := value.get(name)) is None:
            continue
        out += name.encode() + b"\0"
        if isinstance(item, str):
            out += item.encode(errors="surrogatepass")
            continue
        for element in item if isinstance(item, list) else [item]:
            text = json.dumps(element, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            out += text.encode(errors="surrogatepass") + b"\n"
    return memoryview(out) if out else None
