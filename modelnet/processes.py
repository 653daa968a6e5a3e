"""Child processes of a network on one machine: started, watched, restarted with backoff, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import structlog

__all__ = ["PARENT", "ChildProcess", "StartFailed"]

PARENT = "MODELNET_PARENT_PID"
"""In a child's environment: the process it must not outlive."""

log = structlog.get_logger("processes")

_BACKOFF_S = (0.2, 1.0, 3.0, 10.0)
_PR_SET_PDEATHSIG = 1


class StartFailed(RuntimeError):
    """Raised when a process ends before it is ready; carries the end of its log."""


def _die_with_parent() -> None:
    """In the child: be terminated when the parent is, even by kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class ChildProcess:
    """One process, its output in a log file, restarted when it dies unasked."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_dir: Path,
        env: Mapping[str, str] | None = None,
        ready: bytes | None = None,
        restart: bool = True,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """`ready`: a piece of the output line that says it is up; None: it is up when it runs.

        `pass_fds`: descriptors it inherits, as a lock that must not be free while it lives.
        """
        self.name = name
        self.restarts = 0
        self._command = list(command)
        self._log_path = log_dir / f"{name}.log"
        self._env = {**os.environ, **(env or {}), PARENT: str(os.getpid())}
        self._ready_mark = ready
        self._restart = restart
        self._pass_fds = tuple(pass_fds)
        self._stopping = False
        self._again = False
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start and wait until it is ready. Raises `StartFailed`."""
        ready = asyncio.Event()
        self._watcher = asyncio.create_task(self._watch(ready))
        waiting = asyncio.create_task(ready.wait())
        done, _ = await asyncio.wait({waiting, self._watcher}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not ready.is_set():
            state = "ended" if self._watcher in done else f"was not ready within {timeout_s:g} s"
            await self.stop(grace_s=1.0)
            raise StartFailed(f"{self.name} {state}:\n{self._tail()}")

    async def _watch(self, ready: asyncio.Event) -> None:
        while True:
            with self._open_log() as out:
                self._process = process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env=self._env,
                    pass_fds=self._pass_fds,
                    start_new_session=True,  # a Ctrl-C at the terminal is for the parent, which stops all in order
                    preexec_fn=_die_with_parent,
                )
                if self._ready_mark is None:
                    ready.set()
                await self._copy(process, out, ready)
                code = await process.wait()
            if self._stopping or not self._restart or not ready.is_set():
                return
            if self._again:
                self._again = False
                continue
            if code == 0:
                log.info("process_ended", process=self.name)
                return  # it was drained: whoever asked for that does not want it back
            delay = _BACKOFF_S[min(self.restarts, len(_BACKOFF_S) - 1)]
            self.restarts += 1
            log.warning("process_died", process=self.name, code=code, restart_in_s=delay)
            await asyncio.sleep(delay)

    def _open_log(self) -> IO[bytes]:
        try:
            return self._log_path.open("ab", buffering=0)
        except OSError as error:
            log.warning("log_not_written", process=self.name, error=str(error))
            return Path(os.devnull).open("ab", buffering=0)

    async def _copy(self, process: asyncio.subprocess.Process, out: IO[bytes], ready: asyncio.Event) -> None:
        assert process.stdout is not None
        while chunk := await process.stdout.read(65536):
            with contextlib.suppress(OSError):  # a full disk costs lines of the log, not the process
                out.write(chunk)
            if not ready.is_set() and self._ready_mark is not None and self._ready_mark in chunk:
                ready.set()

    async def stop(self, grace_s: float = 15.0) -> None:
        """End it: SIGTERM, and SIGKILL if it has not gone after `grace_s`."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(grace_s):
                    await process.wait()
            except TimeoutError:
                log.warning("process_killed", process=self.name)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    def restart(self, grace_s: float = 5.0) -> None:
        """Ask it to end in good order, and kill it if it has not after `grace_s`; it is started again at once."""
        process = self._process
        if process is not None and process.returncode is None:
            self._again = True
            process.terminate()
            # nats-server that cannot write may hang on its way out.
            asyncio.get_running_loop().call_later(grace_s, self._kill_late, process)

    def _kill_late(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            log.warning("process_killed", process=self.name)
            process.kill()

    def kill(self) -> None:
        """Kill it as a crash would; it is restarted."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def _tail(self) -> str:
        try:
            return self._log_path.read_text(errors="replace")[-2000:]
        except OSError:
            return ""
