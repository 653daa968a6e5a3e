"""An OpenAI-compatible server as an engine, and all the ways in which one fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from modelnet.engines import (
    BadPrompt,
    BadSampling,
    Chunk,
    Engine,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineUnavailable,
    Prompt,
    PromptTooLong,
    Sampling,
    Unsupported,
    continued,
    open_engine,
)
from modelnet.engines.endpoint import LONGEST_EVENT
from modelnet.engines.openai import OpenAIEngine
from tests.engines.models import CHAIN, CONTEXT, LOOP, Folder
from tests.engines.openai_server import Fault, OpenAIServer
from tests.network.stage import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = Sampling(temperature=0, max_tokens=CONTEXT)
GREEDY = Sampling(temperature=0, max_tokens=24)
KEY = "sk-" + "very-secret"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def numpy(chain_folder: Folder) -> AsyncIterator[Engine]:
    engine = open_engine(chain_folder.name, kind="numpy")
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def server(numpy: Engine) -> AsyncIterator[OpenAIServer]:
    server = OpenAIServer(numpy, "tiny", key=KEY)
    await server.start()
    yield server
    await server.stop()
    await idle(numpy)


@pytest_asyncio.fixture(loop_scope="module")
async def engine(server: OpenAIServer) -> AsyncIterator[OpenAIEngine]:
    engine = opened(server)
    await engine.start()
    server.asked.clear()
    yield engine
    await engine.close()


def opened(server: OpenAIServer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine("tiny", **{"url": server.url, "key": SecretStr(KEY), **options})


async def answer(engine: Engine, prompt: Prompt | None = None, sampling: Sampling = GREEDY) -> list[Chunk]:
    async with asyncio.timeout(PATIENCE_S):
        return [chunk async for chunk in engine.generate("r", prompt or Prompt(text=CHAIN[0]), sampling)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def idle(engine: Engine) -> None:
    """Wait until an engine has nothing to do."""
    async with asyncio.timeout(PATIENCE_S):
        while engine.state().running or engine.state().waiting:
            await engine.abort("settle")


# ---------------------------------------------------------------------- finding a server


async def test_it_finds_out_what_a_server_can_do(engine: OpenAIEngine) -> None:
    assert engine.abilities == {
        *("generate", "prompt", "chat", "seed", "choices", "json", "tools", "logprobs", "embed")
    }
    assert engine.software == "OpenAI-compatible server"


async def test_a_model_that_is_not_there_is_told_with_those_that_are(server: OpenAIServer) -> None:
    engine = OpenAIEngine("tny", url=server.url, key=SecretStr(KEY))
    with pytest.raises(EngineUnavailable, match=r"'tny'; it has: another, tiny"):
        await engine.start()
    await engine.close()


async def test_a_server_that_is_not_there(server: OpenAIServer) -> None:
    await server.stop()
    engine = opened(server)
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize("key", [None, SecretStr("sk-wrong")])
async def test_a_wrong_key_is_told_and_not_shown(server: OpenAIServer, key: SecretStr | None) -> None:
    engine = opened(server, key=key)
    with pytest.raises(EngineUnavailable, match="is the API key right") as caught:
        await engine.start()
    assert "sk-" not in str(caught.value)
    await engine.close()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a/v1", "http://u:p@host/v1", "http://host/v1?a=b"])
async def test_what_is_no_address(url: str) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        OpenAIEngine("tiny", url=url)
    assert ":p@" not in str(caught.value)


async def test_the_v1_of_an_address_may_be_left_out(server: OpenAIServer) -> None:
    engine = opened(server, url=server.url.removesuffix("/v1"))
    await engine.start()
    assert text_of(await answer(engine)) == CHAIN[1:]
    await engine.close()


# ---------------------------------------------------------------------- what is asked


async def test_what_a_server_does_not_know_is_not_sent(engine: OpenAIEngine, server: OpenAIServer) -> None:
    with pytest.raises(Unsupported, match="top_k"):
        await answer(engine, sampling=Sampling(top_k=3))
    with pytest.raises(Unsupported, match="tokens"):
        await answer(engine, Prompt(token_ids=(1, 2)))
    assert not server.asked
    await answer(engine, sampling=Sampling(temperature=0.5, top_p=0.5, seed=3, stop=("x",), max_tokens=3))
    assert server.asked == [
        {
            "model": "tiny",
            "prompt": CHAIN[0],
            "max_tokens": 3,
            "temperature": 0.5,
            "top_p": 0.5,
            "seed": 3,
            "stop": ["x"],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


async def test_what_is_said_to_be_lacking_is_not_asked_for(server: OpenAIServer) -> None:
    engine = opened(server, lacks=["usage", "chat"])
    await engine.start()
    chunks = await answer(engine)
    assert "stream_options" not in server.asked[-1]
    assert chunks[-1].completion_tokens == len(CHAIN[1:])  # one for each piece of text
    with pytest.raises(Unsupported, match="chat"):
        await answer(engine, Prompt(messages=({"role": "user", "content": "a"},)))
    await engine.close()


async def test_more_stop_strings_than_servers_take_are_looked_for_here(
    engine: OpenAIEngine, server: OpenAIServer
) -> None:
    chunks = await answer(engine, sampling=Sampling(temperature=0, stop=("v", "w", "x", "y", "€z")))
    assert text_of(chunks) == "é日"
    assert chunks[-1].finish_reason == "stop"
    assert "stop" not in server.asked[-1]


async def test_a_newer_name_for_the_limit_is_learnt(engine: OpenAIEngine, server: OpenAIServer) -> None:
    complaint = {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'",
        "code": "unsupported_parameter",
        "param": "max_tokens",
    }
    server.faults.append(Fault(status=400, body=json.dumps({"error": complaint})))
    assert text_of(await answer(engine)) == CHAIN[1:]
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in server.asked] == [
        (True, None),
        (False, 24),
    ]


# ---------------------------------------------------------------------- what goes wrong


async def test_closing_the_stream_stops_the_server(engine: OpenAIEngine, server: OpenAIServer, numpy: Engine) -> None:
    async with aclosing(engine.generate("r", Prompt(text=LOOP), ENDLESS)) as stream:
        await anext(stream)
        assert numpy.state().running == 1
    await asyncio.wait_for(server.gone.get(), PATIENCE_S)
    await idle(numpy)


async def test_aborting_while_nothing_comes(engine: OpenAIEngine, server: OpenAIServer, numpy: Engine) -> None:
    server.faults.append(Fault(after=2, stall=True))
    stream = engine.generate("r", Prompt(text=LOOP), ENDLESS)
    got = [await anext(stream), await anext(stream)]
    more = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await engine.abort("r")
    last = await asyncio.wait_for(more, PATIENCE_S)
    assert (last.finish_reason, last.completion_tokens) == ("abort", len(got))
    assert engine.state().running == 0
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await asyncio.wait_for(server.gone.get(), PATIENCE_S)


@pytest.mark.parametrize("after", [0, 3])
async def test_a_stream_that_is_cut(engine: OpenAIEngine, server: OpenAIServer, after: int) -> None:
    server.faults.append(Fault(after=after, cut=True))
    with pytest.raises(EngineError) as caught:
        await answer(engine, Prompt(text=LOOP), ENDLESS)
    assert caught.value.wire_code == "connection_lost"
    assert text_of(await answer(engine)) == CHAIN[1:]


async def test_a_stream_that_ends_too_early(engine: OpenAIEngine, server: OpenAIServer) -> None:
    server.faults.append(Fault(after=2, send=b"data: [DONE]\n\n"))
    with pytest.raises(EngineError, match="in the middle") as caught:
        await answer(engine, Prompt(text=LOOP), ENDLESS)
    assert caught.value.wire_code == "connection_lost"


@pytest.mark.parametrize("after", [0, 2])
async def test_a_stream_that_stalls(server: OpenAIServer, after: int) -> None:
    engine = opened(server, first_token_s=0.2, between_tokens_s=0.2)
    await engine.start()
    server.faults.append(Fault(after=after, stall=True))  # comments go on coming: they are no tokens
    with pytest.raises(EngineError, match="no token for") as caught:
        await answer(engine, Prompt(text=LOOP), ENDLESS)
    assert caught.value.wire_code == "stalled"
    await asyncio.wait_for(server.gone.get(), PATIENCE_S)
    assert text_of(await answer(engine)) == CHAIN[1:]
    await engine.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: not JSON\n\n",
        b"data: 7\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: \xff\xfe\x00\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": [7]}\n\n',
        b'data: {"choices": [{"text": 7}]}\n\n',
        b'data: {"choices": [{"text": "a", "finish_reason": "boredom"}]}\n\n',
        b"data: " + b"x" * (LONGEST_EVENT + 1) + b"\n\n",
        b"data: " + b"x\ndata: " * (LONGEST_EVENT // 2) + b"\n\n",
    ],
    ids=lambda garbage: repr(garbage[:40]),
)
async def test_garbage_ends_the_answer_and_not_the_engine(
    engine: OpenAIEngine, server: OpenAIServer, garbage: bytes
) -> None:
    server.faults.append(Fault(after=1, send=garbage))
    with pytest.raises(EngineError) as caught:
        await answer(engine, Prompt(text=LOOP), ENDLESS)
    assert caught.value.wire_code == "bad_answer"
    assert len(caught.value.message) < 1000
    assert text_of(await answer(engine)) == CHAIN[1:]


async def test_half_a_character_is_replaced(engine: OpenAIEngine, server: OpenAIServer) -> None:
    server.faults.append(Fault(send=b'data: {"choices": [{"index": 0, "text": "a\\ud800b"}]}\n\n'))
    assert text_of(await answer(engine)) == "a\ufffdb" + CHAIN[1:]


@pytest.mark.parametrize(
    "usage", [7, {}, {"prompt_tokens": -1}, {"prompt_tokens": 1, "completion_tokens": 10**9}, {"prompt_tokens": "a"}]
)
async def test_what_it_can_not_have_used_is_counted_here(
    engine: OpenAIEngine, server: OpenAIServer, usage: object
) -> None:
    server.faults.append(Fault(after=10**6, usage=usage))
    last = (await answer(engine))[-1]
    assert last.finish_reason == "stop"
    assert last.completion_tokens == len(CHAIN[1:])
    assert last.prompt_tokens == 1


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, "oh", EngineError),
        (502, "<html>", EngineError),
        (503, "{}", EngineBusy),
        (401, '{"error": {"message": "bad key sk-very-secret"}}', EngineDead),
        (404, '{"error": {"message": "no such model"}}', EngineDead),
        (429, '{"error": {"code": "insufficient_quota"}}', EngineDead),
        (400, '{"error": {"message": "a", "code": "context_length_exceeded"}}', PromptTooLong),
        (400, '{"error": {"message": "at most 0.7", "param": "temperature"}}', BadSampling),
        (400, '{"error": {"message": "seed is not supported"}}', Unsupported),
        (413, "", PromptTooLong),
    ],
)
async def test_what_a_refusal_means(
    engine: OpenAIEngine, server: OpenAIServer, status: int, body: str, error: type[EngineError]
) -> None:
    server.faults.append(Fault(status=status, body=body))
    with pytest.raises(error) as caught:
        await answer(engine)
    assert type(caught.value) is error
    assert "sk-" not in caught.value.message
    assert "127.0.0.1" not in caught.value.message


async def test_a_429_is_waited_out(engine: OpenAIEngine, server: OpenAIServer) -> None:
    server.faults.append(Fault(status=429, headers={"retry-after": "0.3"}))
    with pytest.raises(EngineBusy):
        await answer(engine)
    with pytest.raises(EngineBusy, match="asked again"):
        await answer(engine)
    assert len(server.asked) == 1
    wait_s = engine.wait_s(10)
    assert 0 < wait_s <= 0.3
    await engine.health()
    await asyncio.sleep(wait_s)
    assert engine.wait_s(10) == 0
    assert text_of(await answer(engine)) == CHAIN[1:]


async def test_limits_that_were_given_are_kept(server: OpenAIServer) -> None:
    engine = opened(server, requests_per_minute=2)
    await engine.start()
    for _ in range(2):
        await answer(engine)
    with pytest.raises(EngineBusy):
        await answer(engine)
    assert engine.wait_s(10) > 50
    await engine.close()


async def test_tokens_that_were_not_used_are_given_back(server: OpenAIServer) -> None:
    engine = opened(server, tokens_per_minute=100)
    await engine.start()
    for _ in range(3):
        await answer(engine, sampling=Sampling(temperature=0, max_tokens=60))
    assert engine.wait_s(60) == 0
    assert engine.wait_s(99) > 50
    await engine.close()


async def test_a_server_that_goes_away_is_found_again(engine: OpenAIEngine, server: OpenAIServer) -> None:
    stream = engine.generate("r", Prompt(text=LOOP), ENDLESS)
    await anext(stream)
    await server.stop()
    with pytest.raises(EngineDead):
        async for _ in stream:
            pass
    assert engine.wait_s(1) == float("inf")
    for broken in (engine.health(), answer(engine)):
        with pytest.raises(EngineDead):
            await broken
    await server.start()
    await asyncio.wait_for(engine.returned(), PATIENCE_S)
    assert engine.wait_s(1) == 0
    await engine.health()
    assert text_of(await answer(engine)) == CHAIN[1:]


async def test_going_on_with_a_text_and_not_with_a_chat(engine: OpenAIEngine, server: OpenAIServer) -> None:
    async def rest(prompt: Prompt) -> list[Chunk]:
        sampling = Sampling(temperature=0, stop=("z",), max_tokens=24)
        return [chunk async for chunk in continued(engine, "rest", prompt, sampling, "é", None)]

    chunks = await rest(Prompt(text=CHAIN[0]))
    assert text_of(chunks) == "日€"
    assert chunks[-1].finish_reason == "stop"
    assert server.asked[-1]["prompt"] == "aé"
    with pytest.raises(Unsupported):
        await rest(Prompt(messages=({"role": "user", "content": "a"},)))


async def test_vectors_and_ranking(numpy: Engine) -> None:
    server = OpenAIServer(numpy, "tiny", vllm=True)
    await server.start()
    engine = OpenAIEngine("tiny", url=server.url)
    await engine.start()
    vectors = (await engine.embed("e", ["a", "b", "aa"])).vectors
    assert vectors[0] == vectors[2] != vectors[1]
    scores = (await engine.score("s", "a", ["b", "a"])).scores
    assert scores[1] > scores[0]
    with pytest.raises(BadPrompt):
        await engine.embed("e", ["a", ""])
    await server.stop()
    with pytest.raises(EngineDead):
        await engine.embed("e", ["a"])
    await engine.close()
    await server.stop()


async def test_several_answers_over_http(engine: OpenAIEngine, server: OpenAIServer) -> None:
    chunks = await answer(engine, sampling=Sampling(n=3, temperature=0, max_tokens=24))
    for index in range(3):
        assert text_of([chunk for chunk in chunks if chunk.index == index]) == CHAIN[1:]
    assert chunks[-1].completion_tokens == 3 * (len(CHAIN[1:].encode()) + 1)
