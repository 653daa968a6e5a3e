"""A worker of one's own: `modelnet work examples/upper.py`."""

from typing import Any

from modelnet import Context, Worker

worker = Worker("acme-upper")

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@worker.capability("text.upper", contract={"input": TEXT, "output": TEXT}, price=2)
async def upper(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
    """The text in capital letters."""
    return {"text": input["text"].upper()}


app = worker.app  # for `faststream run upper:app`
