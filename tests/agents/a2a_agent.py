"""An A2A agent with awkward skills, on the SDK's own server."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Self

import uvicorn
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Message,
    Part,
    Role,
    Task,
    TaskState,
    TaskStatus,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from modelnet.agents.a2a_view import from_value, to_value

SKILLS = ("Echo Text", "data", "wait", "fail", "reject", "ask", "message", "file", "drop")


class Executor(AgentExecutor):
    """What the skills do."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.gate = asyncio.Event()
        self.metadata: list[dict[str, Any]] = []

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer."""
        assert context.message is not None
        assert context.task_id is not None
        assert context.context_id is not None
        said = from_value(context.message.metadata)
        self.metadata.append(said)
        text = context.get_user_input()
        updater = TaskUpdater(event_queue, context.task_id, context.context_id)
        if said["skill"] == "message":
            parts = [Part(text=f"you said {text}")]
            await event_queue.enqueue_event(
                Message(message_id="m", role=Role.ROLE_AGENT, parts=parts, context_id=context.context_id)
            )
            return
        await event_queue.enqueue_event(
            Task(
                id=context.task_id,
                context_id=context.context_id,
                status=TaskStatus(state=TaskState.TASK_STATE_SUBMITTED),
            )
        )
        await updater.start_work(updater.new_agent_message([Part(text="working")]))
        match said["skill"]:
            case "Echo Text":
                for number, word in enumerate(text.split(" ")):
                    await updater.add_artifact([Part(text=word + " ")], artifact_id="words", append=number > 0)
                await updater.complete()
            case "data":
                [given] = [p.data for p in context.message.parts if p.WhichOneof("content") == "data"]
                await updater.add_artifact([Part(text="here"), Part(data=given), Part(data=to_value([1, 2.5]))])
                await updater.complete()
            case "wait" | "drop":
                await updater.add_artifact([Part(text="begun ")], artifact_id="words")
                self.waiting.put_nowait(context.task_id)
                await self.gate.wait()
                await updater.add_artifact([Part(text=text)], artifact_id="words", append=True)
                await updater.complete()
            case "fail":
                await updater.failed(updater.new_agent_message([Part(text="no way")]))
            case "reject":
                await updater.reject(updater.new_agent_message([Part(text="not mine")]))
            case "ask":
                await updater.requires_input(updater.new_agent_message([Part(text="which one?")]))
            case "file":
                await updater.add_artifact(
                    [Part(raw=b"\x00\x01", media_type="image/x", filename="a.x"), Part(url="https://x.example/b")]
                )
                await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Say so."""
        assert context.task_id is not None
        assert context.context_id is not None
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()
        self.cancelled.put_nowait(context.task_id)


class _Guarded:
    """Asks for a key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and Request(scope).headers.get("x-key") != "secret":
            await Response("no key", status_code=401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Agent:
    """The agent on a port of this machine, which it keeps when it goes and comes back."""

    def __init__(self, *, streaming: bool = True, binding: str = "JSONRPC", skills: tuple[str, ...] = SKILLS) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.executor = Executor()
        self._store = InMemoryTaskStore()
        self.card = AgentCard(
            name="Odd Agent",
            description="An agent for tests.",
            version="1",
            supported_interfaces=[AgentInterface(url=self.url, protocol_binding=binding, protocol_version="1.0")],
            capabilities=AgentCapabilities(streaming=streaming),
            default_input_modes=["text/plain"],
            default_output_modes=["text/plain"],
            skills=[AgentSkill(id=one, name=one, description=f"Does {one}.", tags=["test"]) for one in skills],
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Answer, or again."""
        handler = DefaultRequestHandler(self.executor, self._store, self.card)
        routes = [
            *create_agent_card_routes(self.card),
            *create_jsonrpc_routes(handler, "/"),
            *create_rest_routes(handler),
        ]
        listening = socket.create_server(("127.0.0.1", self.port))
        app = _Guarded(Starlette(routes=routes))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0))
        self._serving = asyncio.create_task(self._server.serve([listening]))

    async def stop(self) -> None:
        """Go, and cut every connection."""
        self._server.should_exit = True
        await self._serving

    async def cut(self) -> None:
        """Cut every connection, and serve on."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
