"""Vectors and rankings on vLLM, compared with transformers."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from modelnet.engines import BadPrompt, EngineKind, PromptTooLong, Unsupported, open_engine, vllm_available
from modelnet.engines.base import Prompt, Sampling
from modelnet.engines.errors import DuplicateRequest
from tests.engines.bert import cross_scores, mean_vectors, write_cross_encoder, write_embedder

pytestmark = pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")

KINDS = ["vllm", pytest.param("vllm-async", marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
QUERY = "the quick fox"
TEXTS = ["the lazy dog", "a quick brown fox jumps", "red green blue mat"]


def cosine(one: tuple[float, ...] | list[float], other: tuple[float, ...] | list[float]) -> float:
    norm = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / norm


@pytest.mark.parametrize("kind", KINDS)
async def test_vectors_are_those_of_transformers(tmp_path: Path, kind: EngineKind) -> None:
    folder = write_embedder(tmp_path / "embedder")
    expected = mean_vectors(folder, [QUERY, *TEXTS])
    engine = open_engine(str(folder), kind=kind, runner="pooling", dtype="float32")
    await engine.start()
    try:
        assert {"embed", "score"} <= engine.abilities
        assert "generate" not in engine.abilities
        got = await engine.embed("e", [QUERY, *TEXTS])
        for ours, theirs in zip(got.vectors, expected, strict=True):
            assert cosine(ours, theirs) > 0.99999
            assert sum(x * x for x in ours) == pytest.approx(1, abs=1e-4)
        assert got.prompt_tokens == 3 + 3 + 5 + 4 + 4 * 2
        many = await asyncio.gather(*(engine.embed(f"e{n}", [text]) for n, text in enumerate(TEXTS * 8)))
        assert [len(one.vectors) for one in many] == [1] * 24
        ranked = await engine.score("s", QUERY, TEXTS)
        for score, theirs in zip(ranked.scores, expected[1:], strict=True):
            assert score == pytest.approx(cosine(expected[0], theirs), abs=1e-4)
        assert engine.state().running == 0
        with pytest.raises(PromptTooLong):
            await engine.embed("long", ["fox " * 500])
        with pytest.raises(BadPrompt):
            await engine.embed("short", ["fox"], dimensions=7)
        with pytest.raises(Unsupported):
            async for _ in engine.generate("g", Prompt(text="fox"), Sampling()):
                pass
        # Who gives up frees its request, and the id.
        waiting = asyncio.create_task(engine.embed("w", TEXTS * 50))
        twice = asyncio.create_task(engine.embed("w", TEXTS * 50))  # not one that has ended before the other begins
        results = await asyncio.gather(waiting, twice, return_exceptions=True)
        assert sum(isinstance(result, DuplicateRequest) for result in results) == 1
        waiting = asyncio.create_task(engine.embed("w", TEXTS * 50))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await engine.abort("settle")
        assert (engine.state().running, engine.state().waiting) == (0, 0)
        assert (await engine.embed("w", TEXTS)).vectors
    finally:
        await engine.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_pairs_are_scored_as_by_transformers(tmp_path: Path, kind: EngineKind) -> None:
    folder = write_cross_encoder(tmp_path / "cross")
    expected = cross_scores(folder, QUERY, TEXTS)
    engine = open_engine(str(folder), kind=kind, runner="pooling", dtype="float32")
    await engine.start()
    try:
        got = await engine.score("s", QUERY, TEXTS)
        assert got.scores == pytest.approx(expected, abs=1e-4)
        assert len({round(score, 3) for score in got.scores}) > 1
        assert "embed" not in engine.abilities
        with pytest.raises(Unsupported):
            await engine.embed("e", TEXTS)
    finally:
        await engine.close()
