"""The network as an MCP server: each capability that is served now is a tool, with its contract as schemas.

A call is a task: what it streams becomes progress, its end the result, and a call that is cancelled or whose client is
gone cancels it. Over standard input and output, or streamable HTTP, where `Tools.server` is mounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    NotificationParams,
    PaginatedRequestParams,
    TextContent,
    Tool,
)

from modelnet import __version__
from modelnet.agents.caller import Caller
from modelnet.agents.tool_names import capability_named, tool_name
from modelnet.client import Client
from modelnet.errors import MalformedInput, ModelnetError, TooLarge
from modelnet.handle import TaskHandle
from modelnet.messages import Contract, Delta, Final, Progress, Reset
from modelnet.presence import Presence
from modelnet.reader import StreamEvent

__all__ = ["META", "CallerOf", "Gauge", "Tools", "serve_stdio"]

log = structlog.get_logger("mcp")

META = "modelnet/"
"""Begins the names of what the protocol has no field for, in the `_meta` of calls and results."""

PAGE = 100
"""Tools in one answer to `tools/list`."""
CANCEL_S = 5.0
"""A cancel is tried for this long after its call was cancelled."""

_OPTIONS = ("budget", "deadline_s", "priority", "value", "min_quality", "strategy", "require", "exclude")
_NUDGE = 1e-6

CallerOf = Callable[[ServerRequestContext[Any, Any]], Caller]
"""Whose task a call is."""


class _Server(Server[Any]):
    """A server that says that its tools change, to clients of the handshake protocols too."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        chosen = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(chosen, experimental_capabilities, extensions)


class Tools:
    """The tools, and the MCP server that offers them."""

    def __init__(self, client: Client, presence: Presence, *, caller_of: CallerOf | None = None) -> None:
        """`caller_of`: who pays for a call; else the client's own tenant."""
        self._client, self._presence = client, presence
        self._caller_of = caller_of or (lambda _: Caller(client.settings.tenant))
        self._changed = InMemorySubscriptionBus()
        self._listening = ListenHandler(self._changed)
        self._cancels: set[asyncio.Future[None]] = set()
        """Cancels of tasks whose calls were cancelled."""
        self.server: Server[Any] = _Server(
            "modelnet",
            version=__version__,
            title="modelnet",
            instructions="Each tool is a capability of a network of models: workers bid for every call, and the best "
            f"answer for the money wins. A call's `_meta` may hold {META}budget in micro-credits and {META}deadline_s.",
            lifespan=self._lifespan,
            get_tool_input_schema=self._input_schema,
            on_list_tools=self._list,
            on_call_tool=self._call,
            on_subscriptions_listen=self._listening,
        )
        self.server.add_notification_handler("notifications/initialized", NotificationParams, self._initialized)

    def stop_listening(self) -> None:
        """End the streams of those who listen for changes; calls go on."""
        self._listening.close()

    # ------------------------------------------------------------------ the list

    def tools(self) -> list[Tool]:
        """What is offered now, by name."""
        found = [_tool(name, c) for c in self._presence.contracts if (name := tool_name(c.capability)) is not None]
        return sorted(found, key=lambda tool: tool.name)

    async def _list(
        self, ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        cursor = params.cursor if params is not None else None
        if cursor is not None and capability_named(cursor) is None:
            raise MCPError(INVALID_PARAMS, f"no page begins behind {cursor[:200]!r}")
        tools = self.tools()
        start = bisect_right(tools, cursor, key=lambda tool: tool.name) if cursor is not None else 0
        page = tools[start : start + PAGE]
        return ListToolsResult(tools=page, next_cursor=page[-1].name if start + PAGE < len(tools) else None)

    def _input_schema(self, name: str) -> Mapping[str, Any] | None:
        contract = self._presence.contract(capability_named(name) or "")
        return _object_schema(contract.input) if contract is not None else None

    @asynccontextmanager
    async def _lifespan(self, _: Server[Any]) -> AsyncIterator[dict[str, Any]]:
        """While it serves, tell clients of changes."""

        async def tell() -> None:
            async with aclosing(self._presence.changes()) as changes:
                async for _ in changes:
                    await self._changed.publish(ToolsListChanged())

        telling = asyncio.create_task(tell())
        try:
            yield {}
        finally:
            telling.cancel()
            self.stop_listening()
            if self._cancels:
                await asyncio.wait(self._cancels)

    async def _initialized(self, ctx: ServerRequestContext[Any, Any], params: NotificationParams | None) -> None:
        """A client of a handshake protocol is told of changes on its own channel. The protocol has no other word for
        it, so this goes on until the connection ends, which cancels what still handles its messages."""
        news = asyncio.Event()
        unsubscribe = self._changed.subscribe(lambda _: news.set())
        try:
            while True:
                await news.wait()
                news.clear()
                await ctx.session.send_tool_list_changed()
        finally:
            unsubscribe()

    # ------------------------------------------------------------------ a call

    async def _call(self, ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        capability = capability_named(params.name)
        if capability is None or self._presence.contract(capability) is None:
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name[:200]}")
        caller, meta = self._caller_of(ctx), cast("Mapping[str, Any]", ctx.meta or {})
        options = {key: meta[META + key] for key in _OPTIONS if META + key in meta}
        submitting = asyncio.ensure_future(
            self._client.submit(
                capability,
                params.arguments or {},
                tenant=caller.tenant,
                contract=self._presence.pinned(capability),
                cancel_on_disconnect=True,
                **options,
            )
        )
        try:
            final = await self._follow(ctx, await asyncio.shield(submitting))
            if caller.count is not None:
                caller.count(final)
            return _result(final)
        except asyncio.CancelledError:
            # Whoever cancelled this does so at every step it still takes: the task's cancel is not one of them.
            self._cancels.add(cancelling := asyncio.ensure_future(_cancel(submitting)))
            cancelling.add_done_callback(self._cancels.discard)
            raise
        except (MalformedInput, TooLarge) as error:
            return _failed(error.wire_code, error.message)
        except ModelnetError as error:
            raise MCPError(INTERNAL_ERROR, error.message, {"code": error.wire_code}) from None

    async def _follow(self, ctx: ServerRequestContext[Any, Any], task: TaskHandle) -> Final:
        """The task's Final; meanwhile its progress is passed on."""
        gauge = Gauge()
        async with aclosing(task.stream()) as events:
            async for event in events:
                if isinstance(event, Final):
                    return event
                if (step := gauge.read(event)) is not None:
                    await ctx.session.report_progress(*step)
        raise AssertionError("a stream ends with its Final")


async def _cancel(submitting: asyncio.Future[TaskHandle]) -> None:
    with contextlib.suppress(ModelnetError, TimeoutError):
        async with asyncio.timeout(CANCEL_S):
            task = await submitting
            await task.cancel()
            log.info("call_cancelled", task=task.id)


class Gauge:
    """A task's events as progress that only ever grows, as the protocol wants it. Pure.

    What comes first sets the scale: a fraction makes it 0 to 1; text makes it a count of events.
    """

    def __init__(self) -> None:
        self._total: float | None = None
        self._shown = 0.0

    def read(self, event: StreamEvent) -> tuple[float, float | None, str | None] | None:
        """(progress, total, message) of an event, or None if it is none."""
        if isinstance(event, Delta):  # of several answers the first is streamed
            return self._step(None, event.text) if event.index == 0 and event.text else None
        if isinstance(event, Progress):
            return self._step(event.fraction, event.note)
        if isinstance(event, Reset):
            return self._step(None, "what was said so far is void: another worker begins anew")
        return None

    def _step(self, fraction: float | None, message: str | None) -> tuple[float, float | None, str | None]:
        if self._shown == 0.0 and fraction is not None:
            self._total = 1.0
        if self._total is None:
            self._shown += 1.0
            if fraction is not None:
                message = f"{fraction:.0%}" + (f": {message}" if message else "")
        else:
            self._shown = max(fraction or 0.0, self._shown + _NUDGE)
        return self._shown, self._total, message


def _object_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A contract's schema with the root type that the protocol asks for: inputs and outputs are objects."""
    return {**schema, "type": "object"}


def _tool(name: str, contract: Contract) -> Tool:
    return Tool(
        name=name,
        title=contract.capability,
        description=contract.description or contract.capability,
        input_schema=_object_schema(contract.input),
        output_schema=_object_schema(contract.output) if contract.output else None,
    )


def _result(final: Final) -> CallToolResult:
    meta = {META + "task": final.task, META + "worker": final.worker, META + "price": final.price}
    if final.status != "completed":
        code, message = (final.error.code, final.error.message) if final.error is not None else (final.status, "")
        return _failed(code, message or final.status, meta)
    output = final.output or {}
    text = json.dumps(output, ensure_ascii=False)
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=output,
        _meta={key: value for key, value in meta.items() if value is not None},
    )


def _failed(code: str, message: str, meta: Mapping[str, Any] | None = None) -> CallToolResult:
    """A call that did not succeed, in words that the model can act on."""
    told = {key: value for key, value in (meta or {}).items() if value is not None}
    return CallToolResult(
        content=[TextContent(type="text", text=f"{message} [{code}]")],
        is_error=True,
        _meta={**told, META + "code": code},
    )


async def serve_stdio(client: Client, settled: asyncio.Event) -> None:
    """Serve MCP on this process's standard input and output until the input ends.

    `settled` is set once all calls have ended and their tasks are cancelled. Who cancels this waits for that: the
    thread that reads the input returns only when there is some.
    """
    async with Presence(client) as presence:
        tools = Tools(client, presence)
        async with stdio_server() as (reading, writing):
            try:
                await tools.server.run(reading, writing, tools.server.create_initialization_options())
            finally:
                settled.set()
