"""What `modelnet work` puts on the network beside files: servers and agents that speak another protocol."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelnet.errors import UsageError

if TYPE_CHECKING:
    from faststream import FastStream

__all__ = ["A2a", "Header", "Mcp", "McpUrl", "NatsAgent", "outward_app"]

_SERVER = "A server that runs"

Mcp = Annotated[
    str | None,
    typer.Option(
        "--mcp", metavar="COMMAND", help="Start this MCP server, and serve its tools.", rich_help_panel=_SERVER
    ),
]
McpUrl = Annotated[
    str | None,
    typer.Option("--mcp-url", metavar="URL", help="Serve the tools of the MCP server there.", rich_help_panel=_SERVER),
]
A2a = Annotated[
    str | None,
    typer.Option("--a2a", metavar="URL", help="Serve the skills of the A2A agent there.", rich_help_panel=_SERVER),
]
NatsAgent = Annotated[
    str | None,
    typer.Option(
        "--nats-agent",
        metavar="NAME",
        help="Serve this agent of the NATS agent protocol: its session, or AGENT/OWNER/SESSION.",
        rich_help_panel=_SERVER,
    ),
]
Header = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:VALUE",
        help="With --mcp-url or --a2a: sent with every request, as Authorization.",
        rich_help_panel=_SERVER,
    ),
]


def outward_app(
    *,
    mcp: str | None,
    mcp_url: str | None,
    a2a: str | None,
    nats_agent: str | None,
    capability: list[str],
    name: str | None,
    price: int,
    slots: int,
    header: list[str] | None,
) -> FastStream:
    """The worker for the one of these that is given. Raises `UsageError`."""
    headers = _headers(header)
    if len(capability) > 1:
        raise UsageError("all that a server or agent offers has one --capability that its names begin with")
    prefix = next(iter(capability), None)
    options: dict[str, Any] = {"name": name, "price": price, "slots": slots}
    try:
        if nats_agent is not None:
            from modelnet.agents.nats_worker import AgentWorker

            if headers:
                raise UsageError("a NATS agent takes no headers: --header goes with --mcp-url and --a2a")
            return AgentWorker(nats_agent, capability=prefix, **options).app
        if a2a is not None:
            from modelnet.agents.a2a_worker import SkillWorker

            return SkillWorker(_http(a2a), headers=headers, prefix=prefix, **options).app
        from modelnet.agents.mcp_worker import McpServer, ToolWorker
    except ModuleNotFoundError as missing:
        raise UsageError(f"the package {missing.name!r} is not installed (pip install 'modelnet[agents]')") from None
    if mcp_url is not None:
        return ToolWorker(McpServer(url=_http(mcp_url), headers=headers), prefix=prefix, **options).app
    if headers:
        raise UsageError("a command takes no headers: --header goes with --mcp-url and --a2a")
    return ToolWorker(McpServer(command=_command(mcp or "")), prefix=prefix, **options).app


def _command(text: str) -> tuple[str, ...]:
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--mcp {text!r}: {error}") from None
    if not command:
        raise UsageError("--mcp names no command")
    return command


def _http(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no URL: it begins with http:// or https://")
    return url


def _headers(given: list[str] | None) -> dict[str, str]:
    found = {}
    for line in given or ():
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"{line!r} is no header: write NAME:VALUE")
        found[name.strip()] = value.strip()
    return found
