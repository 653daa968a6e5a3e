"""Completions, responses and embeddings, as OpenAI's own client sees them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.actor import Actor

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}


async def test_a_text_is_continued(client: Any) -> None:
    raw = await client.completions.with_raw_response.create(model="auto", prompt="one two three", logprobs=1)
    answer = raw.parse()
    assert answer.choices[0].text == "one two three"
    assert answer.choices[0].logprobs.tokens == ["one", " two", " three"]
    assert answer.choices[0].logprobs.text_offset == [0, 3, 7]
    assert raw.headers["modelnet-worker"] == "actor"


async def test_several_texts_are_continued_each_by_a_task(client: Any) -> None:
    answer = await client.completions.create(model="parrot", prompt=["one", "two three"], n=2)
    assert [choice.text for choice in answer.choices] == ["one", "one", "two three", "two three"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 3


async def test_a_continuation_streams(client: Any) -> None:
    stream = await client.completions.create(
        model="auto", prompt="one two three", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "one two three"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 6


@pytest.mark.parametrize(
    "more",
    [{"prompt": [1, 2]}, {"echo": True}, {"suffix": "x"}, {"best_of": 3}, {"prompt": ["a", "b"], "stream": True}],
)
async def test_what_no_contract_has_is_refused(client: Any, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(**{"model": "auto", "prompt": "a", **more})
    assert refused.value.code == "unsupported_parameter"


async def test_texts_become_vectors_in_both_forms(client: Any) -> None:
    packed = await client.embeddings.create(model="ruler", input=["ab", "abcd"])  # this client asks for base64
    plain = await client.embeddings.create(model="auto", input="ab", encoding_format="float")
    assert [one.embedding for one in packed.data] == [[2.0, 0.5], [4.0, 0.5]]
    assert plain.data[0].embedding == [2.0, 0.5]
    assert packed.usage.prompt_tokens == 2


async def test_a_model_of_another_family_is_named_with_what_it_serves(client: Any) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.embeddings.create(model="parrot", input="ab")
    assert refused.value.status_code == 400


async def test_a_response_has_its_text_and_usage(client: Any, actor: Actor) -> None:
    raw = await client.responses.with_raw_response.create(
        model="auto", input="one two", instructions="Be brief.", max_output_tokens=1
    )
    answer = raw.parse()
    assert answer.output_text == "one"
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.input_tokens == 2
    assert actor.inputs[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert raw.headers["modelnet-task"] == answer.id.removeprefix("resp_")


async def test_a_response_streams_in_events_that_its_client_knows(client: Any) -> None:
    async with client.responses.stream(model="auto", input="one two three") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == "one two three"
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert final.model_extra["modelnet"]["worker"] == "actor"


async def test_functions_are_called_and_answered_in_responses(client: Any, actor: Actor) -> None:
    asked = {"role": "user", "content": [{"type": "input_text", "text": "what weather"}]}
    first = await client.responses.create(model="auto", input=[asked], tools=[WEATHER])
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Köln"}, {}]
    answers = [{"type": "function_call_output", "call_id": call.call_id, "output": "it rains"} for call in calls]
    second = await client.responses.create(
        model="auto",
        input=[asked, *(call.model_dump() for call in calls), *answers],
        tools=[WEATHER],
        tool_choice="none",
    )
    assert second.output_text == "it rains"
    roles = [message["role"] for message in actor.inputs[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool"]
    async with client.responses.stream(model="auto", input=[asked], tools=[WEATHER]) as stream:
        streamed = await stream.get_final_response()
    assert [item.arguments for item in streamed.output] == [call.arguments for call in calls]


async def test_a_structured_response(client: Any, actor: Actor) -> None:
    form = {"type": "json_schema", "name": "person", "schema": {"type": "object"}, "strict": True}
    answer = await client.responses.create(model="auto", input="who", text={"format": form})
    assert json.loads(answer.output_text)["name"] == "Ada"
    assert actor.inputs[-1]["grammar"] == {"json_schema": {"type": "object"}}


@pytest.mark.parametrize("more", [{"previous_response_id": "resp_1"}, {"background": True}])
async def test_nothing_is_kept_of_a_conversation(client: Any, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="auto", input="one", **more)
    assert refused.value.code == "unsupported_parameter"


@pytest.mark.parametrize("path", ["completions", "responses", "embeddings"])
@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[]", b"{}", b'{"input": 7, "prompt": 7}', b'{"input": [{"type": 5}]}']
)
async def test_garbage_is_refused_at_every_door(http: httpx.AsyncClient, actor: Actor, path: str, body: bytes) -> None:
    answer = await http.post(f"/v1/{path}", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
