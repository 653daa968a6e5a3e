"""Between texts and token ids, by the model's own tokenizer and chat template, as vLLM loads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modelnet.engines.base import Prompt
from modelnet.engines.errors import BadPrompt
from modelnet.engines.prompts import checked_token_ids, plain_messages
from modelnet.messages import TokenAlternative, TokenLogprob

__all__ = ["Encoder", "LogprobReader"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not."""


class Encoder:
    """Prompts into token ids. Safe in any thread."""

    def __init__(self, tokenizer: Any, *, max_model_len: int, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """A prompt and the beginning of its answer. Raises `BadPrompt`, `PromptTooLong`."""
        if prompt.token_ids is not None:
            ids = [*prompt.token_ids, *(self._plain(answer) if answer else ())]
        elif prompt.text is not None:
            ids = self.tokenizer.encode(prompt.text + answer)
        elif answer:
            ids = self._plain(self._chat(prompt, tokenize=False) + answer)
        else:
            ids = list(self._chat(prompt, tokenize=True))
        return checked_token_ids(ids, max_model_len=self._max_model_len, vocab_size=self._vocab_size)

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _chat(self, prompt: Prompt, *, tokenize: bool) -> Any:
        """The chat through the model's template, as text or as token ids."""
        messages = plain_messages(prompt.messages or ())
        if getattr(self.tokenizer, "chat_template", "") is None:
            raise BadPrompt("this model has no chat template: send text, not messages")
        tools = [dict(tool) for tool in prompt.tools] if prompt.tools and prompt.tool_choice != "none" else None
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=tokenize, return_dict=False
            )
        except Exception as error:  # templates raise what they like
            raise BadPrompt(f"the model's chat template refused the messages: {error}") from error


class LogprobReader:
    """What vLLM tells of each token's probability, in the form that travels."""

    def __init__(self, tokenizer: Any, top: int) -> None:
        """`top`: so many of the likeliest are told beside the drawn one."""
        self._tokenizer, self._top = tokenizer, top

    def read(self, token_ids: Sequence[int], positions: Sequence[Mapping[int, Any]]) -> tuple[TokenLogprob, ...]:
        """One for each token. The likeliest come by rank; the drawn one is among them or beside them."""
        return tuple(self._position(drawn, told) for drawn, told in zip(token_ids, positions, strict=True))

    def _position(self, drawn: int, told: Mapping[int, Any]) -> TokenLogprob:
        likeliest = sorted((one.rank, token) for token, one in told.items() if one.rank <= self._top)
        return TokenLogprob.model_construct(
            **self._facts(drawn, told[drawn]),
            top=tuple(
                TokenAlternative.model_construct(**self._facts(token, told[token]))
                for _, token in likeliest[: self._top]
            ),
        )

    def _facts(self, token: int, one: Any) -> dict[str, Any]:
        # By itself, not in its place: joined, the bytes are the text, whatever characters they are of.
        text = self._tokenizer.decode([token])
        value = one.logprob if math.isfinite(one.logprob) else LEAST_LOGPROB
        return {"token": text, "logprob": min(value, 0.0), "bytes": self._bytes(token) if _BROKEN in text else None}

    def _bytes(self, token: int) -> tuple[int, ...] | None:
        """The bytes of a token that is no whole text: byte-level vocabularies write each as a character."""
        shown = self._tokenizer.convert_ids_to_tokens(token)
        if len(shown) == 6 and shown.startswith("<0x"):
            return (int(shown[3:5], 16),)
        found = [_BYTES.get(char) for char in shown]
        return tuple(byte for byte in found if byte is not None) if None not in found else None


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies since GPT-2: printable ones for themselves, the
    others for 256 and on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
