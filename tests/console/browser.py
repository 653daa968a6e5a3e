"""A headless Chromium for tests and measurements: Debian's, driven by playwright-core from npm."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Any, Self

__all__ = ["Browser", "Page", "why_not"]

HERE = Path(__file__).parent
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_INSTALL_S = 60


def why_not() -> str | None:
    """Why there can be no browser here; None if there can. Installs the driver from npm if it is not there yet."""
    if _chromium() is None:
        return "no chromium is installed (Debian: apt-get install chromium)"
    if shutil.which("node") is None:
        return "no node is installed"
    if (HERE / "node_modules" / "playwright-core").is_dir():
        return None
    npm = shutil.which("npm")
    if npm is None:
        return "playwright-core is not installed, and there is no npm to install it with"
    command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        return "npm did not install playwright-core in time"
    return None if done.returncode == 0 else f"npm could not install playwright-core: {done.stderr.strip()[-200:]}"


def _chromium() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """`async with Browser() as browser:` while it runs."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._numbers = count(1)

    async def __aenter__(self) -> Self:
        self._node = await asyncio.create_subprocess_exec(
            "node",
            "driver.mjs",
            _chromium() or "",
            cwd=HERE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._node.stdin is not None
        self._node.stdin.close()
        try:
            await asyncio.wait_for(self._node.wait(), 10)
        except TimeoutError:
            self._node.kill()
            await self._node.wait()

    async def do(self, what: str, **given: Any) -> Any:
        """Send a command; its answer. Raises `AssertionError` with what the browser says went wrong."""
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        async with self._lock:
            self._node.stdin.write(json.dumps({"do": what, **given}).encode() + b"\n")
            await self._node.stdin.drain()
            line = await asyncio.wait_for(self._node.stdout.readline(), 60)
        assert line, "the browser's driver has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    async def open(
        self, url: str, *, width: int = 1280, height: int = 800, scheme: str = "light", motion: str = "no-preference"
    ) -> Page:
        """A page of a profile of its own."""
        page = Page(self, f"page-{next(self._numbers)}")
        await page.do("open", url=url, width=width, height=height, scheme=scheme, motion=motion)
        return page


class Page:
    """A page that is looked at."""

    def __init__(self, browser: Browser, name: str) -> None:
        self._browser, self._name = browser, name

    async def do(self, what: str, **given: Any) -> Any:
        """A command of the driver's."""
        return await self._browser.do(what, page=self._name, **given)

    async def eval(self, js: str) -> Any:
        """The value of an expression."""
        return await self.do("eval", js=js)

    async def until(self, js: str, patience_s: float = 20.0) -> Any:
        """Wait until an expression is true; its value."""
        return await self.do("until", js=js, patience=patience_s * 1e3)

    async def shows(self, text: str, patience_s: float = 20.0) -> None:
        """Wait until the page shows a text."""
        await self.until(f"document.body.innerText.includes({json.dumps(text)})", patience_s)

    async def lacks(self, text: str, patience_s: float = 20.0) -> None:
        """Wait until the page shows a text no more."""
        await self.until(f"!document.body.innerText.includes({json.dumps(text)})", patience_s)

    async def go(self, hash: str) -> None:
        """To another page of the console."""
        await self.eval(f"void (location.hash = {json.dumps(hash)})")
