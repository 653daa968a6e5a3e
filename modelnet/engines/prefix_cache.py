"""What a worker believes of its engine's prefix cache, in the hashes that requests carry. Pure.

vLLM tells which of its own blocks it stored and dropped, but names them by token ids, and a request for bids has none:
it comes from somebody without a tokenizer. So the worker keeps the hashes of the prompts that it was given, in the
order in which vLLM forgets blocks, and as many as the engine's key-value cache has room for.

Of an answer it has no hashes, as it has no key to make them: of a conversation's next turn it knows all but the last
answer, which the turn after that brings. That is little, and the key would let workers try out others' prompts.
"""

from __future__ import annotations

from collections import OrderedDict

from modelnet.prefix import block_ends, hashes_in

__all__ = ["PrefixCache"]

_ENDS = (0, *block_ends())


class PrefixCache:
    """Beginnings of prompts that were served lately, the ones longest unused first. Sizes in bytes of prompt."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes | int, int] = OrderedDict()
        """Size by hash; what has no hash, the end of a prompt and its answer, by a number."""
        self._size = 0
        self._unnamed = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def known_bytes(self, hashes: bytes) -> int:
        """How many bytes a prompt has in common with what is kept."""
        known = 0
        for block in hashes_in(hashes):
            if block not in self._blocks:
                break
            known += 1
        return _ENDS[known]

    def put(self, hashes: bytes, size: int, answer: int, room: float) -> None:
        """A prompt of `size` bytes is served, and an answer of so many is expected. `room`: bytes that the engine's
        cache has room for."""
        blocks = hashes_in(hashes)
        self._unnamed += 1
        self._keep(self._unnamed, max(size - _ENDS[len(blocks)], 0) + max(answer, 0))
        # The end of a prompt is forgotten first, as in the engine: without it the beginning is still of use.
        for number, block in reversed(list(enumerate(blocks))):
            self._keep(block, _ENDS[number + 1] - _ENDS[number])
        while self._size > room and self._blocks:
            self._size -= self._blocks.popitem(last=False)[1]

    def clear(self) -> None:
        """The engine's cache is empty."""
        self._blocks.clear()
        self._size = 0

    def _keep(self, block: bytes | int, size: int) -> None:
        if block not in self._blocks:
            self._size += size
            self._blocks[block] = size
        self._blocks.move_to_end(block)
