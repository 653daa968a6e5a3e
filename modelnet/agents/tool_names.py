"""Names of tools: a capability's name in the letters that every MCP client and model takes, and back. Pure.

MCP allows dots in a tool's name, but model APIs that tools are handed on to do not. So a dot becomes `__`. An
underscore stays one, unless it is beside a dot or another underscore: then it becomes `U`, for capabilities have no
capital letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from modelnet.messages import is_capability

__all__ = ["LONGEST", "capability_named", "label", "labels", "tool_name"]

LONGEST = 128
"""Characters of a tool's name, as the protocol has it."""

_BESIDE = re.compile(r"(?<=[._])_|_(?=[._])")
_ODD = re.compile(r"[^a-z0-9_-]+")


def tool_name(capability: str) -> str | None:
    """The tool's name of a capability, or None if that would be longer than a name may be."""
    name = _BESIDE.sub("U", capability).replace(".", "__")
    return name if len(name) <= LONGEST else None


def capability_named(name: str) -> str | None:
    """The capability that a tool's name stands for, or None if it is the name of none."""
    capability = name.replace("__", ".").replace("U", "_")
    return capability if is_capability(capability) and tool_name(capability) == name else None


def label(name: str) -> str:
    """Any name as one part of a capability: small letters, digits, `-` and `_`."""
    return _ODD.sub("_", name.strip().lower()).strip("_")[:64] or "unnamed"


def labels(names: Iterable[str]) -> dict[str, str]:
    """Each of these names by its label; of those that share one, all but the first get a number behind it."""
    found: dict[str, str] = {}
    for name in names:
        base = part = label(name)
        number = 1
        while part in found:
            number += 1
            part = f"{base}-{number}"
        found[part] = name
    return found
