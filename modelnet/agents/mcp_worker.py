"""An MCP server on the network: each of its tools is a capability of one worker. Started as a command, or at a URL.

The contract of a capability is the tool's schemas. A tool without an output schema answers with `text` and `content`.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
import structlog
from faststream import FastStream
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS, CallToolResult, Implementation, TextContent, Tool

from modelnet import __version__
from modelnet.agents.tool_names import label, labels
from modelnet.agents.upstream import Upstream, reason_of
from modelnet.attempt import Progress
from modelnet.contracts import load_contract
from modelnet.errors import ModelnetError, Reject, UsageError
from modelnet.execution import Context
from modelnet.messages import Contract, is_capability
from modelnet.settings import Settings
from modelnet.worker import Worker, worker_app

__all__ = ["McpServer", "ToolWorker"]

log = structlog.get_logger("mcp_worker")

LARGEST = 64 << 20
"""Bytes of one answer of a server at a URL."""
PROGRESS_KEPT = 256
"""Progress notifications that wait to be passed on; of more the oldest are dropped."""
GIVE_UP_S = 2.0
"""Longest wait for a server to be told that its call is cancelled."""

CONTENT = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "description": "The text blocks of the answer, one a line."},
        "content": {"type": "array", "items": {"type": "object"}, "description": "The blocks as MCP has them."},
    },
    "required": ["text", "content"],
}
"""What a tool answers that has no output schema."""


@dataclass(frozen=True, slots=True)
class McpServer:
    """Where an MCP server is: a command that is started, or a URL of streamable HTTP."""

    command: tuple[str, ...] = ()
    url: str = ""
    headers: Mapping[str, str] | None = None
    """Sent with every request to the URL."""
    env: Mapping[str, str] | None = None
    """For the command, beside what MCP lets through: PATH, HOME, …"""

    @property
    def name(self) -> str:
        """What people call it in errors."""
        return f"the MCP server {self.url or shlex.join(self.command)}"

    def transport(self) -> AbstractAsyncContextManager[Any]:
        """A connection to it."""
        if self.url:
            return _over_http(self.url, self.headers or {})
        program, *arguments = self.command
        env = dict(self.env) if self.env is not None else None
        return stdio_client(StdioServerParameters(command=program, args=arguments, env=env))


@asynccontextmanager
async def _over_http(url: str, headers: Mapping[str, str]) -> AsyncIterator[Any]:
    options: dict[str, Any] = {
        "headers": dict(headers),
        "timeout": httpx2.Timeout(30.0, read=None),  # a task has a deadline of its own
        "limits": httpx2.Limits(max_connections=None),  # and the worker its slots
        "follow_redirects": True,
    }
    async with (
        httpx2.AsyncClient(**options) as http,
        streamable_http_client(url, http_client=http, max_sse_event_size=LARGEST) as streams,
    ):
        yield streams


class ToolWorker:
    """The worker for one MCP server. `app` is what runs it."""

    def __init__(
        self,
        server: McpServer,
        *,
        prefix: str | None = None,
        name: str | None = None,
        price: int = 0,
        slots: int = 16,
        config: Settings | None = None,
        **upstream: Any,
    ) -> None:
        """`prefix`: what its capabilities' names begin with; else `mcp.` and the server's name. `name`: the worker's
        id; else from the prefix. `price`: micro-credits a call. `slots`: calls at once."""
        if prefix is not None and not is_capability(prefix):
            raise UsageError(f"{prefix!r} is no capability: write small letters, digits, - and _, with dots between")
        self._server, self._prefix, self._name, self._price = server, prefix, name, price
        self.worker = Worker(name or "mcp", slots=slots, software="mcp", config=config)
        probe = _list_tools if server.url else None
        self.upstream: Upstream[Client] = Upstream(
            self.worker, self._connect, name=server.name, probe=probe, **upstream
        )
        self._tools: dict[str, Tool] = {}
        """By capability."""

    @property
    def app(self) -> FastStream:
        """The worker as a FastStream app: it starts or reaches the server before it joins."""
        return worker_app(self.worker, before=self.upstream.open, after=self.upstream.close)

    @asynccontextmanager
    async def _connect(self, lost: Callable[[], None]) -> AsyncIterator[Client]:
        info = Implementation(name="modelnet", version=__version__)
        transport = _Watched(self._server.transport(), lost)
        async with Client(transport, client_info=info, cache=None) as client:
            tools = await _list_tools(client)
            if not self._tools:
                self._declare(client, tools)
            elif missing := {tool.name for tool in self._tools.values()} - {tool.name for tool in tools}:
                log.warning("tools_missing", server=self._server.name, tools=sorted(missing))
            yield client

    def _declare(self, client: Client, tools: Sequence[Tool]) -> None:
        """Every tool as a capability. Raises `ModelnetError` if there is none."""
        called = client.server_info.name if client.server_info is not None else "server"
        prefix = self._prefix or f"mcp.{label(called)}"
        if self._name is None:
            self.worker.rename(prefix.replace(".", "-")[:64])
        by_name = {tool.name: tool for tool in tools}
        for part, tool_name in labels(sorted(by_name)).items():
            tool = by_name[tool_name]
            capability = f"{prefix}.{part}"
            try:
                contract = _contract(capability, tool)
            except UsageError as error:
                log.warning("tool_left_out", tool=tool_name, reason=error.message)
                continue
            self._tools[capability] = tool
            self.worker.capability(capability, contract=contract, price=self._price)(self._answer)
        if not self._tools:
            usable = " with usable schemas" if tools else ""
            raise ModelnetError(f"{self._server.name} has no tools{usable}", code="no_tools")
        log.info("tools_found", server=self._server.name, capabilities=list(self._tools))

    async def _answer(self, ctx: Context, input: dict[str, Any]) -> AsyncIterator[Progress | dict[str, Any]]:
        """A call of the tool."""
        tool, client = self._tools[ctx.capability], self.upstream.session
        said: asyncio.Queue[Progress | None] = asyncio.Queue()

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            if said.qsize() >= PROGRESS_KEPT:
                said.get_nowait()
            fraction = min(max(progress / total, 0.0), 1.0) if total else None
            said.put_nowait(Progress(fraction, message))

        calling = asyncio.create_task(client.call_tool(tool.name, input, progress_callback=on_progress))
        calling.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (step := await said.get()) is not None:
                yield step
            yield _output(tool, calling.result())
        except MCPError as error:
            raise self._refusal(error) from None
        except httpx2.HTTPError as error:
            self.upstream.lost()
            raise self.upstream.away(reason_of(error)) from None
        finally:
            if not calling.done():
                calling.cancel()  # the server is told
                await asyncio.wait({calling}, timeout=GIVE_UP_S)

    def _refusal(self, error: MCPError) -> Reject:
        if error.code == CONNECTION_CLOSED:
            self.upstream.lost()
            return self.upstream.away("it ended during the call")
        if error.code == INVALID_PARAMS:
            return Reject(error.message, code="bad_input", retryable=False)
        return Reject(f"{error.message} ({error.code})", code="tool_failed", retryable=True)


class _Watched:
    """A transport that says when its other side has ended."""

    def __init__(self, inner: AbstractAsyncContextManager[Any], lost: Callable[[], None]) -> None:
        self._inner, self._lost = inner, lost

    async def __aenter__(self) -> tuple[Any, Any]:
        reading, writing = await self._inner.__aenter__()
        return _WatchedStream(reading, self._lost), writing

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, error, trace)


class _WatchedStream:
    """What is read from a transport, and that it has ended."""

    def __init__(self, inner: Any, lost: Callable[[], None]) -> None:
        self._inner, self._lost = inner, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._lost()
        ended: bool | None = await self._inner.__aexit__(kind, error, trace)
        return ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._inner.__anext__()


async def _list_tools(client: Client) -> list[Tool]:
    """All pages."""
    found: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        if page.next_cursor is None or not page.tools:
            return found
        cursor = page.next_cursor


def _contract(capability: str, tool: Tool) -> Contract:
    """Raises `UsageError` for schemas that are none."""
    output = tool.output_schema
    if output is None:
        output = CONTENT
    elif output.get("type") != "object":
        inner = {key: value for key, value in output.items() if key != "$defs"}
        output = {"type": "object", "properties": {"result": inner}, "required": ["result"]}
        if "$defs" in (tool.output_schema or {}):
            output["$defs"] = (tool.output_schema or {})["$defs"]
    contract = load_contract(capability, {"input": tool.input_schema, "output": output})
    described = " ".join((tool.description or tool.title or tool.name).split())
    return contract.model_copy(update={"description": described})


def _output(tool: Tool, result: CallToolResult) -> dict[str, Any]:
    """The answer of a call. Raises `Reject` for one that says that it failed."""
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    if result.is_error:
        raise Reject(text or "the tool failed", code="tool_error", retryable=False)
    if tool.output_schema is None:
        blocks = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]
        return {"text": text, "content": blocks}
    if tool.output_schema.get("type") != "object":
        return {"result": result.structured_content}
    if not isinstance(result.structured_content, dict):
        raise Reject("the tool has an output schema and gave no structured content", code="bad_output", retryable=True)
    return result.structured_content
