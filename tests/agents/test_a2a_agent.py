"""The network as an A2A agent, with the SDK's client over JSON-RPC and REST."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import httpx
import pytest
from a2a.client import A2ACardResolver, Client, ClientCallContext, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.types.a2a_pb2 import (
    CancelTaskRequest,
    GetExtendedAgentCardRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from modelnet.agents.a2a_view import ARTIFACT, from_value, to_struct, to_value
from modelnet.messages import new_id
from tests.agents.conftest import Door, Worker, soon
from tests.network.stage import PATIENCE_S, Network

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"], scope="module"),
]


@asynccontextmanager
async def client(door: Door, binding: str, tenant: str = "default", *, streaming: bool = True) -> AsyncIterator[Client]:
    """The SDK's client, with a tenant's key."""
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {await door.key(tenant)}"} if tenant else {},
        timeout=PATIENCE_S,
        limits=httpx.Limits(max_connections=None),
    ) as http:
        config = ClientConfig(httpx_client=http, supported_protocol_bindings=[binding], streaming=streaming)
        yield await ClientFactory(config).create_from_url(door.url)


def message(*parts: Part, skill: str | None = None, **options: Any) -> Message:
    """A user's message."""
    metadata = options.pop("metadata", {}) | ({"skill": skill} if skill else {})
    options.setdefault("message_id", new_id())
    return Message(role=Role.ROLE_USER, parts=parts, metadata=to_struct(metadata), **options)


def text(said: str, skill: str | None = None, **options: Any) -> SendMessageRequest:
    """A request of one text part."""
    return SendMessageRequest(message=message(Part(text=said), skill=skill, **options))


def data(value: Any, skill: str | None = None, **options: Any) -> SendMessageRequest:
    """A request of one data part."""
    return SendMessageRequest(message=message(Part(data=to_value(value)), skill=skill, **options))


async def stream(
    net: Client, request: SendMessageRequest | SubscribeToTaskRequest, after: str | None = None
) -> list[StreamResponse]:
    """The whole answer."""
    async with asyncio.timeout(PATIENCE_S):
        return [response async for response in responses(net, request, after)]


def responses(
    net: Client, request: SendMessageRequest | SubscribeToTaskRequest, after: str | None = None
) -> AsyncGenerator[StreamResponse]:
    """The answer as it comes."""
    if isinstance(request, SendMessageRequest):
        return cast("AsyncGenerator[StreamResponse]", net.send_message(request))
    context = ClientCallContext(service_parameters={"Last-Event-ID": after}) if after else None
    return cast("AsyncGenerator[StreamResponse]", net.subscribe(request, context=context))


async def ask(net: Client, request: SendMessageRequest) -> Task:
    """The task that a client without streaming gets."""
    [response] = await stream(net, request)
    assert response.HasField("task")
    return response.task


def folded(told: list[StreamResponse], begun: Task | None = None) -> Task:
    """The task that a client has after all that it was told."""
    assert told[0].HasField("task")
    assert not any(response.HasField("task") for response in told[1:])
    task = Task()
    task.CopyFrom(told[0].task)
    if begun is not None:
        del task.artifacts[:]
        task.artifacts.extend(begun.artifacts)
    for response in told[1:]:
        if response.HasField("status_update"):
            task.status.CopyFrom(response.status_update.status)
            continue
        update = response.artifact_update
        known = [one for one in task.artifacts if one.artifact_id == update.artifact.artifact_id]
        if update.append:
            assert known, "appended to an artifact that was never sent"
            known[0].parts.extend(update.artifact.parts)
        else:
            for one in known:
                task.artifacts.remove(one)
            task.artifacts.append(update.artifact)
    return task


def texts(task: Task) -> str:
    """The text of its artifacts."""
    return "".join(part.text for artifact in task.artifacts for part in artifact.parts)


def values(task: Task) -> list[Any]:
    """The data of its artifacts."""
    return [from_value(p.data) for a in task.artifacts for p in a.parts if p.WhichOneof("content") == "data"]


def said(task: Task) -> str:
    """What its status says."""
    return "".join(part.text for part in task.status.message.parts)


# ---------------------------------------------------------------------- the card


async def test_the_card_shows_the_live_catalogue(door: Door, network: Network, binding: str) -> None:
    async with httpx.AsyncClient() as http:  # without a key
        card = await A2ACardResolver(http, door.url).get_agent_card()
        raw = await http.get(f"{door.url}/.well-known/agent-card.json")
        same = await http.get(f"{door.url}/.well-known/agent-card.json", headers={"If-None-Match": raw.headers["etag"]})
    assert {"text.upper", "text.generate", "test.slow"} <= {skill.id for skill in card.skills}
    [upper] = [skill for skill in card.skills if skill.id == "text.upper"]
    assert upper.description == "Capitals."
    assert card.capabilities.streaming
    assert not card.capabilities.push_notifications
    assert not card.capabilities.extended_agent_card
    assert raw.json()["capabilities"]["pushNotifications"] is False
    assert {(i.protocol_binding, i.protocol_version) for i in card.supported_interfaces} == {
        ("JSONRPC", "1.0"),
        ("HTTP+JSON", "1.0"),
    }
    assert card.security_schemes["key"].http_auth_security_scheme.scheme == "Bearer"
    assert "key" in card.security_requirements[0].schemes
    assert same.status_code == 304


# ---------------------------------------------------------------------- messages


async def test_text_is_for_text_generate_and_streams(door: Door, binding: str) -> None:
    async with client(door, binding) as net:
        told = await stream(net, text("count"))
        asked = await net.get_task(GetTaskRequest(id=told[0].task.id))
    assert told[0].task.status.state == TaskState.TASK_STATE_SUBMITTED
    assert told[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
    chunks = [r.artifact_update for r in told if r.HasField("artifact_update")]
    assert len(chunks) > 1, "it came at once"
    assert [chunk.append for chunk in chunks] == [False] + [True] * (len(chunks) - 1)
    assert [chunk.last_chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for task in (folded(told), asked):
        assert texts(task) == "one two"
        assert values(task) == [{"text": "one two", "finish_reason": "stop"}]
        assert task.artifacts[0].artifact_id == ARTIFACT
        assert task.status.state == TaskState.TASK_STATE_COMPLETED
        assert task.status.timestamp.seconds


async def test_a_skill_is_named_and_data_is_its_input(door: Door, binding: str) -> None:
    async with client(door, binding, streaming=False) as net:
        doubled = await ask(net, data({"number": 21}, "test.double"))
        upper = await ask(net, text("hey", "text.upper"))
        nested = await ask(net, data({"a": [1, 2.5, None, True, {"b": "c"}]}, "test.lists.items_of"))
        both = SendMessageRequest(
            message=message(Part(text="hey"), Part(data=to_value({"lang": "de"})), skill="text.upper")
        )
        mixed = await ask(net, both)
    assert values(doubled) == [{"number": 42}]
    assert texts(upper) == "HEY"
    assert values(upper) == []
    assert values(nested) == [{"tenant": "default", "input": {"a": [1, 2.5, None, True, {"b": "c"}]}}]
    assert texts(mixed) == "HEY"


async def test_metadata_says_what_may_be_paid_and_until_when(door: Door, network: Network, binding: str) -> None:
    async with client(door, binding, streaming=False) as net:
        task = await ask(net, text("hey", "text.upper", metadata={"budget": 1}))
        wrong = text("hey", "text.upper", metadata={"budget": -1})
        with pytest.raises(InvalidParamsError):
            await ask(net, wrong)
        # Of the request or of the message.
        request = text("hey")
        request.metadata.CopyFrom(to_struct({"skill": "text.upper", "deadline_s": 7.5}))
        assert texts(await ask(net, request)) == "HEY"
    assert task.status.state == TaskState.TASK_STATE_REJECTED
    assert said(task)


async def test_it_returns_at_once_if_asked_to(door: Door, worker: Worker, binding: str) -> None:
    async with client(door, binding, streaming=False) as net, client(door, binding) as other:
        request = text("x", "test.slow")
        request.configuration.CopyFrom(SendMessageConfiguration(return_immediately=True))
        task = await ask(net, request)
        assert task.status.state == TaskState.TASK_STATE_SUBMITTED
        assert await soon(worker.started) == task.id
        running = await net.get_task(GetTaskRequest(id=task.id))
        assert running.status.state == TaskState.TASK_STATE_WORKING
        assert texts(running) == "begun "
        assert said(running) == "half way"
        worker.gate.set()
        assert await soon(worker.stopped) == task.id
        ended = await at_its_end(other, task.id)
    assert texts(ended) == "begun x"


async def at_its_end(net: Client, id: str) -> Task:
    """A task at its end, whether it has come to it yet or not."""
    try:
        return folded(await stream(net, SubscribeToTaskRequest(id=id)))
    except UnsupportedOperationError:
        return await net.get_task(GetTaskRequest(id=id))


async def test_a_message_sent_again_is_the_same_task(door: Door, worker: Worker, binding: str) -> None:
    request = text("x", "test.slow", message_id=f"twice-{binding}")
    async with client(door, binding) as net:
        async with aclosing(responses(net, request)) as told:
            first = (await anext(told)).task
            await soon(worker.started)
        worker.gate.set()
        again = await stream(net, request)
        other = await stream(net, text("y", "test.slow", message_id=f"twice-{binding}"))
    assert again[0].task.id == first.id
    assert texts(folded(again)) == "begun x"
    assert other[0].task.id != first.id
    assert texts(folded(other)) == "begun y"


async def test_contexts(door: Door, binding: str) -> None:
    async with client(door, binding, streaming=False) as net:
        made = await ask(net, text("a", "text.upper"))
        kept = await ask(net, text("a", "text.upper", context_id="6f1c9a52-7a3e-4f0e-9d55-0d8a1d1b2c3d"))
        assert made.context_id
        assert kept.context_id == "6f1c9a52-7a3e-4f0e-9d55-0d8a1d1b2c3d"
        for task in (made, kept):
            assert (await net.get_task(GetTaskRequest(id=task.id))).context_id == task.context_id
        for bad in ("two words", "x" * 42, "ümlaut"):
            with pytest.raises(InvalidParamsError):
                await ask(net, text("a", "text.upper", context_id=bad))
        with pytest.raises(InvalidParamsError):  # of another context
            await ask(net, text("a", "text.upper", task_id=kept.id, context_id=made.context_id))
        with pytest.raises(UnsupportedOperationError):  # it has ended
            await ask(net, text("a", "text.upper", task_id=kept.id))
        with pytest.raises(TaskNotFoundError):
            await ask(net, text("a", "text.upper", task_id="nobody-knows"))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (text("x", "no.such.skill"), InvalidParamsError),
        (text("x", metadata={"skill": 7}), InvalidParamsError),
        (data([1, 2], "test.double"), InvalidParamsError),
        (data("text", "test.double"), InvalidParamsError),
        (text("x", "test.double"), ContentTypeNotSupportedError),
        (SendMessageRequest(message=message(Part(raw=b"x"), skill="text.upper")), ContentTypeNotSupportedError),
        (
            SendMessageRequest(message=message(Part(url="https://x.example"), skill="text.upper")),
            ContentTypeNotSupportedError,
        ),
        (
            SendMessageRequest(
                message=message(Part(text="x"), skill="text.upper"),
                configuration=SendMessageConfiguration(accepted_output_modes=["image/png"]),
            ),
            ContentTypeNotSupportedError,
        ),
        (
            SendMessageRequest(
                message=message(Part(text="x"), skill="text.upper"),
                configuration=SendMessageConfiguration(
                    task_push_notification_config=TaskPushNotificationConfig(url="https://x.example")
                ),
            ),
            PushNotificationNotSupportedError,
        ),
        (SendMessageRequest(message=message(skill="text.upper")), InvalidParamsError),
        (SendMessageRequest(), InvalidParamsError),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
async def test_requests_that_are_refused(
    door: Door, binding: str, streaming: bool, request_: SendMessageRequest, error: type[A2AError]
) -> None:
    async with client(door, binding, streaming=streaming) as net:
        with pytest.raises(error):
            await stream(net, request_)


async def test_a_task_that_fails_says_why(door: Door, binding: str) -> None:
    async with client(door, binding, streaming=False) as net:
        rejected = await ask(net, data({}, "test.reject"))
        violated = await ask(net, data({"number": "seven"}, "test.double"))
    assert rejected.status.state == TaskState.TASK_STATE_FAILED
    assert said(rejected) == "not today"
    assert violated.status.state == TaskState.TASK_STATE_REJECTED  # no worker ever had it
    assert "seven" in said(violated)


# ---------------------------------------------------------------------- cancel, disconnect, resume


async def test_cancel(door: Door, worker: Worker, binding: str) -> None:
    async with client(door, binding) as net:
        async with aclosing(responses(net, text("x", "test.slow"))) as told:
            seen = [await anext(told)]
            id = await soon(worker.started)
            cancelled = await net.cancel_task(CancelTaskRequest(id=id))
            seen += [response async for response in told]
        assert await soon(worker.stopped) == id
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
        assert seen[-1].status_update.status.state == TaskState.TASK_STATE_CANCELED
        with pytest.raises(TaskNotCancelableError):
            await net.cancel_task(CancelTaskRequest(id=id))
        with pytest.raises(TaskNotFoundError):
            await net.cancel_task(CancelTaskRequest(id="nobody-knows"))


async def test_a_client_that_goes_away_can_come_back(door: Door, worker: Worker, binding: str) -> None:
    """Its task goes on; whoever subscribes gets the task as it stands, and then what is new."""
    async with client(door, binding) as net:
        async with aclosing(responses(net, text("x", "test.slow"))) as told:
            id = (await anext(told)).task.id
            await soon(worker.started)
        async with aclosing(responses(net, SubscribeToTaskRequest(id=id))) as one:
            first = await anext(one)
            assert first.task.status.state == TaskState.TASK_STATE_WORKING
            assert texts(first.task) == "begun "
            async with aclosing(responses(net, SubscribeToTaskRequest(id=id))) as other:
                await anext(other)  # closing one stream does not end another
            worker.gate.set()
            task = folded([first, *[response async for response in one]])
        assert texts(task) == "begun x"
        assert task.status.state == TaskState.TASK_STATE_COMPLETED
        with pytest.raises(UnsupportedOperationError):
            await stream(net, SubscribeToTaskRequest(id=id))
        with pytest.raises(TaskNotFoundError):
            await stream(net, SubscribeToTaskRequest(id="nobody-knows"))


async def test_what_was_missed_is_replayed_from_any_position(door: Door, worker: Worker, binding: str) -> None:
    async with client(door, binding) as net:
        worker.gate.set()
        whole = await stream(net, text("x", "test.slow"))
        id = whole[0].task.id
        positions = [p for r in whole if (p := position(r))]
        assert positions == sorted(positions, key=lambda p: [int(n) for n in p.split(".")])
        assert len(positions) >= 4
        for place in positions:
            seen = whole[: 1 + max(n for n, r in enumerate(whole) if position(r) == place)]
            rest = await stream(net, SubscribeToTaskRequest(id=id), after=place)
            assert rest[0].HasField("task")
            assert not rest[0].task.artifacts
            assert rest[0].task.status.state not in (TaskState.TASK_STATE_COMPLETED,)
            again = [told(r) for r in rest[1:]]
            assert again == [told(r) for r in whole[len(seen) :]]
            assert folded(rest, folded(seen)).artifacts == folded(whole).artifacts
        with pytest.raises(InvalidParamsError):
            await stream(net, SubscribeToTaskRequest(id=id), after="garbage")


def position(response: StreamResponse) -> str | None:
    """Where in the task's stream an update stands."""
    kind = response.WhichOneof("payload")
    if kind not in ("status_update", "artifact_update"):
        return None
    found: str | None = from_value(getattr(response, kind).metadata).get("position")
    return found


def told(response: StreamResponse) -> Any:
    """An update without the time of day."""
    if response.HasField("artifact_update"):
        return response.artifact_update
    change = response.status_update
    return change.status.state, [part.text for part in change.status.message.parts], from_value(change.metadata)


async def test_a_hundred_streams_at_once(door: Door, worker: Worker, binding: str) -> None:
    async with client(door, binding) as net:
        asked = [asyncio.create_task(stream(net, text(str(n), "test.slow"))) for n in range(100)]
        for _ in range(100):
            await soon(worker.started)
        worker.gate.set()
        found = [folded(one) for one in await asyncio.gather(*asked)]
    assert [texts(task) for task in found] == [f"begun {n}" for n in range(100)]


# ---------------------------------------------------------------------- tasks and tenants


async def test_tasks_are_listed_the_last_changed_first(door: Door, binding: str) -> None:
    tenant = f"lister-{binding.replace('+', '-')}"
    async with client(door, binding, tenant, streaming=False) as net:
        made = [await ask(net, text(str(n), "text.upper", context_id=f"room-{n % 2}")) for n in range(5)]
        failed = await ask(net, data({}, "test.reject"))
        listed = await net.list_tasks(ListTasksRequest())
        assert [task.id for task in listed.tasks] == [task.id for task in [*made, failed][::-1]]
        assert listed.total_size == 6
        assert listed.next_page_token == ""
        assert not any(task.artifacts for task in listed.tasks)
        room = await net.list_tasks(ListTasksRequest(context_id="room-0", include_artifacts=True))
        assert [texts(task) for task in room.tasks] == ["4", "2", "0"]
        bad = await net.list_tasks(ListTasksRequest(status=TaskState.TASK_STATE_FAILED))
        assert [task.id for task in bad.tasks] == [failed.id]
        since = ListTasksRequest()
        since.status_timestamp_after.CopyFrom(listed.tasks[0].status.timestamp)
        recent = await net.list_tasks(since)
        assert [task.id for task in recent.tasks] == [failed.id]
        pages, token = list[str](), ""
        while True:
            page = await net.list_tasks(ListTasksRequest(page_size=4, page_token=token))
            pages += [task.id for task in page.tasks]
            if not (token := page.next_page_token):
                break
        assert pages == [task.id for task in listed.tasks]
        for wrong in (ListTasksRequest(page_size=101), ListTasksRequest(page_token="garbage")):
            with pytest.raises(InvalidParamsError):
                await net.list_tasks(wrong)


async def test_tenants_know_nothing_of_each_other(door: Door, worker: Worker, binding: str) -> None:
    async with client(door, binding, "owner") as ours, client(door, binding, "stranger") as theirs:
        async with aclosing(responses(ours, text("x", "test.slow"))) as told:
            id = (await anext(told)).task.id
            await soon(worker.started)
            for call in (
                theirs.get_task(GetTaskRequest(id=id)),
                theirs.cancel_task(CancelTaskRequest(id=id)),
                stream(theirs, SubscribeToTaskRequest(id=id)),
                stream(theirs, text("x", "text.upper", task_id=id)),
            ):
                with pytest.raises(TaskNotFoundError):
                    await call
            assert id not in [task.id for task in (await theirs.list_tasks(ListTasksRequest())).tasks]
            worker.gate.set()
            assert texts(folded([StreamResponse(task=Task(id=id)), *[r async for r in told]])) == "begun x"
        # The same message of another tenant is another task.
        same = text("a", "text.upper", message_id="the-same")
        assert (await stream(ours, same))[0].task.id != (await stream(theirs, same))[0].task.id


async def test_a_call_needs_a_key(door: Door, binding: str) -> None:
    async with client(door, binding, "") as net:
        with pytest.raises(A2AClientError, match="401"):
            await net.get_task(GetTaskRequest(id="x"))


async def test_what_is_not_offered_says_so(door: Door, binding: str) -> None:
    config = TaskPushNotificationConfig(task_id="x", url="https://x.example")
    async with client(door, binding) as net:
        with pytest.raises(PushNotificationNotSupportedError):
            await net.create_task_push_notification_config(config)
        # The SDK's client does not ask an agent whose card offers no other card.
        headers = {"Authorization": f"Bearer {await door.key('default')}", "A2A-Version": "1.0"}
        async with httpx.AsyncClient(headers=headers) as http:
            if binding == "JSONRPC":
                body = {"jsonrpc": "2.0", "id": 1, "method": "GetExtendedAgentCard", "params": {}}
                answer = await http.post(f"{door.url}/a2a", json=body)
                assert answer.json()["error"]["code"] == -32004
            else:
                answer = await http.get(f"{door.url}/a2a/extendedAgentCard")
                assert answer.status_code == 400
                assert "UNSUPPORTED_OPERATION" in answer.text
        assert (await net.get_extended_agent_card(GetExtendedAgentCardRequest())).name == "modelnet"
