"""What a run found: of each requirement whether it was kept, broken, or not checked, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .requirements import REQUIREMENTS

__all__ = ["Broken", "Finding", "Report"]

Result = Literal["passed", "failed", "not_checked"]


class Broken(Exception):
    """Raised within a check: a requirement is not kept, so the rest of the check makes no sense."""

    def __init__(self, requirement: str, why: str) -> None:
        super().__init__(f"{requirement}: {why}")
        self.requirement, self.why = requirement, why


@dataclass(frozen=True, slots=True)
class Finding:
    """One requirement's result."""

    requirement: str
    """Its number in docs/protocol.md."""
    result: Result
    why: str = ""
    """What was wrong, or why it was not checked; empty if it passed."""

    def to_dict(self) -> dict[str, Any]:
        """As printed with --json."""
        title = REQUIREMENTS[self.requirement]
        return {"requirement": self.requirement, "title": title, "result": self.result, "why": self.why}


class Report:
    """Gathers findings. What failed once has failed."""

    def __init__(self, role: Literal["worker", "client"]) -> None:
        self._role = role
        self._passed: set[str] = set()
        self._failed: dict[str, str] = {}
        self._skipped: dict[str, str] = {}

    def expect(self, requirement: str, kept: bool, why: str) -> None:
        """Note whether a requirement was kept this time. `why`: what is wrong if not."""
        assert requirement in REQUIREMENTS
        if kept:
            self._passed.add(requirement)
        else:
            self._failed.setdefault(requirement, why)

    def demand(self, requirement: str, kept: bool, why: str) -> None:
        """As `expect`, but nothing behind it makes sense if it was not kept. Raises `Broken`."""
        self.expect(requirement, kept, why)
        if not kept:
            raise Broken(requirement, why)

    def skip(self, requirements: Iterable[str], why: str) -> None:
        """Say why requirements were not checked, unless another check sees to them."""
        for requirement in requirements:
            self._skipped.setdefault(requirement, why)

    def findings(self) -> list[Finding]:
        """All of the role's requirements, in order."""
        prefix = self._role[0].upper()
        return [self._finding(name) for name in REQUIREMENTS if name.startswith(prefix)]

    def _finding(self, name: str) -> Finding:
        if name in self._failed:
            return Finding(name, "failed", self._failed[name])
        if name in self._passed:
            return Finding(name, "passed")
        return Finding(name, "not_checked", self._skipped.get(name, "the check did not come to it"))

    @property
    def failed(self) -> list[str]:
        """Numbers of what was broken."""
        return [one.requirement for one in self.findings() if one.result == "failed"]

    @property
    def passed(self) -> list[str]:
        """Numbers of what was kept."""
        return [one.requirement for one in self.findings() if one.result == "passed"]
