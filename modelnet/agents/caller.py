"""Who calls, as a door has let them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelnet.messages import Final

__all__ = ["Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant, and who counts what its tasks use."""

    tenant: str
    count: Callable[[Final], None] | None = None
    """Told of the Final of each of its tasks; None: nobody counts."""
