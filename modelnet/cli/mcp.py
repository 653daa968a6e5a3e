"""`modelnet mcp`: the network as an MCP server on standard input and output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

from modelnet.cli.session import Tenant, Url, configured, run
from modelnet.errors import UsageError

__all__ = ["mcp"]

SETTLE_S = 5.0
"""Time to cancel the tasks of calls that still run when it is told to stop."""


def mcp(url: Url = None, tenant: Tenant = None) -> None:
    """Serve the network's capabilities as MCP tools on stdin and stdout, for a host that starts this command.

    Nothing but the protocol is written to stdout. It ends when its input does, or on Ctrl-C or SIGTERM; calls that
    still run are cancelled then.
    """
    config = configured(url, tenant)
    try:
        from modelnet.agents.mcp_tools import serve_stdio
    except ModuleNotFoundError as missing:
        raise UsageError(f"the package {missing.name!r} is not installed (pip install 'modelnet[agents]')") from None

    async def work() -> int:
        import modelnet

        loop, settled = asyncio.get_running_loop(), asyncio.Event()
        stopped: asyncio.Future[int] = loop.create_future()

        def stop(number: int) -> None:
            if not stopped.done():
                stopped.set_result(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        async with modelnet.connect(config=config) as net:
            serving = asyncio.create_task(serve_stdio(net, settled))
            either: list[asyncio.Future[Any]] = [serving, stopped]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
                return 0
            serving.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await settled.wait()
        # The thread that reads stdin cannot be ended, and the interpreter would wait for it.
        sys.stderr.flush()
        os._exit(128 + stopped.result())

    run(work())
