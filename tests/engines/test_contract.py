"""What every engine promises, run over each of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from modelnet.engines import (
    BadPrompt,
    Chunk,
    DuplicateRequest,
    Engine,
    EngineDead,
    Prompt,
    PromptTooLong,
    Sampling,
    Unsupported,
)
from modelnet.engines.openai import OpenAIEngine
from tests.engines.kinds import DEAR, KINDS, Opened, drawn, opened
from tests.engines.models import CHAIN, CONTEXT, LOOP, Folder

# One loop for the module: engines are bound to the loop they were started on, and are shared by the tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(temperature=0, max_tokens=24)
ENDLESS = Sampling(temperature=0, max_tokens=CONTEXT)
FOX = Prompt(text="the quick brown fox")


@dataclass(frozen=True)
class Engines:
    kind: str
    random: Engine
    chain: Engine
    opened: tuple[Opened, Opened]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def engines(
    request: pytest.FixtureRequest, random_folder: Folder, chain_folder: Folder
) -> AsyncIterator[Engines]:
    kind = str(request.param)
    async with opened(kind, random_folder) as random, opened(kind, chain_folder) as chain:
        await random.engine.start()
        await chain.engine.start()
        yield Engines(kind, random.engine, chain.engine, (random, chain))


@pytest_asyncio.fixture(loop_scope="module")
async def engine(engines: Engines) -> AsyncIterator[Engine]:
    """The engine of random weights; whatever a test did to it, it ends idle and alive."""
    yield engines.random
    await engines.random.abort("settle")
    assert engines.random.state().running == 0
    assert engines.random.state().waiting == 0
    await engines.random.health()


async def answer(engine: Engine, prompt: Prompt, sampling: Sampling, request_id: str = "r") -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request_id, prompt, sampling)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def takes_tokens(engine: Engine) -> bool:
    """Whether a prompt may be token ids: an engine that can't tokenize has no vocabulary to name."""
    return "tokens" in engine.abilities


def tells_tokens(chunks: list[Chunk]) -> bool:
    return all(chunk.token_ids is not None for chunk in chunks)


def ids_of(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids or ()]


async def test_chunks_add_up_and_usage_is_exact(engine: Engine, random_folder: Folder) -> None:
    prompt = "the lazy dog"
    chunks = await answer(engine, Prompt(text=prompt), GREEDY)
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1].completion_tokens == GREEDY.max_tokens
    if "tokens" in engine.abilities or engine.software.startswith("OpenAI"):
        assert chunks[-1].prompt_tokens == len(random_folder.tokenizer.encode(prompt).ids)
    if not tells_tokens(chunks):
        return
    ids = ids_of(chunks)
    assert len(ids) == GREEDY.max_tokens
    assert text_of(chunks) == random_folder.tokenizer.decode(ids).removesuffix("\ufffd")
    total = 0
    for chunk in chunks:
        total += len(chunk.token_ids or ())
        assert chunk.completion_tokens == total


async def test_text_and_its_token_ids_give_the_same_answer(engine: Engine, random_folder: Folder) -> None:
    if not takes_tokens(engine):
        with pytest.raises(Unsupported):
            await answer(engine, Prompt(token_ids=(5, 6)), GREEDY)
        return
    ids = tuple(random_folder.tokenizer.encode("the quick brown fox").ids)
    by_text = ids_of(await answer(engine, FOX, GREEDY))
    assert ids_of(await answer(engine, Prompt(token_ids=ids), GREEDY)) == by_text


async def test_a_seed_repeats_and_another_differs(engine: Engine) -> None:
    one, again, other = [
        drawn(await answer(engine, FOX, Sampling(max_tokens=24, temperature=1.5, seed=seed))) for seed in (7, 7, 8)
    ]
    assert one == again
    assert one != other


async def test_a_character_is_never_split(engines: Engines) -> None:
    chunks = await answer(engines.chain, Prompt(text=CHAIN[0]), GREEDY)
    pieces = [c.text for c in chunks if c.text]
    assert "".join(pieces) == CHAIN[1:]
    if engines.kind != "vllm-async":  # which joins what comes before it is read
        assert pieces == list(CHAIN[1:])


async def test_end_of_text_stops_and_counts(engines: Engines) -> None:
    chunks = await answer(engines.chain, Prompt(text=CHAIN[0]), GREEDY)
    assert chunks[-1].finish_reason == "stop"
    assert not tells_tokens(chunks) or ids_of(chunks)[-1] == 1
    assert chunks[-1].completion_tokens == len(CHAIN[1:].encode()) + 1


@pytest.mark.parametrize("stop", [("€",), ("nowhere", "€z"), ("€z!", "€")])
async def test_the_answer_ends_before_a_stop_string(engines: Engines, stop: tuple[str, ...]) -> None:
    chunks = await answer(engines.chain, Prompt(text=CHAIN[0]), Sampling(temperature=0, stop=stop))
    assert text_of(chunks) == "é日"
    assert chunks[-1].finish_reason == "stop"


async def test_what_could_have_become_a_stop_string_is_not_lost(engines: Engines) -> None:
    chunks = await answer(engines.chain, Prompt(text=CHAIN[0]), Sampling(temperature=0, stop=("z and more",)))
    assert text_of(chunks) == CHAIN[1:]


async def test_the_context_ends_the_answer(engine: Engine) -> None:
    if not takes_tokens(engine):
        pytest.skip("takes no token ids, so the length of a prompt is not known before")
    chunks = await answer(engine, Prompt(token_ids=(5,) * (CONTEXT - 3)), ENDLESS)
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].completion_tokens == 3


async def frees_its_cache(engine: Engine) -> None:
    """What runs elsewhere was asked how it is a moment ago, perhaps before the end had come to it."""
    async with asyncio.timeout(10):
        while isinstance(engine, OpenAIEngine) and engine.state().kv_cache_usage:
            await engine.health()
    assert engine.state().kv_cache_usage == 0


async def test_abort_ends_the_stream_and_frees_the_request(engine: Engine) -> None:
    chunks: list[Chunk] = []
    async for chunk in engine.generate("r", FOX, ENDLESS):
        chunks.append(chunk)
        if len(chunks) == 1:
            assert engine.state().running == 1
            await engine.abort("r")
            assert engine.state().running == 0
            await frees_its_cache(engine)
    assert chunks[-1].finish_reason == "abort"
    assert not tells_tokens(chunks) or chunks[-1].completion_tokens == len(ids_of(chunks))


async def test_abort_before_the_first_token(engine: Engine) -> None:
    long = Prompt(text="the " * (CONTEXT // 2))  # long enough to be tokenized beside the loop
    task = asyncio.create_task(answer(engine, long, ENDLESS))
    await asyncio.sleep(0)
    await engine.abort("r")
    chunks = await task
    assert chunks[-1].finish_reason == "abort"


async def test_abort_of_an_unknown_id_is_no_error(engine: Engine) -> None:
    await engine.abort("nobody")


async def test_closing_the_generator_frees_the_request(engine: Engine) -> None:
    async with aclosing(engine.generate("r", FOX, ENDLESS)) as stream:
        await anext(stream)
    await engine.abort("settle")
    assert engine.state().running == 0
    await frees_its_cache(engine)


async def test_cancelling_the_consumer_frees_the_request(engine: Engine) -> None:
    began = asyncio.Event()

    async def consume() -> None:
        async for _ in engine.generate("r", FOX, ENDLESS):
            began.set()

    task = asyncio.create_task(consume())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.abort("settle")
    assert engine.state().running == 0
    # and its id is free at once, without a trace of the old answer
    again = await answer(engine, FOX, GREEDY)
    assert again[-1].completion_tokens == GREEDY.max_tokens


async def test_an_overlong_prompt_is_refused_and_the_engine_lives(engine: Engine) -> None:
    for length in (CONTEXT, 4 * CONTEXT) if takes_tokens(engine) else ():
        with pytest.raises(PromptTooLong) as caught:
            await answer(engine, Prompt(token_ids=(5,) * length), GREEDY)
        assert caught.value.code == "too_long"
    with pytest.raises(PromptTooLong):
        await answer(engine, Prompt(text="the quick " * CONTEXT), GREEDY)
    assert await answer(engine, FOX, GREEDY)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"token_ids": ()},
        {"token_ids": (5, 1_000_000)},
        {"token_ids": (-1,)},
        {"messages": ()},
        {"messages": ({"content": "no role"},)},
        {"messages": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},)},
        {"messages": ({"role": "user", "content": 7},)},
    ],
)
async def test_a_bad_prompt_is_refused(engine: Engine, fields: dict[str, Any]) -> None:
    if "token_ids" in fields and not takes_tokens(engine):
        pytest.skip("takes no token ids")
    with pytest.raises(BadPrompt) as caught:
        await answer(engine, Prompt(**fields), GREEDY)
    assert caught.value.code == "bad_prompt"


async def test_a_chat_goes_through_the_models_template(engine: Engine, random_folder: Folder) -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "dog"}]
    chat = Prompt(messages=({"role": "system", "content": "sat"}, {"role": "user", "content": parts}))
    ids = random_folder.tokenizer.encode("[system] sat\n[user] the dog\n[assistant] ").ids
    chunks = await answer(engine, chat, GREEDY)
    text = "[system] sat\n[user] the dog\n[assistant] "
    assert drawn(chunks) == drawn(await answer(engine, Prompt(text=text), GREEDY))
    if takes_tokens(engine):
        assert chunks[-1].prompt_tokens == len(ids)
        assert ids_of(chunks) == ids_of(await answer(engine, Prompt(token_ids=tuple(ids)), GREEDY))


async def test_a_chat_without_a_template_is_refused(engines: Engines) -> None:
    with pytest.raises(BadPrompt, match="chat template"):  # said by whatever runs the model
        await answer(engines.chain, Prompt(messages=({"role": "user", "content": "a"},)), GREEDY)


async def test_an_id_runs_once_at_a_time(engine: Engine) -> None:
    async with aclosing(engine.generate("r", FOX, ENDLESS)) as stream:
        await anext(stream)
        with pytest.raises(DuplicateRequest):
            await answer(engine, FOX, GREEDY)
        assert (await anext(stream)).finish_reason is None


async def test_many_at_once(engine: Engine) -> None:
    async def one(n: int) -> list[Chunk]:
        return await answer(engine, Prompt(text=f"{chr(97 + n)} fox"), GREEDY, f"r{n}")

    answers = await asyncio.gather(*(one(n) for n in range(32)))
    assert [chunks[-1].completion_tokens for chunks in answers] == [GREEDY.max_tokens] * 32
    assert len({drawn(chunks) for chunks in answers}) > 16
    assert drawn(await one(5)) == drawn(answers[5])


async def test_a_burst_is_in_the_state_at_once(engine: Engine) -> None:
    tasks = [asyncio.create_task(answer(engine, FOX, GREEDY, f"r{n}")) for n in range(8)]
    await asyncio.sleep(0)  # one turn of the loop: each task has begun
    state = engine.state()
    assert state.running + state.waiting == 8
    await asyncio.gather(*tasks)


async def test_state_has_measured_speeds(engine: Engine) -> None:
    await answer(engine, FOX, GREEDY)
    state = engine.state()
    assert state.max_running >= 32
    assert state.ttft_ms is not None
    assert 0 < state.ttft_ms < 60_000
    assert state.decode_tokens_per_s is not None
    assert state.decode_tokens_per_s > 1
    assert state.prefill_tokens_per_s is not None


async def test_engines_beside_each_other_do_not_mix(engines: Engines) -> None:
    alone = drawn(await answer(engines.random, FOX, GREEDY))
    jobs = [
        answer(engine, prompt, GREEDY, f"r{n}")
        for n in range(8)
        for engine, prompt in ((engines.random, FOX), (engines.chain, Prompt(text=CHAIN[0])))
    ]
    answers = await asyncio.gather(*jobs)
    assert all(drawn(chunks) == alone for chunks in answers[::2])
    assert all(text_of(chunks) == CHAIN[1:] for chunks in answers[1::2])


async def test_closing_ends_what_runs_and_leaves_other_engines_alone(engines: Engines, chain_folder: Folder) -> None:
    """Last in the module, like the next: they use up the engines with processes of their own, dear to start."""
    async with AsyncExitStack() as stack:
        engine = engines.chain
        if engines.kind not in DEAR:
            engine = (await stack.enter_async_context(opened(engines.kind, chain_folder))).engine
            with pytest.raises(EngineDead):
                await engine.health()
            await engine.start()
        stream = engine.generate("r", Prompt(text=LOOP), ENDLESS)
        await anext(stream)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineDead):
            async for _ in stream:
                pass
        with pytest.raises(EngineDead):
            await engine.health()
        with pytest.raises(EngineDead):
            await answer(engine, FOX, GREEDY)
        assert engine.state().running == 0
        assert await answer(engines.random, FOX, GREEDY)


async def test_a_dead_engine_fails_its_requests_and_its_health(engines: Engines, random_folder: Folder) -> None:
    async with AsyncExitStack() as stack:
        own = engines.opened[0]
        if engines.kind not in DEAR:
            own = await stack.enter_async_context(opened(engines.kind, random_folder))
            await own.engine.start()
        engine = own.engine
        streams = [engine.generate(f"r{n}", FOX, ENDLESS) for n in range(2)]
        for stream in streams:
            await anext(stream)
        await own.kill()
        for stream in streams:
            with pytest.raises(EngineDead) as caught:
                async for _ in stream:
                    pass
            assert caught.value.code == "engine_dead"
        with pytest.raises(EngineDead):
            await engine.health()
        with pytest.raises(EngineDead):
            await answer(engine, FOX, GREEDY)
        assert engine.state().running == 0
    if engines.kind not in DEAR:
        assert await answer(engines.random, FOX, GREEDY)
