"""Outcomes: a batch's output file. It says which lines are done, survives a kill, and is one batch's alone."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from modelnet.cli.stream import event_object
from modelnet.errors import ModelnetError, UsageError
from modelnet.messages import Final, new_id

__all__ = ["Outcomes"]


class Outcomes:
    """Lines done, failed and paid for; each new one is in the file before it counts.

    A run that is interrupted leaves its id beside the file: with it, going on finds the tasks that were under way. A
    finished run takes it away, so that the same lines into a new file are new tasks.
    """

    def __init__(self, out: Path, source: Path) -> None:
        """Raises `UsageError` for a file that no batch has written, or one of another input."""
        self.done: dict[int, Any] = {}
        """Input by line number."""
        self.failures: dict[int, str] = {}
        """Reason by line number, those of earlier runs too."""
        self.price = 0
        self._out = out
        self._run_file = out.with_name(out.name + ".run")
        try:
            if out.exists() and source.exists() and out.samefile(source):
                raise UsageError(f"{out} is the input itself: choose another --out")
            self._file = out.open("a+b")
        except OSError as error:
            raise UsageError(f"{out}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load(self._file)
            self.run = self._identity()
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"another batch writes {out}: let it end first") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def has(self, number: int, line: str) -> bool:
        """Whether a line of the input is done. Raises `UsageError` if that number had other content."""
        if number not in self.done:
            return False
        had = self.done[number]
        try:
            same = had == (line if isinstance(had, str) else json.loads(line))
        except ValueError:
            same = False
        if not same:
            raise UsageError(f"{self._out} holds the answer to another line {number}: choose another --out")
        return True

    def add(self, number: int, value: dict[str, Any], final: Final) -> None:
        """A line whose task has ended."""
        self._write({"line": number, "input": value, "final": event_object(final)})

    def refuse(self, number: int, value: Any, error: ModelnetError) -> None:
        """A line that never became a task."""
        told = {"code": error.wire_code, "message": error.message}
        nothing = dict.fromkeys(("output", "worker", "price", "attempt", "number", "usage"))
        final = {"kind": "final", "task": None, "status": "failed", **nothing, "attempts": 0, "error": told}
        self._write({"line": number, "input": value, "final": final})

    def finish(self) -> None:
        """Every line is done."""
        self._run_file.unlink(missing_ok=True)

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        number, final = int(record["line"]), record["final"]
        self.done[number] = record["input"]
        self.failures.pop(number, None)
        self.price += final.get("price") or 0
        if final["status"] != "completed":
            error = final.get("error") or {"code": final["status"], "message": final["status"]}
            self.failures[number] = f"{error['message']} [{error['code']}]"

    def _load(self, file: IO[bytes]) -> None:
        """Read what is there; a torn last line, as a kill leaves it, is cut off."""
        file.seek(0)
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(end)
                break
            end += len(line)
            try:
                self._count(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UsageError(f"{self._out} was not written by batch: choose another --out") from None
        file.seek(0, os.SEEK_END)

    def _identity(self) -> str:
        """The id of the run that is gone on with, or of a new one."""
        if self.done or self._run_file.exists():
            try:
                if found := self._run_file.read_text().strip():
                    return found
            except OSError:
                pass  # a finished run whose input has grown: what is new is a run of its own
        fresh = new_id()
        try:
            self._run_file.write_text(fresh)
        except OSError as error:
            raise UsageError(f"{self._run_file}: {error.strerror}") from None
        return fresh
