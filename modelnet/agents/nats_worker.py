"""An agent of the NATS agent protocol on the network: a capability of one worker.

An agent has no schema. Its input is `text`; its answer has `text`, and `files` for what it attaches.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import nats.errors
import structlog
from faststream import FastStream
from synadia_ai.agents import Agent, Agents, PromptEmptyError, ProtocolError, Query, ResponseChunk
from synadia_ai.agents import PayloadTooLargeError as PromptTooLarge
from synadia_ai.agents.errors import NatsAgentError, StreamStalledError

from modelnet.agents.tool_names import label
from modelnet.agents.upstream import Upstream
from modelnet.bus.connection import close, connect
from modelnet.errors import ModelnetError, Reject, UsageError
from modelnet.execution import Context
from modelnet.messages import is_capability
from modelnet.settings import Settings, settings
from modelnet.worker import Worker, worker_app

__all__ = ["CONTRACT", "AgentWorker"]

log = structlog.get_logger("nats_worker")

STALL_S = 120.0
"""An agent that says nothing for so long is given up; one that works says now and then that it does."""

CONTRACT = {
    "input": {
        "type": "object",
        "properties": {"text": {"type": "string", "minLength": 1, "description": "What the agent is told."}},
        "required": ["text"],
        "additionalProperties": False,
    },
    "output": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "All its text."},
            "files": {"type": "array", "items": {"type": "object"}, "description": "Its files, as objects."},
        },
        "required": ["text"],
    },
}
"""Of every agent."""


class AgentWorker:
    """The worker for one agent. `app` is what runs it."""

    def __init__(
        self,
        agent: str,
        *,
        capability: str | None = None,
        name: str | None = None,
        price: int = 0,
        slots: int = 16,
        stall_s: float = STALL_S,
        config: Settings | None = None,
        **upstream: Any,
    ) -> None:
        """`agent`: its session's name, `<agent>/<owner>/<session>`, its prompt subject, or the id of an instance.
        `capability`: what it is called here; else `agent.<session>`. `name`: the worker's id; else from the
        capability. `price`: micro-credits a task. `slots`: tasks at once. `stall_s`: the longest silence."""
        if capability is not None and not is_capability(capability):
            raise UsageError(f"{capability!r} is no capability: write small letters, digits, - and _, dots between")
        self._wanted, self._stall_s = agent, stall_s
        self._config = config or settings()
        self._capability, self._name, self._price = capability, name, price
        self._declared = False
        self.worker = Worker(name or "agent", slots=slots, software="nats agent", config=self._config)
        self.upstream: Upstream[_Session] = Upstream(
            self.worker, self._connect, name=f"the NATS agent {agent}", probe=_probe, **upstream
        )

    @property
    def app(self) -> FastStream:
        """The worker as a FastStream app: it finds the agent before it joins."""
        return worker_app(self.worker, before=self.upstream.open, after=self.upstream.close)

    @asynccontextmanager
    async def _connect(self, lost: Callable[[], None]) -> AsyncIterator[_Session]:
        bus = await connect(self._config, "modelnet-agent-worker")
        agents = Agents(nc=bus)
        try:
            agent = self._choose(await agents.discover())
            if not self._declared:
                self._declare(agent)
            yield _Session(agents, agent)
        finally:
            with contextlib.suppress(NatsAgentError, nats.errors.Error):
                await agents.close()
            await close(bus)

    def _choose(self, found: list[Agent]) -> Agent:
        """The agent that is meant: any instance of one. Raises `ModelnetError` if there is none, or several."""
        fitting = {one.prompt_subject: one for one in found if self._wanted in _names(one)}
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        if not fitting:
            known = ", ".join(sorted("/".join((one.agent, one.owner, one.session_name)) for one in found))
            raise ModelnetError(
                f"no NATS agent {self._wanted!r} answers; there are: {known or 'none'}", code="no_upstream"
            )
        several = ", ".join(sorted("/".join((one.agent, one.owner, one.session_name)) for one in fitting.values()))
        raise ModelnetError(f"several NATS agents are called {self._wanted!r}: {several}", code="no_upstream")

    def _declare(self, agent: Agent) -> None:
        self._declared = True
        capability = self._capability or f"agent.{label(agent.session_name or agent.agent)}"
        if self._name is None:
            self.worker.rename(capability.replace(".", "-")[:64])
        described = " ".join(agent.description.split())
        self.worker.capability(
            capability, contract=CONTRACT, price=self._price, description=described, expected_ms=5_000
        )(self._answer)
        log.info("agent_found", subject=agent.prompt_subject, capability=capability)

    async def _answer(self, ctx: Context, input: dict[str, Any]) -> AsyncIterator[str | dict[str, Any]]:
        """The agent's answer, its text as it comes."""
        texts, files = list[str](), list[dict[str, Any]]()
        try:
            stream = self.upstream.session.agent.prompt(
                input["text"], timeout=self._stall_s, max_wait_s=max(ctx.remaining_s, 0.001)
            )
            async with aclosing(stream) as messages:  # type: ignore[type-var]
                async for message in messages:
                    if isinstance(message, Query):
                        raise Reject(f"the agent asks: {message.prompt}", code="input_required", retryable=False)
                    if not isinstance(message, ResponseChunk):
                        continue
                    for one in message.attachments or ():
                        stored = await ctx.put(one.to_bytes())
                        files.append({"name": one.filename, **stored})
                    if message.text:
                        texts.append(message.text)
                        yield message.text
        except (PromptEmptyError, PromptTooLarge) as error:
            raise Reject(str(error), code="bad_input", retryable=False) from None
        except StreamStalledError as error:
            raise Reject(str(error), code="agent_stalled", retryable=True) from None
        except ProtocolError as error:
            raise self._refusal(error) from None
        except (NatsAgentError, nats.errors.Error) as error:
            self.upstream.lost()
            raise self.upstream.away(str(error) or type(error).__name__) from None
        output: dict[str, Any] = {"text": "".join(texts)}
        yield {**output, "files": files} if files else output

    def _refusal(self, error: ProtocolError) -> Reject:
        """What the agent, or the server in its place, said instead of an answer."""
        text = str(error)
        if not text.startswith("service error"):  # an empty message is the server's: nobody is subscribed
            self.upstream.lost()
            return self.upstream.away(text)
        wrong = text.startswith("service error 4")
        return Reject(text, code="bad_input" if wrong else "agent_error", retryable=not wrong)


class _Session:
    """An agent, and the connection that it was found over."""

    def __init__(self, agents: Agents, agent: Agent) -> None:
        self.agents, self.agent = agents, agent


async def _probe(session: _Session) -> None:
    await session.agent.status()


def _names(agent: Agent) -> set[str]:
    """All that an agent can be called by."""
    whole = "/".join((agent.agent, agent.owner, agent.session_name))
    return {agent.session_name, whole, agent.prompt_subject, agent.instance_id} - {""}
