"""Going on with an answer that another attempt began, on any engine.

On the same model the answer's token ids are taken as they are, so greedy sampling gives what an uninterrupted run
would have given. Else its text is tokenized together with the prompt, or sent behind it to an engine that tokenizes
elsewhere. With a temperature the draws behind the border are others than those of an uninterrupted run, also with the
same seed: the answer is one that the model could give.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from modelnet.engines.base import Chunk, Engine, Prompt, Sampling
from modelnet.engines.errors import Unsupported

__all__ = ["StopFilter", "continued"]

BYTES_PER_TOKEN = 4
"""Of English, about."""
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class StopFilter:
    """Lets text through up to the first stop string, and holds back what may become one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What can be shown now, and whether a stop string is complete, which then is cut off."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True  # the one complete first, as token by token it would be
        sure = len(text) - max((self._overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[sure:]
        return text[:sure], False

    def end(self) -> str:
        """What was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(len(stop) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if stop.startswith(text[len(text) - n :])), 0)


async def continued(
    engine: Engine,
    request_id: str,
    prompt: Prompt,
    sampling: Sampling,
    text: str,
    ids: tuple[int, ...] | None,
    *,
    adapter: str | None = None,
) -> AsyncGenerator[Chunk, None]:
    """The rest of an answer of which `text` was given, by the tokens `ids` if they are this model's.

    The chunks' text begins behind `text`; their counts are this run's: the answer so far belongs to the prompt, and
    only new tokens are completion. Raises as `Engine.generate` does, and `Unsupported` for a chat on an engine that
    can't tokenize.
    """
    stops = StopFilter(sampling.stop)
    try:
        before = await engine.encode(prompt)
    except Unsupported:
        if prompt.text is None:
            raise
        # Its tokenizer is not to be had, so how long the answer is can only be guessed.
        left = max(sampling.max_tokens - len(text.encode()) // BYTES_PER_TOKEN, 1)
        further = Prompt(text=prompt.text + text, cache_salt=prompt.cache_salt)
    else:
        answer, held = await _whole_characters(engine, before, ids or ())
        if answer and held.startswith(text):
            everything, held = [*before, *answer], held[len(text) :]
        else:
            everything, held = await engine.encode(prompt, text), ""
        left = sampling.max_tokens - max(len(everything) - len(before), 0)
        shown, stopped = stops.push(held)
        nothing = Chunk(text="", token_ids=(), prompt_tokens=len(everything), completion_tokens=0)
        if stopped or left <= 0 or len(everything) >= engine.max_model_len:
            last = shown if stopped else shown + stops.end()
            yield replace(nothing, text=last, finish_reason="stop" if stopped else "length")
            return
        if shown:
            yield replace(nothing, text=shown)
        further = Prompt(token_ids=tuple(everything), cache_salt=prompt.cache_salt)
    # Stop strings are looked for here: the engine does not know the text before the border.
    rest = engine.generate(request_id, further, replace(sampling, max_tokens=left, stop=()), adapter=adapter)
    async with aclosing(rest):
        async for chunk in rest:
            shown, stopped = stops.push(chunk.text)
            if stopped:
                yield replace(chunk, text=shown, finish_reason="stop")
                return
            if chunk.finish_reason is not None:
                shown += stops.end()
            yield replace(chunk, text=shown)


async def _whole_characters(engine: Engine, before: list[int], ids: tuple[int, ...]) -> tuple[list[int], str]:
    """The ids without those of a character that is not whole yet, and their text behind the prompt's."""
    start, answer = await engine.decode(before), list(ids)
    while answer:
        text = (await engine.decode([*before, *answer]))[len(start) :]
        if not text.endswith(_BROKEN):
            return answer, text
        answer.pop()
    return [], ""
