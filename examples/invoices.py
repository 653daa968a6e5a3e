"""The main job: invoices in three languages, resolved by models that no single one could replace.

A plain function over the client: a date model, number models and a calculator each do what they can.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelnet import Client
from modelnet.messages import Final

__all__ = ["ANSWERS", "INVOICES", "Resolved", "read_lines", "resolve"]

INVOICES = Path(__file__).with_name("invoices.jsonl")
ANSWERS = Path(__file__).with_name("invoices.answers.jsonl")


@dataclass(slots=True)
class Resolved:
    """An invoice with its date and total as data, and the Finals of the tasks that it took."""

    id: str
    issued: str = ""
    total: str = ""
    finals: list[Final] = field(default_factory=list)

    @property
    def answer(self) -> dict[str, str]:
        """In the form of the answers file."""
        return {"id": self.id, "issued": self.issued, "total": self.total}


async def resolve(net: Client, invoice: dict[str, Any], *, budget: int = 100) -> Resolved:
    """Resolve one invoice; each task may cost `budget` micro-credits. Raises `TaskError`."""
    language = invoice["language"]
    resolved = Resolved(invoice["id"])

    async def ask(capability: str, input: dict[str, Any]) -> str:
        task = await net.submit(capability, input, budget=budget, deadline_s=60)
        final = await task.result()
        resolved.finals.append(final)
        return str((final.output or {})["value"])

    async def line_total(line: dict[str, str]) -> str:
        factors = await asyncio.gather(
            ask(f"normalize.number.{language}", {"text": line["quantity"]}),
            ask(f"normalize.number.{language}", {"text": line["unit_price"]}),
        )
        return await ask("math.multiply", {"values": list(factors)})

    resolved.issued, *totals = await asyncio.gather(
        ask(f"normalize.date.{language}", {"text": invoice["issued"]}),
        *(line_total(line) for line in invoice["lines"]),
    )
    resolved.total = await ask("math.sum", {"values": totals})
    return resolved


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
