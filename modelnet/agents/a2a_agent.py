"""The network as an A2A agent: what its operations do, whatever transport they come by.

It keeps nothing: a task's state is what the journal says, so any process with this answers for any task.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import NoReturn

from a2a.auth.user import User
from a2a.server.context import ServerCallContext
from a2a.server.events import Event
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.types.a2a_pb2 import (
    AgentCard,
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTaskPushNotificationConfigsResponse,
    ListTasksRequest,
    ListTasksResponse,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
)
from a2a.utils.constants import DEFAULT_LIST_TASKS_PAGE_SIZE, MAX_LIST_TASKS_PAGE_SIZE
from a2a.utils.errors import (
    A2AError,
    InternalError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from pydantic import ValidationError

from modelnet.agents.a2a_request import asked, context_of
from modelnet.agents.a2a_view import View, position_of
from modelnet.agents.caller import Caller
from modelnet.bus import subjects
from modelnet.bus.replay import read_all
from modelnet.client import Client
from modelnet.errors import MalformedInput, ModelnetError, TooLarge, UnknownTask
from modelnet.following import Following
from modelnet.handle import TaskHandle
from modelnet.messages import CancelAsked, Final, JournalEntry, decode_entry
from modelnet.presence import Presence
from modelnet.reader import Position

__all__ = ["Agent", "KnownUser", "tenant_of"]

CANCEL_S = 5.0
"""Longest wait for a task to end that was asked to be cancelled; then the answer says how it stands."""
RESUME_HEADER = "last-event-id"
"""Header of a subscription that names the last `position` that was seen."""


class KnownUser(User):
    """The SDK's word for who calls."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    @property
    def is_authenticated(self) -> bool:
        """They were let in."""
        return True

    @property
    def user_name(self) -> str:
        """The tenant."""
        return self.caller.tenant


def tenant_of(context: ServerCallContext) -> str:
    """Whose call it is. Raises `InvalidParamsError` for one that names another's tenant."""
    tenant = context.user.user_name
    if context.tenant and context.tenant != tenant:
        raise InvalidParamsError(f"this key is not of the tenant {context.tenant[:64]!r}")
    return tenant


@dataclass(slots=True)
class _Seen:
    """What is stored of a task."""

    view: View
    place: Position | None
    """Of its last event."""


class Agent(RequestHandler):
    """The operations. A call's user is a `KnownUser`."""

    def __init__(self, client: Client, presence: Presence) -> None:
        self._client, self._presence = client, presence
        self._counting: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ messages

    @validate_request_params
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task:
        """Publish the task and return it: once it has ended, unless the client asked for it at once."""
        handle, view = await self._submit(params, context)
        if params.configuration.return_immediately:
            return view.task()
        async with aclosing(self._updates(handle, view)) as updates:
            async for _ in updates:
                pass
        return view.task()

    @validate_request_params
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """Publish the task, and tell of it until it has ended. A client that goes away does not end it."""
        handle, view = await self._submit(params, context)
        yield view.task()
        async with aclosing(self._updates(handle, view)) as updates:
            async for update in updates:
                yield update

    async def _submit(self, params: SendMessageRequest, context: ServerCallContext) -> tuple[TaskHandle, View]:
        tenant = tenant_of(context)
        if params.configuration.HasField("task_push_notification_config"):
            raise PushNotificationNotSupportedError
        if params.message.task_id:
            await self._refuse_follow_up(params, tenant)
        wanted = asked(params, tenant, self._presence.contract)
        try:
            handle = await self._client.submit(
                wanted.capability,
                wanted.input,
                id=wanted.id,
                tenant=tenant,
                contract=self._presence.pinned(wanted.capability),
                **wanted.options,
            )
        except ModelnetError as error:
            _raise(error)
        if isinstance(context.user, KnownUser) and (count := context.user.caller.count) is not None:
            # A task goes on without its client, and is counted all the same.
            self._counting.add(counting := asyncio.create_task(self._count(tenant, wanted.id, count)))
            counting.add_done_callback(self._counting.discard)
        return handle, View(wanted.id, wanted.context)

    async def _count(self, tenant: str, id: str, count: Callable[[Final], None]) -> None:
        with contextlib.suppress(ModelnetError):
            count(await self._client.task(id, tenant=tenant).final())

    async def _refuse_follow_up(self, params: SendMessageRequest, tenant: str) -> NoReturn:
        """A task here is one question and its answer."""
        message = params.message
        await self._seen(tenant, message.task_id)
        if message.context_id and message.context_id != context_of(message.task_id):
            raise InvalidParamsError(f"the task {message.task_id!r} is of another context")
        raise UnsupportedOperationError("a task takes no further messages: send one without a taskId")

    async def _updates(self, handle: TaskHandle, view: View, after: Position | None = None) -> AsyncGenerator[Event]:
        try:
            async with aclosing(handle.stream(resume_after=after)) as events:
                async for event in events:
                    for update in view.read(event):
                        yield update
        except ModelnetError as error:
            _raise(error)

    # ------------------------------------------------------------------ tasks

    @validate_request_params
    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task:
        """A task as it stands, the text so far with it."""
        return (await self._seen(tenant_of(context), params.id)).view.task()

    async def _seen(self, tenant: str, id: str) -> _Seen:
        """Raises `TaskNotFoundError`."""
        following = Following(self._client.bus, tenant, _checked(id))
        view = View(id, context_of(id))
        try:
            events = await following.fill()
            at = await self._changed_at(tenant, id)
            for event in events:
                if isinstance(event, Final) and event.output_ref is not None:
                    event = await self._client.task(id, tenant=tenant).final()
                view.read(event, at)
        except ModelnetError as error:
            _raise(error)
        reader = following.reader
        return _Seen(view, Position(reader.attempt, reader.position) if reader.attempt else None)

    async def _changed_at(self, tenant: str, id: str) -> float | None:
        last = None
        async for stored in read_all(self._client.bus, "JOURNAL", subjects.journal_of(tenant, id)):
            last = stored.time
        return last

    @validate_request_params
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task:
        """Ask for it, and return the task once it has ended."""
        tenant = tenant_of(context)
        try:
            if not await self._client.cancel(_checked(params.id), tenant=tenant):
                raise TaskNotCancelableError("the task has ended")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await self._client.task(params.id, tenant=tenant).final()
        except ModelnetError as error:
            _raise(error)
        return (await self._seen(tenant, params.id)).view.task()

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """The task as it stands, then what is new. A client that names the last `position` that it saw gets the task
        without its artifacts, then all that it missed, even if the task has ended meanwhile."""
        tenant = tenant_of(context)
        named = context.state.get("headers", {}).get(RESUME_HEADER)
        after = position_of(named) if named is not None else None
        if named is not None and after is None:
            raise InvalidParamsError(f"Last-Event-ID {named[:64]!r} is no position of an update")
        seen = await self._seen(tenant, params.id)
        if after is None and seen.view.ended:
            raise UnsupportedOperationError("the task has ended: get it instead")
        if after is not None:
            seen.view.rewind(after)
        yield seen.view.task(artifacts=after is None)
        handle = self._client.task(params.id, tenant=tenant)
        async with aclosing(self._updates(handle, seen.view, after or seen.place)) as updates:
            async for update in updates:
                yield update

    @validate_request_params
    async def on_list_tasks(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        """The tenant's tasks, the last changed first."""
        tenant = tenant_of(context)
        since = (
            params.status_timestamp_after.ToMicroseconds() / 1e6 if params.HasField("status_timestamp_after") else None
        )
        found = await self._listed(tenant, since)
        chosen = sorted(found.values(), key=lambda one: (one.at, one.id), reverse=True)
        if params.context_id:
            chosen = [one for one in chosen if context_of(one.id) == params.context_id]
        if params.status:
            chosen = [one for one in chosen if one.view.task(artifacts=False).status.state == params.status]
        total, size = len(chosen), _page_size(params)
        if params.page_token:
            at, id = _read_token(params.page_token)
            chosen = [one for one in chosen if (one.at, one.id) < (at, id)]
        page = chosen[:size]
        tasks = [
            (await self._seen(tenant, one.id)).view.task()
            if params.include_artifacts
            else one.view.task(artifacts=False)
            for one in page
        ]
        token = _token(page[-1].at, page[-1].id) if len(chosen) > size else ""
        return ListTasksResponse(tasks=tasks, next_page_token=token, page_size=size, total_size=total)

    async def _listed(self, tenant: str, since: float | None) -> dict[str, _Listed]:
        found: dict[str, _Listed] = {}
        journal = read_all(self._client.bus, "JOURNAL", subjects.journal(tenant, "*", "*"), since=since)
        async for stored in journal:
            with contextlib.suppress(ValidationError):
                entry: JournalEntry = decode_entry(stored.body)
                if not isinstance(entry, CancelAsked):
                    one = found.setdefault(entry.task, _Listed(entry.task, View(entry.task, context_of(entry.task))))
                    one.at = stored.time
                    one.view.read(entry, stored.time)
        async for stored in read_all(self._client.bus, "TASKS", f"task.*.*.{tenant}.>", since=since):
            id = stored.subject.split(".", 5)[4]
            found.setdefault(id, _Listed(id, View(id, context_of(id)), stored.time))
        return found

    # ------------------------------------------------------------------ not offered

    async def on_create_task_push_notification_config(
        self, params: TaskPushNotificationConfig, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        """Not offered."""
        raise PushNotificationNotSupportedError

    async def on_get_task_push_notification_config(
        self, params: GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        """Not offered."""
        raise PushNotificationNotSupportedError

    async def on_list_task_push_notification_configs(
        self, params: ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> ListTaskPushNotificationConfigsResponse:
        """Not offered."""
        raise PushNotificationNotSupportedError

    async def on_delete_task_push_notification_config(
        self, params: DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """Not offered."""
        raise PushNotificationNotSupportedError

    async def on_get_extended_agent_card(
        self, params: GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> AgentCard:
        """Not offered."""
        raise UnsupportedOperationError("there is no card but the public one")


@dataclass(slots=True)
class _Listed:
    id: str
    view: View
    at: float = 0.0


def _checked(id: str) -> str:
    """A task's id: one that no subject could carry is nobody's."""
    if not 1 <= len(id) <= 64 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in id):
        raise TaskNotFoundError
    return id


def _raise(error: ModelnetError) -> NoReturn:
    if isinstance(error, UnknownTask):
        raise TaskNotFoundError from None
    kind: type[A2AError] = InvalidParamsError if isinstance(error, MalformedInput | TooLarge) else InternalError
    raise kind(error.message, {"code": error.wire_code}) from None


def _page_size(params: ListTasksRequest) -> int:
    size = params.page_size or DEFAULT_LIST_TASKS_PAGE_SIZE
    if not 1 <= size <= MAX_LIST_TASKS_PAGE_SIZE:
        raise InvalidParamsError(f"a page has 1 to {MAX_LIST_TASKS_PAGE_SIZE} tasks, not {size}")
    return size


def _token(at: float, id: str) -> str:
    return base64.urlsafe_b64encode(f"{at!r} {id}".encode()).decode()


def _read_token(token: str) -> tuple[float, str]:
    try:
        at, id = base64.urlsafe_b64decode(token).decode().split(" ")
        return float(at), id
    except (binascii.Error, ValueError):
        raise InvalidParamsError("this is no page token of ours") from None
