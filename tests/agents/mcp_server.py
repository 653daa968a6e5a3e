"""An MCP server with awkward tools, on the SDK: `python -m tests.agents.mcp_server`, over stdio, or at a PORT."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image

server = MCPServer("Odd Tools", log_level="CRITICAL")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(structured_output=False)
def picture(name: str) -> list[object]:
    """A text and an image, and no output schema."""
    return [f"this is {name}", Image(data=b"\x89PNG", format="png")]


@server.tool(name="Weird Näme!")
def weird() -> str:
    """A name that no capability may have."""
    return "weird"


@server.tool(name="weird n_me")
def weird_too() -> str:
    """The same label as another tool's."""
    return "weird too"


@server.tool()
async def count(to: int, ctx: Context) -> str:
    """Count, and say how far it is."""
    for number in range(1, to + 1):
        await ctx.report_progress(number, to, f"at {number}")
    return f"counted to {to}"


@server.tool()
async def wait(folder: str, ctx: Context) -> str:
    """Say that it waits, and wait for ever; leave a mark when it is cancelled."""
    await ctx.report_progress(1, None, "waiting")
    try:
        await asyncio.Event().wait()
    except BaseException:
        (Path(folder) / "cancelled").touch()
        raise
    return ""


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("no way")


@server.tool()
def large(size: int) -> str:
    """A large answer."""
    return "x" * size


@server.tool()
def die() -> str:
    """End the process during the call."""
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
