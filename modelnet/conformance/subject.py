"""The implementation under test as a process of its own: started, read, told to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

from modelnet.errors import ModelnetError, UsageError

__all__ = ["Subject"]

_KEPT_LINES = 20
_LINE_BYTES = 8 << 20
_GRACE_S = 5.0


class Subject:
    """`async with Subject(command, env)`: it runs; at the end of the block it does not."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """`env`: added to this process's own."""
        if not command:
            raise UsageError("the command under test is empty")
        self._command, self._env = list(command), {**os.environ, **env}
        self._said: list[str] = []
        self._reading: list[asyncio.Task[None]] = []
        self.lines: asyncio.Queue[str | None] = asyncio.Queue()
        """What it prints on stdout, None at the end."""

    async def __aenter__(self) -> Self:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                limit=_LINE_BYTES,
                start_new_session=True,  # a Ctrl-C is for the kit, which ends it in order
            )
        except OSError as error:
            raise UsageError(f"{self._command[0]} cannot be started: {error.strerror}") from None
        self._reading = [asyncio.create_task(self._read_out()), asyncio.create_task(self._read_err())]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.running:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self._process.wait()
        if self.running:
            self._signal(signal.SIGKILL)
        await self._process.wait()
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    def terminate(self) -> None:
        """SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        """To the whole session: the command may be a shell that started it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number) if sys.platform != "win32" else self._process.terminate()

    async def ended(self, within_s: float) -> int | None:
        """Its exit code, or None if it still runs then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                return await self._process.wait()
        return None

    def require_running(self) -> None:
        """Raises `ModelnetError` with what it said last if it has ended."""
        if not self.running:
            said = "\n".join(self._said)
            raise ModelnetError(
                f"the command under test ended with {self._process.returncode}: {said}", code="subject_ended"
            )

    async def objects(self, within_s: float) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects that it prints, one a line, until it ends, or says nothing for so long."""
        while True:
            try:
                async with asyncio.timeout(within_s):
                    line = await self.lines.get()
            except TimeoutError:
                return
            if line is None:
                return
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield found

    def _note(self, line: str) -> None:
        self._said = [*self._said, line][-_KEPT_LINES:]

    async def _read_out(self) -> None:
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            self._note(line)
            self.lines.put_nowait(line)
        self.lines.put_nowait(None)

    async def _read_err(self) -> None:
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            self._note(raw.decode(errors="replace").rstrip("\n"))
