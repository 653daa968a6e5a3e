"""`modelnet top`: the network as it lives, in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelnet.cli.session import Url, configured, print_json, run
from modelnet.errors import UsageError

if TYPE_CHECKING:
    from modelnet.cli.screen import Screen
    from modelnet.watch import Watcher

__all__ = ["top"]

_KNOWN_AFTER_S = 3.0
"""Longest wait for rates, before a single frame is shown without them."""


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    sort: Annotated[
        str, typer.Option(help="Order of workers: busy, name, capability, price, quality or won.")
    ] = "busy",
    filter: Annotated[str, typer.Option(help="Only what has this in a name: worker, owner, capability, task.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot as a JSON object and leave.")] = False,
    url: Url = None,
) -> None:
    """Watch the network: workers, rates, auctions, tasks. q quits, s sorts, / filters, p pauses."""

    async def work() -> int:
        import modelnet
        from modelnet.cli.screen import SORTS, Screen
        from modelnet.watch import Watcher

        if sort not in SORTS:
            raise UsageError(f"{sort!r} is no order: one of {', '.join(SORTS)}")
        config = configured(url)
        async with modelnet.connect(config=config) as net, Watcher(net.bus, config) as watcher:
            screen = Screen(sort=sort, filter=filter)
            where = config.servers[0].rpartition("@")[2].removeprefix("nats://")
            if as_json or once or not sys.stdout.isatty():
                await _one(watcher, screen, where, as_json=as_json)
            else:
                await _follow(watcher, screen, where)
        return 0

    run(work())


async def _one(watcher: Watcher, screen: Screen, where: str, *, as_json: bool) -> None:
    from modelnet.cli.session import wide_console

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KNOWN_AFTER_S), watcher.ticked:
            await watcher.ticked.wait_for(lambda: watcher.view.head()["tasks_s"] is not None)
    snapshot = watcher.view.snapshot()
    if as_json:
        print_json(snapshot)
        return
    console = wide_console()
    width = console.width if sys.stdout.isatty() else 120
    console.print(screen.draw(snapshot, width, None, where=where, keys=False))


async def _follow(watcher: Watcher, screen: Screen, where: str) -> None:
    """Draw at each tick and each key, until `q`."""
    from rich.console import Console
    from rich.live import Live

    console, news = Console(highlight=False), asyncio.Event()

    def pressed(key: str) -> None:
        screen.key(key)
        news.set()

    with _keys(pressed), Live(console=console, screen=True, auto_refresh=False) as live:
        while not screen.done:
            width, height = console.size
            live.update(screen.draw(watcher.view.snapshot(), width, height, where=where), refresh=True)
            news.clear()
            waits = {asyncio.create_task(news.wait()), asyncio.create_task(_tick(watcher))}
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)


async def _tick(watcher: Watcher) -> None:
    async with watcher.ticked:
        await watcher.ticked.wait()


@contextlib.contextmanager
def _keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Have each key told at once, not echoed; the terminal is as it was afterwards, however that ends."""
    try:
        import termios
        import tty
    except ImportError:  # Windows has neither: no keys but Ctrl-C there
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    number = sys.stdin.fileno()
    was = termios.tcgetattr(number)
    loop = asyncio.get_running_loop()

    def read() -> None:
        text = os.read(number, 64).decode(errors="ignore")
        if text.startswith("\x1b") and len(text) > 1:
            return  # an arrow or another key with a sequence of its own
        for key in text:
            pressed(key)

    tty.setcbreak(number)
    loop.add_reader(number, read)
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, was)
