"""The network as agents of the NATS agent protocol: each capability that is served now is one that can be prompted.

A prompt that is a JSON object and keeps the capability's contract is its input; any other prompt is the one text that
the contract takes. `budget`, `deadline_s` and `priority` beside the prompt are the task's. Text comes as it is made,
any other output as JSON at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import nats.errors
import structlog
from nats.aio.msg import Msg
from synadia_ai.agent_service import AgentService, PromptStream, RequestRejectedError
from synadia_ai.agents import Envelope, StatusChunk
from synadia_ai.agents.messages import encode_chunk

from modelnet.bus.connection import unsubscribe
from modelnet.bus.services import endpoint_name
from modelnet.cancellation import heeding_cancellation
from modelnet.client import Client
from modelnet.contracts import check, compile_schema
from modelnet.errors import BusFull, MalformedInput, ModelnetError, TooLarge
from modelnet.handle import TaskHandle
from modelnet.messages import Contract, Final
from modelnet.presence import Presence

__all__ = ["AGENT", "Agents", "as_input", "text_slot"]

log = structlog.get_logger("nats_agents")

AGENT = "modelnet"
"""The kind of agent: `agents.prompt.modelnet.<owner>.<capability>`, the dots of a capability as `-`."""
HEARTBEAT_S = 30
PROMPTS_AT_ONCE = 256
LOOK_S = 2.0
"""Between looks whether the caller is still there: the protocol has no word for its leaving."""
CANCEL_S = 2.0

_TEXTS = ("prompt", "text")
_OPTIONS = ("budget", "deadline_s", "priority")
_CODES = {
    "contract_violation": 400,
    "malformed": 400,
    "too_large": 413,
    "no_funds": 402,
    "over_budget": 402,
    "unknown_capability": 404,
    "expired": 408,
    "cancelled": 409,
    "bus_full": 503,
    "no_acceptable_bid": 503,
}
"""Errors of a task as those of the protocol; any other is 500."""


class Agents:
    """Registers an agent for each capability, and lets go of it when nobody serves that any more.

    `async with Agents(net, presence):` the agents answer while it lasts.
    """

    def __init__(
        self,
        client: Client,
        presence: Presence,
        *,
        heartbeat_s: int = HEARTBEAT_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._client, self._presence = client, presence
        self._heartbeat_s, self._look_s = heartbeat_s, look_s
        self._serving: dict[str, tuple[Contract, AgentService]] = {}
        """By name of the session."""
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        changes = self._presence.changes()
        waiting = asyncio.ensure_future(anext(changes))  # before the first look: what changes meanwhile is not missed
        await self._follow()
        self._keeper = asyncio.create_task(self._keep(changes, waiting))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        for _, service in self._serving.values():
            await _stop(service)
        self._serving.clear()

    async def _keep(self, changes: AsyncIterator[None], waiting: asyncio.Future[None]) -> None:
        async with aclosing(changes):  # type: ignore[type-var]
            await waiting
            while True:
                await self._follow()
                await anext(changes)

    async def _follow(self) -> None:
        """Be the agents that the network is now."""
        wanted: dict[str, Contract] = {}
        for contract in self._presence.contracts:
            wanted[endpoint_name(contract.capability, wanted)] = contract
        for name, (contract, service) in list(self._serving.items()):
            if wanted.get(name) != contract:
                del self._serving[name]
                await _stop(service)
        for name, contract in wanted.items():
            if name not in self._serving:
                self._serving[name] = contract, await self._start(name, contract)

    async def _start(self, name: str, contract: Contract) -> AgentService:
        service = AgentService(
            agent=AGENT,
            owner=self._client.settings.owner.lower(),
            session_name=name,
            nc=self._client.bus,
            description=contract.description or contract.capability,
            heartbeat_interval_s=self._heartbeat_s,
            attachments_ok=False,
            extra_metadata={"capability": contract.capability, "contract": contract.digest},
            max_concurrent_prompts=PROMPTS_AT_ONCE,
        )

        async def answer(envelope: Envelope, stream: PromptStream) -> None:
            await self._answer(contract, envelope, stream)

        service.on_prompt(answer)
        await service.start()
        log.info("agent_registered", capability=contract.capability, subject=service.subject.prompt)
        return service

    # ------------------------------------------------------------------ a prompt

    async def _answer(self, contract: Contract, envelope: Envelope, stream: PromptStream) -> None:
        value = as_input(contract, envelope.prompt)
        options = {key: value for key, value in envelope.extras.items() if key in _OPTIONS}
        capability = contract.capability
        try:
            task = await self._client.submit(
                capability,
                value,
                contract=self._presence.pinned(capability) if self._presence.contract(capability) else None,
                cancel_on_disconnect=True,
                **options,  # type: ignore[arg-type]  # checked there
            )
        except (MalformedInput, TooLarge, BusFull) as error:
            raise _rejected(error.wire_code, error.message) from None
        watching = asyncio.create_task(self._watch(task, stream))
        try:
            await _stream(task, stream)
        except BaseException:
            with contextlib.suppress(ModelnetError, TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await task.cancel()
            raise
        finally:
            watching.cancel()

    async def _watch(self, task: TaskHandle, stream: PromptStream) -> None:
        """Cancel the task once nobody hears its answer."""
        subject = stream._request._msg.reply  # the package has no other way to it
        bus, inbox = self._client.bus, self._client.bus.new_inbox()
        gone = asyncio.Event()

        async def hear(msg: Msg) -> None:
            if (msg.headers or {}).get("Status") == "503":
                gone.set()

        sub = await bus.subscribe(inbox, cb=hear)
        try:
            while not gone.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s):
                        await gone.wait()
                if bus.is_connected and not gone.is_set():
                    # An ack, which callers take as a sign of life; the server says if there is no caller.
                    await bus.publish(subject, encode_chunk(StatusChunk(status="ack")), reply=inbox)
            log.info("caller_gone", task=task.id)
            with contextlib.suppress(ModelnetError):
                await task.cancel()
        finally:
            await unsubscribe(sub)


async def _stream(task: TaskHandle, stream: PromptStream) -> None:
    """A task's text as it comes, and what else its output says at the end."""
    sent = ""
    async with aclosing(task.stream()) as events:
        async for event in events:
            if isinstance(event, Final):
                break
            # An attempt may begin anew. What was sent cannot be taken back: only if it is said again does it go on.
            text = task.text
            if text.startswith(sent):
                if len(text) > len(sent):
                    await stream.send(text[len(sent) :])
                    sent = text
            elif not sent.startswith(text):
                raise RequestRejectedError(503, "the answer broke off and began anew with other words: prompt again")
        else:
            raise RequestRejectedError(500, "the task's stream has no end")
    if event.status != "completed":
        code, message = (event.error.code, event.error.message) if event.error else (event.status, "")
        raise _rejected(code, message or event.status)
    await _send_rest(event.output or {}, sent, stream)


async def _send_rest(output: Mapping[str, Any], sent: str, stream: PromptStream) -> None:
    text = output.get("text")
    if isinstance(text, str) and (sent or len(output) == 1):
        if not text.startswith(sent):
            raise RequestRejectedError(503, "the answer is not what was streamed of it: prompt again")
        if len(text) > len(sent):
            await stream.send(text[len(sent) :])
    elif not sent:
        await stream.send(json.dumps(output, ensure_ascii=False))


def as_input(contract: Contract, prompt: str) -> dict[str, Any]:
    """The input that a prompt stands for. Raises `RequestRejectedError` if it is none."""
    validator = compile_schema(contract.input)
    if prompt.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            value: dict[str, Any] = json.loads(prompt)
            if check(validator, value) is None:
                return value
    slot = text_slot(contract.input)
    if slot is None:
        raise RequestRejectedError(400, f"{contract.capability}: {_wrong(validator, prompt)}")
    if (wrong := check(validator, {slot: prompt})) is not None:
        raise RequestRejectedError(400, f"{contract.capability}: {wrong}")
    return {slot: prompt}


def _wrong(validator: Any, prompt: str) -> str:
    """Why a prompt is no input where no text can be one."""
    try:
        value = json.loads(prompt)
    except ValueError:
        return "the prompt must be a JSON object that keeps the contract"
    return check(validator, value) or "the prompt must be a JSON object"


def text_slot(schema: Mapping[str, Any]) -> str | None:
    """The property of an input that a plain text can be: `prompt`, `text`, or the only one that is required."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    texts = [name for name, one in properties.items() if isinstance(one, Mapping) and one.get("type") == "string"]
    named = next((name for name in _TEXTS if name in texts), None)
    required = schema.get("required", [])
    if named is not None and set(required) <= {named}:
        return named
    return required[0] if len(required) == 1 and required[0] in texts else None


def _rejected(code: str, message: str) -> RequestRejectedError:
    return RequestRejectedError(_CODES.get(code, 500), f"{code}: {message}")


async def _stop(service: AgentService) -> None:
    with contextlib.suppress(nats.errors.Error):  # without a server it has stopped already
        await heeding_cancellation(service.stop())
