"""A tool on the network: exact decimal arithmetic, as any calculator would join. `math.sum`, `math.multiply`."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context as Arithmetic
from decimal import Decimal, DecimalException, Inexact
from typing import Any

from modelnet import Context, Reject, Worker

__all__ = ["app", "worker"]

_EXACT = Arithmetic(prec=1000, traps=[Inexact, *Arithmetic().traps])
"""Arithmetic that refuses to round."""

worker = Worker("calculator", slots=64, software="python decimal")


@worker.capability("math.sum", price=1, expected_ms=1)
async def add(ctx: Context, input: dict[str, Any]) -> dict[str, str]:
    """Exact sum of decimal numbers."""
    return {"value": _fold(input["values"], _EXACT.add, Decimal(0))}


@worker.capability("math.multiply", price=1, expected_ms=1)
async def multiply(ctx: Context, input: dict[str, Any]) -> dict[str, str]:
    """Exact product of decimal numbers."""
    return {"value": _fold(input["values"], _EXACT.multiply, Decimal(1))}


def _fold(values: list[str], step: Callable[[Decimal, Decimal], Decimal], start: Decimal) -> str:
    total = start
    for value in values:
        try:
            total = step(total, Decimal(value))
        except DecimalException:
            raise Reject(f"{value!r} makes a result of more than 1,000 digits", code="too_large") from None
    return plain(total)


def plain(value: Decimal) -> str:
    """Plain digits with `.`: no exponent, no trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


app = worker.app
