"""A worker that breaks the protocol in four ways: `modelnet work tests/conformance/broken_worker.py`.

It does not beat by itself, numbers its events wrongly, goes on after a cancel, and states bad digests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import modelnet.execution
from examples import shout
from modelnet import messages as m
from modelnet import worker as sdk
from modelnet.slots import Order, Stop

worker = shout.worker

_obey = sdk.Worker._obey
_stamp = modelnet.execution.Execution._stamp


def deaf_to_cancels(self: sdk.Worker, orders: Sequence[Order]) -> None:
    """All orders but those to stop."""
    _obey(self, [order for order in orders if not isinstance(order, Stop)])


def misnumbered(self: modelnet.execution.Execution) -> dict[str, Any]:
    """Twice what the number should be."""
    stamp = _stamp(self)
    return stamp | {"number": 2 * int(stamp["number"])}


async def no_beats(self: sdk.Worker) -> None:
    """Offers only."""
    while True:
        await asyncio.sleep(self._settings.beat_s)
        if self._bus.is_connected:
            await self._offer()
            await self._outbox.repeat()


class BadDigests:
    """The messages, with a digest that is right for nothing."""

    def __getattr__(self, name: str) -> Any:
        return (lambda value: m.digest_of({"not": value})) if name == "digest_of" else getattr(m, name)


sdk.Worker._obey = deaf_to_cancels  # type: ignore[method-assign]
sdk.Worker._beats = no_beats  # type: ignore[method-assign]
modelnet.execution.Execution._stamp = misnumbered  # type: ignore[method-assign]
vars(modelnet.execution)["m"] = BadDigests()
