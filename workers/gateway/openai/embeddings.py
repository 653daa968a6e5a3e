"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from workers.gateway.exchange import Exchange

from .requests import EmbeddingRequest
from .shapes import usage_of

__all__ = ["embeddings"]

EMBED = "text.embed"


async def embeddings(exchange: Exchange) -> None:
    """Vectors for texts."""
    request = await exchange.read(EmbeddingRequest)
    async with exchange.while_connected():
        meant = await exchange.lobby.directory.meaning(request.model, family=EMBED)
        input: dict[str, Any] = {"texts": request.texts()}
        if request.dimensions is not None:
            input["dimensions"] = request.dimensions
        final = await exchange.completed(await exchange.submit(meant, input, request.modelnet))
    vectors = (final.output or {})["vectors"]
    packed = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = usage_of([final])
    del usage["completion_tokens"]
    body = {"object": "list", "data": data, "model": request.model, "usage": usage}
    await exchange.answer(to_json(body), final)


def _packed(vector: Sequence[float]) -> str:
    """Little-endian 32-bit floats in base64, which OpenAI's Python client asks for."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
