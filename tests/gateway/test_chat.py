"""Chat completions, as OpenAI's own client sees them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.gateway.actor import Actor
from tests.gateway.doors import Gateway
from tests.network.stage import Network, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAY = [{"role": "user", "content": "one two three"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def test_a_conversation_is_answered_and_the_headers_say_by_whom(client: Any) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="text.generate", messages=SAY)
    answer = raw.parse()
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert raw.headers["modelnet-worker"] == "actor"
    assert raw.headers["modelnet-price"] == "3"
    assert answer.id == f"chatcmpl-{raw.headers['modelnet-task']}"
    assert answer._request_id == raw.headers["modelnet-task"]


@pytest.mark.parametrize("model", ["auto", "parrot", "text.generate", "text.generate.medical"])
async def test_a_model_is_named_by_capability_by_its_own_name_or_not_at_all(
    client: Any, network: Network, model: str
) -> None:
    if model.endswith("medical"):
        special = Actor(network, name="doctor").generate
        doctor = network.worker("doctor")
        doctor.capability("text.generate.medical", price=1)(special)
        await network.join(doctor)
    answer = await client.chat.completions.create(model=model, messages=SAY)
    assert answer.choices[0].message.content == "one two three"
    assert answer.model == model


async def test_a_stream_comes_word_by_word_and_ends_with_usage_and_worker(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="parrot", messages=SAY, stream=True, stream_options={"include_usage": True}
    )
    assert stream.response.headers["modelnet-task"]
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == "one two three"
    assert texts[0] == "one"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    ended = next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason)
    assert ended.model_extra is not None
    assert ended.model_extra["modelnet"]["worker"] == "actor"
    assert ended.model_extra["modelnet"]["price"] == 3


async def test_sampling_reaches_the_worker_as_its_contract_has_it(client: Any, actor: Actor) -> None:
    await client.chat.completions.create(
        model="auto",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b c"}]},
        ],
        max_completion_tokens=2,
        temperature=0.5,
        top_p=0.9,
        stop="END",
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        user="someone",
        extra_body={"top_k": 5, "structured_outputs": None},
    )
    assert actor.inputs[-1] == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a b c"}],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": "END",
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
    }


async def test_an_answer_that_was_cut_says_length(client: Any) -> None:
    answer = await client.chat.completions.create(model="auto", messages=SAY, max_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two", "length")


async def test_several_answers_whole_and_streamed(client: Any) -> None:
    answer = await client.chat.completions.create(model="auto", messages=SAY, n=3)
    assert [choice.message.content for choice in answer.choices] == ["one two three"] * 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts, ends = {0: "", 1: ""}, dict[int, str | None]()
    async for chunk in await client.chat.completions.create(model="auto", messages=SAY, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == {0: "one two three", 1: "one two three"}
    assert ends == {0: "stop", 1: "stop"}


async def test_log_probabilities_whole_and_streamed(client: Any) -> None:
    answer = await client.chat.completions.create(model="auto", messages=SAY, logprobs=True, top_logprobs=2)
    marks = answer.choices[0].logprobs
    assert marks is not None
    assert marks.content is not None
    assert [mark.token for mark in marks.content] == ["one", " two", " three"]
    assert marks.content[1].bytes == list(b" two")
    assert [other.token for other in marks.content[0].top_logprobs] == ["0", "1"]
    told = []
    async for chunk in await client.chat.completions.create(model="auto", messages=SAY, logprobs=True, stream=True):
        for choice in chunk.choices:
            if choice.logprobs and choice.logprobs.content:
                told += [mark.token for mark in choice.logprobs.content]
    assert told == ["one", " two", " three"]


async def test_functions_are_called_and_answered(client: Any, actor: Actor) -> None:
    asked = {"role": "user", "content": "what weather"}
    answer = await client.chat.completions.create(model="auto", messages=[asked], tools=[WEATHER])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in message.tool_calls] == ["weather", "weather"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Köln"}
    again = await client.chat.completions.create(
        model="auto",
        messages=[
            asked,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": "call_1", "content": "it rains"},
        ],
        tools=[WEATHER],
        tool_choice="none",
    )
    assert again.choices[0].message.content == "it rains"
    assert actor.inputs[-1]["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"


async def test_calls_stream_in_parts_and_one_is_enough_where_only_one_is_wanted(client: Any) -> None:
    asked = {"role": "user", "content": "what weather"}
    async with client.chat.completions.stream(model="auto", messages=[asked], tools=[WEATHER]) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Köln"}, {}]
    single = await client.chat.completions.create(
        model="auto", messages=[asked], tools=[WEATHER], parallel_tool_calls=False
    )
    assert len(single.choices[0].message.tool_calls) == 1


class Person(BaseModel):
    """What a structured answer is to be."""

    name: str
    age: int


async def test_a_structured_answer_is_parsed(client: Any, actor: Actor) -> None:
    asked = [{"role": "user", "content": "who"}]
    answer = await client.chat.completions.parse(model="auto", messages=asked, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    grammar = actor.inputs[-1]["grammar"]["json_schema"]
    assert sorted(grammar["properties"]) == ["age", "name"]
    await client.chat.completions.create(model="auto", messages=asked, response_format={"type": "json_object"})
    assert actor.inputs[-1]["grammar"] == {"json_object": True}


async def test_the_networks_terms_in_the_body_and_in_headers(client: Any, network: Network) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="auto", messages=SAY, extra_body={"modelnet": {"budget": 1}})
    assert caught.value.code == "over_budget"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="auto", messages=SAY, extra_headers={"modelnet-budget": "1"})
    assert caught.value.code == "over_budget"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="auto", messages=SAY, extra_headers={"modelnet-budget": "much"})
    with pytest.raises(openai.BadRequestError, match="budgte"):
        await client.chat.completions.create(model="auto", messages=SAY, extra_body={"modelnet": {"budgte": 1}})
    raw = await client.chat.completions.with_raw_response.create(
        model="auto", messages=SAY, extra_body={"modelnet": {"strategy": "spot", "priority": 9, "deadline_s": 20}}
    )
    trace = await network.client.trace(raw.headers["modelnet-task"])
    assert trace.attempts[0]["worker"] == "actor"


async def test_a_race_is_told_at_its_end(client: Any) -> None:
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model="auto", messages=SAY, stream=True, extra_body={"modelnet": {"strategy": "race"}}
        )
    ]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"


async def test_a_capability_of_another_contract_answers_with_its_json(client: Any, network: Network) -> None:
    loud = network.worker("loud")

    @loud.capability("text.upper", price=1)
    async def upper(ctx: object, input: dict[str, str]) -> dict[str, str]:
        return {"text": input["text"].upper()}

    await network.join(loud)
    for said in ("hello", '{"text": "hello"}'):
        asked = [{"role": "system", "content": "ignored"}, {"role": "user", "content": said}]
        answer = await client.chat.completions.create(model="text.upper", messages=asked)
        assert json.loads(answer.choices[0].message.content or "") == {"text": "HELLO"}
    text = ""
    async for chunk in await client.chat.completions.create(
        model="text.upper", messages=[{"role": "user", "content": "hi"}], stream=True
    ):
        text += chunk.choices[0].delta.content or ""
    assert json.loads(text) == {"text": "HI"}


async def test_errors_have_the_status_and_the_shape_that_clients_know(client: Any) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        await create(model="gpt-17", messages=SAY)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await create(model="auto", messages=SAY, temperature=9)
    assert wrong.value.code == "contract_violation"
    with pytest.raises(openai.BadRequestError) as biased:
        await create(model="auto", messages=SAY, logit_bias={"5": 1})
    assert (biased.value.code, biased.value.param) == ("unsupported_parameter", "logit_bias")
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(openai.BadRequestError):
        await create(model="auto", messages=picture)
    with pytest.raises(openai.BadRequestError):
        await create(model="auto", messages=[])
    with pytest.raises(openai.APIStatusError) as broken:
        await create(model="auto", messages=[{"role": "user", "content": "fail odd_thing"}])
    assert (broken.value.status_code, broken.value.code) == (502, "odd_thing")
    assert broken.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.BadRequestError) as long:
        await create(model="auto", messages=[{"role": "user", "content": "fail too_long"}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as late:
        await create(
            model="auto",
            messages=[{"role": "user", "content": "wait"}],
            extra_body={"modelnet": {"deadline_s": 0.5}},
        )
    assert (late.value.status_code, late.value.code) == (504, "expired")


async def test_an_error_before_the_first_word_has_a_status_in_a_stream_too(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="auto", messages=SAY, temperature=9, stream=True)
    assert wrong.value.code == "contract_violation"


async def test_an_error_in_a_stream_that_has_begun_is_its_last_event(client: Any, actor: Actor) -> None:
    actor.begun.clear()
    stream = await client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "wait"}],
        stream=True,
        extra_body={"modelnet": {"deadline_s": 1}},
    )
    assert (await anext(stream)).choices[0].delta.content == "begun "
    with pytest.raises(openai.APIError) as late:
        await anext(stream)
    assert late.value.code == "expired"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": ' + b"[" * 100_000,
        b'{"model": "\xff\xfe"}',
        b"[]",
        b'{"messages": "hello"}',
        b"\x00" * 64,
    ],
    ids=["empty", "cut", "deep", "no UTF-8", "a list", "text", "zeros"],
)
async def test_garbage_is_refused_and_the_next_request_served(
    http: httpx.AsyncClient, actor: Actor, body: bytes
) -> None:
    answer = await http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert (await http.post("/v1/chat/completions", json={"messages": SAY})).status_code == 200


async def test_infinity_is_no_number(http: httpx.AsyncClient, actor: Actor) -> None:
    for said in (b"NaN", b"1e999"):
        body = b'{"messages": [{"role": "user", "content": "a"}], "temperature": ' + said + b"}"
        assert (await http.post("/v1/chat/completions", content=body)).status_code == 400


async def test_a_body_of_ten_megabytes_is_answered(client: Any, actor: Actor) -> None:
    text = "word " * 2_000_000
    answer = await client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": text}], max_tokens=2
    )
    assert answer.choices[0].message.content == "word word"


async def test_a_hundred_streams_at_once_are_each_whole(client: Any) -> None:
    async def one(number: int) -> str:
        text = ""
        stream = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": f"this is number {number}"}], stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    said = await asyncio.gather(*(one(number) for number in range(100)))
    assert said == [f"this is number {number}" for number in range(100)]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_cancels_its_task(
    client: Any, gateway: Gateway, actor: Actor, stream: bool
) -> None:
    actor.begun.clear()
    actor.left.clear()

    async def ask() -> None:
        async with client.chat.completions.with_streaming_response.create(
            model="auto", messages=[{"role": "user", "content": "wait"}], stream=stream
        ) as answer:
            async for _ in answer.iter_bytes():
                pass

    asking = asyncio.create_task(ask())
    await until(actor.begun)
    asking.cancel()
    await asyncio.wait({asking})
    await until(actor.left)


async def test_a_repetition_with_the_same_idempotency_key_finds_the_same_task(client: Any, actor: Actor) -> None:
    before = len(actor.inputs)
    ids = set()
    for _ in range(3):
        answer = await client.chat.completions.create(
            model="auto",
            messages=SAY,
            extra_headers={"Idempotency-Key": "order 17, again"},
        )
        assert answer.choices[0].message.content == "one two three"
        ids.add(answer.id)
    assert len(ids) == 1
    assert len(actor.inputs) == before + 1


async def test_with_an_idempotency_key_a_client_may_come_back(client: Any, actor: Actor) -> None:
    actor.begun.clear()
    actor.go_on.clear()
    ask = {
        "model": "auto",
        "messages": [{"role": "user", "content": "wait"}],
        "extra_headers": {"Idempotency-Key": "come back"},
    }
    first = asyncio.create_task(client.chat.completions.create(**ask))
    await until(actor.begun)
    first.cancel()
    await asyncio.wait({first})
    actor.go_on.set()
    answer = await client.chat.completions.create(**ask)
    actor.go_on.clear()
    assert answer.choices[0].message.content == "begun and done"


async def test_what_the_network_has_is_listed(client: Any, actor: Actor) -> None:
    found = {one.id: one async for one in client.models.list()}
    assert {"text.generate", "text.embed", "parrot", "ruler"} <= set(found)
    assert found["parrot"].owned_by == "local"
    assert found["parrot"].model_extra is not None
    assert found["parrot"].model_extra["modelnet"]["capabilities"] == ["text.generate"]
    assert (await client.models.retrieve("parrot")).id == "parrot"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("unknown")
