"""What vLLM does beyond plain text, through the engine interface: several answers, logprobs, grammars, calls, LoRA."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modelnet.engines import (
    BadPrompt,
    BadSampling,
    Chunk,
    Engine,
    EngineError,
    Grammar,
    Prompt,
    Sampling,
    Unsupported,
    open_engine,
    vllm_available,
)
from modelnet.engines.thread_engine import ThreadEngine
from modelnet.engines.vllm_adapters import Adapters
from modelnet.messages import ToolCallPart
from tests.engines.models import CALL, Folder, write_adapted, write_calling
from tests.engines.test_contract import FOX, GREEDY, answer, ids_of, text_of

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"),
]

KINDS = ["vllm", pytest.param("vllm-async", marks=[pytest.mark.slow, pytest.mark.timeout(300)])]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Ulm", "Rom"]}}, "required": ["city"]},
    },
}
ASK: tuple[dict[str, Any], ...] = ({"role": "user", "content": "the weather in Ulm"},)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def adapted(random_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapted(folder / name, random_folder, seed=n) for n, name in enumerate(("legal", "old", "new"))}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def engine(
    request: pytest.FixtureRequest, random_folder: Folder, adapted: dict[str, tuple[Path, Path]]
) -> AsyncIterator[Engine]:
    adapters = {name: str(adapter) for name, (adapter, _) in adapted.items()}
    adapters["broken"] = str(random_folder.path)
    engine = open_engine(
        random_folder.name,
        kind=request.param,
        dtype="float32",
        max_model_len=512,
        adapters=adapters,
        max_loras=2,
        max_lora_rank=8,
    )
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    folder = write_calling(tmp_path_factory.mktemp("models") / "calling")
    engine = open_engine(folder.name, kind=request.param, tool_parser="hermes", max_model_len=512)
    await engine.start()
    yield engine
    await engine.close()


def by_answer(chunks: list[Chunk]) -> dict[int, list[Chunk]]:
    found: dict[int, list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        found[chunk.index].append(chunk)
    return found


async def test_several_answers_end_one_by_one_and_all_their_tokens_count(engine: Engine) -> None:
    chunks = await answer(engine, FOX, Sampling(n=4, max_tokens=9, temperature=1.5, seed=3))
    answers = by_answer(chunks)
    assert sorted(answers) == [0, 1, 2, 3]
    assert len({text_of(one) for one in answers.values()}) > 1
    for one in answers.values():
        assert [chunk.finish_reason for chunk in one] == [None] * (len(one) - 1) + ["length"]
    assert chunks[-1].completion_tokens == 4 * 9 == len(ids_of(chunks))
    assert {chunk.prompt_tokens for chunk in chunks} == {len(await engine.encode(FOX))}


async def test_several_greedy_answers_are_one(engine: Engine) -> None:
    expected = ids_of(await answer(engine, FOX, GREEDY))
    answers = by_answer(await answer(engine, FOX, replace(GREEDY, n=2)))
    assert [ids_of(answers[index]) for index in (0, 1)] == [expected, expected]


async def test_an_abort_ends_all_answers(engine: Engine) -> None:
    chunks = []
    async for chunk in engine.generate("r", FOX, Sampling(n=3, max_tokens=400)):
        chunks.append(chunk)
        if len(chunks) == 1:
            await engine.abort("r")
    assert chunks[-1].finish_reason == "abort"
    assert engine.state().running == 0


async def test_logprobs_are_of_the_tokens_and_of_the_likeliest(engine: Engine) -> None:
    chunks = await answer(engine, FOX, replace(GREEDY, logprobs=3))
    told = [one for chunk in chunks for one in chunk.logprobs or ()]
    assert len(told) == GREEDY.max_tokens
    for one, token in zip(told, ids_of(chunks), strict=True):
        assert one.token == await engine.decode([token])
        assert len(one.top) == 3
        assert one.top[0].logprob == one.logprob  # greedy: the likeliest was drawn
        assert sorted((other.logprob for other in one.top), reverse=True) == [other.logprob for other in one.top]
        assert (one.bytes is not None) == ("\ufffd" in one.token)
    whole = b"".join(bytes(one.bytes) if one.bytes is not None else one.token.encode() for one in told)
    assert whole.decode(errors="replace").startswith(text_of(chunks))
    everything = (await answer(engine, FOX, Sampling(temperature=0, max_tokens=1, logprobs=20)))[0].logprobs
    assert everything is not None
    assert 0 < sum(math.exp(other.logprob) for other in everything[0].top) <= 1.001


async def test_a_drawn_token_that_is_not_among_the_likeliest_is_told_beside_them(engine: Engine) -> None:
    chunks = await answer(engine, FOX, Sampling(max_tokens=40, temperature=2, seed=1, logprobs=0))
    told = [one for chunk in chunks for one in chunk.logprobs or ()]
    assert len(told) == 40
    assert {len(one.top) for one in told} == {0}
    assert all(one.logprob <= 0 for one in told)


async def test_penalties_and_min_p_change_what_is_drawn(engine: Engine) -> None:
    plain = ids_of(await answer(engine, FOX, replace(GREEDY, max_tokens=60)))
    for changed in ({"repetition_penalty": 5.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        other = ids_of(await answer(engine, FOX, replace(GREEDY, max_tokens=60, **changed)))  # type: ignore[arg-type]
        assert len(set(other)) > len(set(plain)), changed
    sampled = Sampling(max_tokens=24, temperature=1.0, seed=5)
    assert ids_of(await answer(engine, FOX, replace(sampled, min_p=1.0))) == ids_of(await answer(engine, FOX, GREEDY))


@pytest.mark.parametrize(
    ("grammar", "holds"),
    [
        (Grammar(regex="[0-9]{4}-[ab]+z"), lambda text: re.fullmatch("[0-9]{4}-[ab]+z", text)),
        (Grammar(choice=("yes", "no", "perhaps")), lambda text: text in ("yes", "no", "perhaps")),
        (
            Grammar(json_schema={"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}),
            lambda text: json.loads(text)["a"] in (1, 2),
        ),
    ],
)
async def test_a_grammar_is_kept(engine: Engine, grammar: Grammar, holds: Any) -> None:
    chunks = await answer(engine, FOX, Sampling(temperature=1.2, seed=1, max_tokens=400, grammar=grammar))
    if chunks[-1].finish_reason == "stop":
        assert holds(text_of(chunks)), text_of(chunks)
    else:
        assert grammar.choice == ()


async def test_a_grammar_of_any_object_begins_one(engine: Engine) -> None:
    chunks = await answer(engine, FOX, Sampling(temperature=0, max_tokens=8, grammar=Grammar(json_object=True)))
    assert text_of(chunks).lstrip().startswith("{")


@pytest.mark.parametrize("grammar", [Grammar(regex="(unclosed"), Grammar(json_schema={"type": "no such type"})])
async def test_a_bad_grammar_is_refused_and_the_engine_lives(engine: Engine, grammar: Grammar) -> None:
    with pytest.raises(BadSampling):
        await answer(engine, FOX, replace(GREEDY, grammar=grammar))
    assert len(ids_of(await answer(engine, FOX, GREEDY))) == GREEDY.max_tokens


async def test_what_it_was_not_opened_for_is_unsupported(engine: Engine) -> None:
    with pytest.raises(Unsupported, match="tools"):
        await answer(engine, Prompt(messages=ASK, tools=(WEATHER,)), GREEDY)
    with pytest.raises(Unsupported, match="embed"):
        await engine.embed("r", ["a"])
    with pytest.raises(Unsupported, match="nobody"):
        _ = [chunk async for chunk in engine.generate("r", FOX, GREEDY, adapter="nobody")]


async def adapted_answer(engine: Engine, adapter: str | None, request_id: str = "r") -> list[int]:
    return ids_of([chunk async for chunk in engine.generate(request_id, FOX, GREEDY, adapter=adapter)])


async def test_an_adapter_answers_as_the_merged_model_does(
    engine: Engine, adapted: dict[str, tuple[Path, Path]]
) -> None:
    plain = await adapted_answer(engine, None)
    merged = open_engine(str(adapted["legal"][1]), kind="numpy")
    await merged.start()
    expected = ids_of(await answer(merged, FOX, GREEDY))
    await merged.close()
    assert await adapted_answer(engine, "legal") == expected != plain
    assert await adapted_answer(engine, None) == plain


async def test_adapters_are_loaded_within_their_bound_and_the_one_not_used_for_longest_goes(engine: Engine) -> None:
    expected = {name: await adapted_answer(engine, name) for name in ("legal", "old", "new", None)}
    assert adapters_of(engine).loaded == ("old", "new")
    assert len(await loaded_now(engine)) == 2
    names = [*expected] * 4
    answers = await asyncio.gather(*(adapted_answer(engine, name, f"r{n}") for n, name in enumerate(names)))
    assert answers == [expected[name] for name in names]
    assert len(await loaded_now(engine)) == 2


def adapters_of(engine: Any) -> Adapters:
    owner: Any = engine._core if isinstance(engine, ThreadEngine) else engine
    found: Adapters = owner._adapters
    return found


async def loaded_now(engine: Any) -> set[int]:
    """What vLLM itself says."""
    if isinstance(engine, ThreadEngine):
        core: Any = engine._core
        return set(core._engine.list_loras())
    found: set[int] = await engine._llm.list_loras()
    return found


async def test_an_adapter_that_cannot_be_loaded_is_the_requests_error(engine: Engine) -> None:
    with pytest.raises(EngineError, match="adapter broken"):
        await adapted_answer(engine, "broken")
    await engine.health()
    assert len(await adapted_answer(engine, "legal")) == GREEDY.max_tokens


def joined(chunks: list[Chunk]) -> list[dict[str, Any]]:
    calls: dict[int, ToolCallPart] = {}
    for part in (part for chunk in chunks for part in chunk.tool_calls):
        begun = calls.get(part.position)
        if begun is None:
            calls[part.position] = part
            assert part.id
        else:
            calls[part.position] = begun.model_copy(update={"arguments": begun.arguments + part.arguments})
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls.values()]


async def test_a_call_in_the_models_own_syntax_is_read_as_it_streams(caller: Engine) -> None:
    chunks = await answer(caller, Prompt(messages=ASK, tools=(WEATHER,)), GREEDY)
    assert text_of(chunks) == CALL[0]
    assert joined(chunks) == [{"name": "weather", "arguments": {"city": "Ulm"}}]
    assert chunks[-1].finish_reason == "tool_calls"
    if isinstance(caller, ThreadEngine):  # the other driver joins what nobody fetched in time
        assert sum(bool(chunk.tool_calls) for chunk in chunks) > 1
    assert len(ids_of(chunks)) == chunks[-1].completion_tokens


async def test_without_tools_or_with_choice_none_the_syntax_is_text(caller: Engine) -> None:
    for prompt in (Prompt(messages=ASK), Prompt(messages=ASK, tools=(WEATHER,), tool_choice="none")):
        chunks = await answer(caller, prompt, GREEDY)
        assert text_of(chunks) == "".join(CALL)
        assert chunks[-1].finish_reason == "stop"


async def test_an_answer_cut_short_in_a_call_loses_nothing(caller: Engine) -> None:
    for length in range(1, len(CALL) + 1):
        chunks = await answer(
            caller, Prompt(messages=ASK, tools=(WEATHER,)), Sampling(temperature=0, max_tokens=length)
        )
        assert chunks[-1].finish_reason == "length"
        said = text_of(chunks) + "".join(part.arguments for chunk in chunks for part in chunk.tool_calls)
        assert said.startswith(CALL[0])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_call_can_be_forced(caller: Engine, choice: Any) -> None:
    prompt = Prompt(messages=ASK, tools=(WEATHER,), tool_choice=choice)
    for seed in range(20):  # of random weights, some never come to an end
        chunks = await answer(caller, prompt, Sampling(temperature=2, seed=seed, max_tokens=200))
        if chunks[-1].finish_reason != "length":
            break
    (call, *_) = joined(chunks)
    assert call["name"] == "weather"
    assert call["arguments"]["city"] in ("Ulm", "Rom")
    assert text_of(chunks) == ""
    assert chunks[-1].finish_reason == "tool_calls"


async def test_a_choice_that_is_no_tool_is_refused(caller: Engine) -> None:
    choice = {"type": "function", "function": {"name": "nobody"}}
    with pytest.raises(BadPrompt, match="nobody"):
        await answer(caller, Prompt(messages=ASK, tools=(WEATHER,), tool_choice=choice), GREEDY)


async def test_a_conversation_with_calls_and_answers_goes_through_the_template(caller: Engine) -> None:
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    chat = (
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "wet"},
    )
    assert await answer(caller, Prompt(messages=chat, tools=(WEATHER,)), GREEDY)
    bad = {**called, "function": {"name": "weather", "arguments": "{"}}
    with pytest.raises(BadPrompt, match="arguments"):
        await answer(caller, Prompt(messages=({"role": "assistant", "content": None, "tool_calls": [bad]},)), GREEDY)
