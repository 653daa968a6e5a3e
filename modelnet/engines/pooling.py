"""Texts into what pooling models take: single texts for vectors, pairs for scores; and scores out of what they give."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from modelnet.engines.errors import BadPrompt, Unsupported
from modelnet.engines.prompts import checked_token_ids

__all__ = ["PoolRequest", "Pooled", "Pooler"]


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """One text or pair, ready for vLLM."""

    token_ids: list[int]
    params: Any
    """vLLM's PoolingParams."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """What came of it."""

    data: tuple[float, ...]
    prompt_tokens: int


class Pooler:
    """What one pooling model can do: `embed` (vectors), `classify` (a score of a pair). Safe in any thread."""

    def __init__(self, tokenizer: Any, model_config: Any, tasks: Collection[str]) -> None:
        self._tokenizer, self._config, self._tasks = tokenizer, model_config, tasks
        self._pairs = "classify" in tasks and model_config.score_type == "cross-encoder"

    @property
    def embeds(self) -> bool:
        return "embed" in self._tasks

    @property
    def scores_pairs(self) -> bool:
        """Whether it reads query and document together; else they are compared by their vectors."""
        return self._pairs

    def embed(self, texts: Sequence[str], dimensions: int | None) -> list[PoolRequest]:
        """Raises `BadPrompt`, `PromptTooLong`, `Unsupported`."""
        from vllm import PoolingParams
        from vllm.exceptions import VLLMError

        if not self.embeds:
            raise Unsupported("this model makes no vectors")
        params = PoolingParams(task="embed", dimensions=dimensions)
        try:
            params.verify(self._config)
        except (VLLMError, ValueError) as error:
            raise BadPrompt(f"the model makes no vectors of {dimensions} dimensions: {error}") from error
        return [PoolRequest(self._checked(self._tokenizer.encode(text)), params.clone()) for text in texts]

    def score(self, query: str, documents: Sequence[str]) -> list[PoolRequest]:
        """The pairs, or the query and then the documents. Raises as `embed` does."""
        if not self._pairs:
            return self.embed([query, *documents], None)
        from vllm import PoolingParams

        requests = []
        for document in documents:
            pair = (
                self._tokenizer(text=query, text_pair=document)
                if self._config.use_sep_token
                else self._tokenizer(text=query + document)
            )
            params = PoolingParams(task="classify")
            params.verify(self._config)
            if any(kinds := pair.get("token_type_ids") or ()):
                # From the first token of the second kind on, all are of it.
                params.extra_kwargs = {"compressed_token_type_ids": list(kinds).index(1)}
            requests.append(PoolRequest(self._checked(pair["input_ids"]), params))
        return requests

    def scores(self, pooled: Sequence[Pooled]) -> tuple[float, ...]:
        """What was pooled for `score`, as one number for each document."""
        if self._pairs:
            return tuple(one.data[0] for one in pooled)
        query, *documents = (one.data for one in pooled)
        return tuple(_cosine(query, document) for document in documents)

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        # One more than a prompt may have: nothing is drawn behind it.
        return checked_token_ids(
            token_ids, max_model_len=self._config.max_model_len + 1, vocab_size=self._config.get_vocab_size()
        )


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0
