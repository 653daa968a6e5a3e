"""An A2A agent on the network: each of its skills is a capability of one worker.

A skill has no schema. Its input is `text`, `data` or both; its answer has `text`, and `data` for what is not text. The
message's metadata names the skill as `skill`, which is how an agent of several can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import structlog
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.types.a2a_pb2 import (
    AgentCard,
    AgentSkill,
    CancelTaskRequest,
    GetTaskRequest,
    Message,
    Part,
    Role,
    SendMessageRequest,
    SubscribeToTaskRequest,
    TaskState,
)
from a2a.utils.constants import AGENT_CARD_WELL_KNOWN_PATH, TransportProtocol
from a2a.utils.errors import A2AError, InvalidParamsError, TaskNotFoundError, UnsupportedOperationError
from faststream import FastStream

from modelnet.agents.a2a_answer import Answer
from modelnet.agents.a2a_view import to_struct, to_value
from modelnet.agents.tool_names import label, labels
from modelnet.agents.upstream import Upstream, reason_of
from modelnet.attempt import Progress
from modelnet.errors import ModelnetError, Reject, UsageError
from modelnet.execution import Context
from modelnet.messages import is_capability
from modelnet.settings import Settings
from modelnet.worker import Worker, worker_app

__all__ = ["CONTRACT", "SkillWorker"]

log = structlog.get_logger("a2a_worker")

CANCEL_S = 2.0
"""Longest wait for the agent to be told that its task is cancelled."""
POLL_S = (0.2, 0.5, 1.0, 2.0)
"""Pauses between looks at a task whose stream has ended before it; the last one is repeated."""

CONTRACT = {
    "input": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What the agent is told."},
            "data": {"type": "object", "description": "What it is given beside or instead."},
            "context": {"type": "string", "description": "The agent's contextId of an earlier answer, to go on there."},
        },
        "anyOf": [{"required": ["text"]}, {"required": ["data"]}],
        "additionalProperties": False,
    },
    "output": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "All its text."},
            "data": {"type": "array", "description": "Its data parts."},
            "files": {"type": "array", "items": {"type": "object"}, "description": "Its files, by URL or as objects."},
            "context": {"type": "string", "description": "The agent's contextId."},
        },
        "required": ["text"],
    },
}
"""Of every skill."""

_REFUSED = {
    TaskState.TASK_STATE_FAILED: ("agent_failed", True),
    TaskState.TASK_STATE_REJECTED: ("agent_rejected", True),
    TaskState.TASK_STATE_CANCELED: ("agent_cancelled", True),
    TaskState.TASK_STATE_INPUT_REQUIRED: ("input_required", False),
    TaskState.TASK_STATE_AUTH_REQUIRED: ("auth_required", True),
}
"""States without an answer: the code, and whether another worker may try."""


class SkillWorker:
    """The worker for one A2A agent. `app` is what runs it."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        prefix: str | None = None,
        name: str | None = None,
        price: int = 0,
        slots: int = 16,
        config: Settings | None = None,
        **upstream: Any,
    ) -> None:
        """`url`: where its card is, with or without the well-known path. `headers`: sent with every request. `prefix`:
        what its capabilities' names begin with; else `a2a.` and the agent's name. `name`: the worker's id; else from
        the prefix. `price`: micro-credits a task. `slots`: tasks at once."""
        if prefix is not None and not is_capability(prefix):
            raise UsageError(f"{prefix!r} is no capability: write small letters, digits, - and _, with dots between")
        self._url = url.removesuffix(AGENT_CARD_WELL_KNOWN_PATH).rstrip("/")
        self._headers = dict(headers or {})
        self._prefix, self._name, self._price = prefix, name, price
        self.worker = Worker(name or "a2a", slots=slots, software="a2a", config=config)
        self.upstream: Upstream[_Agent] = Upstream(
            self.worker, self._connect, name=f"the A2A agent {self._url}", probe=_probe, **upstream
        )
        self._skills: dict[str, AgentSkill] = {}
        """By capability."""

    @property
    def app(self) -> FastStream:
        """The worker as a FastStream app: it reads the agent's card before it joins."""
        return worker_app(self.worker, before=self.upstream.open, after=self.upstream.close)

    @asynccontextmanager
    async def _connect(self, lost: Callable[[], None]) -> AsyncIterator[_Agent]:
        options: dict[str, Any] = {
            "headers": self._headers,
            "timeout": httpx.Timeout(30.0, read=None),  # a task has a deadline of its own
            "limits": httpx.Limits(max_connections=None),  # and the worker its slots
        }
        async with httpx.AsyncClient(**options) as http:
            resolver = A2ACardResolver(http, self._url)
            card = await resolver.get_agent_card()
            bindings = [TransportProtocol.JSONRPC.value, TransportProtocol.HTTP_JSON.value]
            try:
                client = ClientFactory(ClientConfig(httpx_client=http, supported_protocol_bindings=bindings)).create(
                    card
                )
            except ValueError:
                offered = ", ".join(one.protocol_binding for one in card.supported_interfaces) or "nothing"
                raise ModelnetError(f"the A2A agent {self._url} speaks {offered}, not JSON-RPC or REST") from None
            if not self._skills:
                self._declare(card)
            yield _Agent(client, resolver, streams=card.capabilities.streaming)

    def _declare(self, card: AgentCard) -> None:
        """Every skill as a capability. Raises `ModelnetError` if there is none."""
        if not card.skills:
            raise ModelnetError(f"the A2A agent {self._url} has no skills", code="no_skills")
        prefix = self._prefix or f"a2a.{label(card.name)}"
        if self._name is None:
            self.worker.rename(prefix.replace(".", "-")[:64])
        by_id = {skill.id: skill for skill in card.skills}
        for part, id in labels(sorted(by_id)).items():
            capability, skill = f"{prefix}.{part}", by_id[id]
            self._skills[capability] = skill
            described = " ".join((skill.description or skill.name).split())
            self.worker.capability(capability, contract=CONTRACT, price=self._price, description=described)(
                self._answer
            )
        log.info("skills_found", agent=self._url, capabilities=list(self._skills))

    async def _answer(self, ctx: Context, input: dict[str, Any]) -> AsyncIterator[str | Progress | dict[str, Any]]:
        """The agent's answer, its text as it comes."""
        agent, answer = self.upstream.session, Answer()
        message = Message(
            message_id=f"{ctx.tenant}-{ctx.task}-{ctx.attempt}",
            role=Role.ROLE_USER,
            context_id=input.get("context", ""),
            parts=_parts(input),
            metadata=to_struct({"skill": self._skills[ctx.capability].id}),
        )
        try:
            async with aclosing(agent.converse(SendMessageRequest(message=message), answer)) as said:
                async for one in said:
                    yield one
        except A2AError as error:
            raise self._refusal(error) from None
        except httpx.HTTPError as error:
            self.upstream.lost()
            raise self.upstream.away(reason_of(error)) from None
        finally:
            if not answer.done and answer.task is not None:  # nobody waits for it any more
                with contextlib.suppress(A2AError, httpx.HTTPError, TimeoutError):
                    async with asyncio.timeout(CANCEL_S):
                        await agent.client.cancel_task(CancelTaskRequest(id=answer.task))
        if answer.state in _REFUSED:
            code, retryable = _REFUSED[answer.state]
            raise Reject(answer.said or "the agent does not say why", code=code, retryable=retryable)
        yield await _output(ctx, answer)

    def _refusal(self, error: A2AError) -> Reject:
        if isinstance(error.__cause__, httpx.TransportError):
            self.upstream.lost()
            return self.upstream.away(reason_of(error.__cause__))
        if isinstance(error, InvalidParamsError):
            return Reject(error.message, code="bad_input", retryable=False)
        return Reject(error.message, code="agent_error", retryable=True)


class _Agent:
    """A connection to an agent."""

    def __init__(self, client: Client, resolver: A2ACardResolver, *, streams: bool) -> None:
        self.client, self.resolver, self._streams = client, resolver, streams

    async def converse(self, request: SendMessageRequest, answer: Answer) -> AsyncGenerator[str | Progress]:
        """Send a message, and follow its task to the end, even if the connection breaks on the way."""
        try:
            async with aclosing(self.client.send_message(request)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    for said in answer.read(response):
                        yield said
        except A2AClientError as error:
            if answer.task is None or not isinstance(error.__cause__, httpx.TransportError):
                raise
            log.info("stream_broken", task=answer.task, reason=reason_of(error))
        looks = 0
        while not answer.done:
            if answer.task is None:
                raise A2AClientError("the agent ended its stream and said nothing")
            async for said in self._again(answer):
                yield said
            if not answer.done:
                await asyncio.sleep(POLL_S[min(looks, len(POLL_S) - 1)])
                looks += 1

    async def _again(self, answer: Answer) -> AsyncIterator[str | Progress]:
        """What was missed, and what comes, of a task whose stream has ended before it."""
        assert answer.task is not None
        if self._streams:
            try:
                subscribed = self.client.subscribe(SubscribeToTaskRequest(id=answer.task))
                async with aclosing(subscribed) as responses:  # type: ignore[type-var]
                    async for response in responses:
                        for said in answer.read(response):
                            yield said
            except (UnsupportedOperationError, TaskNotFoundError):
                pass  # it has ended: what it is then is had by asking
        if not answer.done:
            for said in answer.resume(await self.client.get_task(GetTaskRequest(id=answer.task))):
                yield said


async def _probe(agent: _Agent) -> None:
    await agent.resolver.get_agent_card()


def _parts(input: Mapping[str, Any]) -> list[Part]:
    parts = [Part(text=input["text"])] if "text" in input else []
    if "data" in input:
        parts.append(Part(data=to_value(input["data"])))
    return parts


async def _output(ctx: Context, answer: Answer) -> dict[str, Any]:
    output: dict[str, Any] = {"text": answer.text}
    if answer.data:
        output["data"] = answer.data
    files = []
    for part in answer.parts:
        kind = part.WhichOneof("content")
        if kind in ("raw", "url"):
            media_type = part.media_type or "application/octet-stream"
            file = {"url": part.url} if kind == "url" else await ctx.put(part.raw, media_type=media_type)
            files.append({"name": part.filename, "media_type": media_type, **file})
    if files:
        output["files"] = files
    if answer.context:
        output["context"] = answer.context
    return output
