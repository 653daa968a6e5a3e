"""Answers of the console's API: JSON, and errors with the network's own codes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from modelnet.errors import ModelnetError
from workers.gateway.refusal import Refusal, refusal_of

__all__ = ["Endpoint", "answer", "body_of", "explained"]

Endpoint = Callable[[Request], Awaitable[Response]]

_STATUS = {"unknown_letter": 404, "unknown_account": 404, "cannot_retry": 409}
"""By code, what no other door meets."""


def answer(value: Any) -> Response:
    """JSON that nobody keeps."""
    return Response(to_json(value), media_type="application/json", headers={"cache-control": "no-store"})


def explained(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with errors of the network as answers."""

    @functools.wraps(endpoint)
    async def serve(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ModelnetError as error:
            status = _STATUS.get(error.wire_code)
            refusal = refusal_of(error) if status is None else Refusal(status, error.wire_code, error.message)
            raise refusal from None

    return serve


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request that changes something.

    Only as `application/json`: another site's page cannot send that without asking first, and is refused then.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal(415, "unsupported_media_type", "send the body as application/json")
    try:
        value = from_json(await request.body(), allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, "malformed", f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(400, "malformed", "the body must be a JSON object")
    return value
