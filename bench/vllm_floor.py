"""vLLM's AsyncLLM behind the floor of a durable task, bench/lifecycle_floor.py: what a first token waits for where the
messages do nothing but travel. No templates, prices, forecasts or supervision, and a message for each token.

Run the worker: python -m bench.vllm_floor FOLDER, with FLOOR_URL and what a `Player` of AsyncLLM is given set.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from bench.lifecycle_floor import worker
from bench.vllm_players import async_llm, settle_memory


async def main(folder: str) -> None:
    """The one bidder."""
    async with async_llm(folder) as generate:

        async def work(value: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            async for output in generate(value["prompt"], value["tokens"]):
                yield {"text": output.text, "tokens": list(output.token_ids)}

        settle_memory()
        await worker(0, work)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
