"""Answers of the console's API: JSON, and errors with the network's own codes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from modelnet.errors import ModelnetError, UnknownTask, UsageError
from workers.gateway.refusal import Refusal

__all__ = ["Endpoint", "answer", "body_of", "explained", "refusal_of"]

Endpoint = Callable[[Request], Awaitable[Response]]

_STATUS = {
    "unknown_letter": 404,
    "unknown_account": 404,
    "cannot_retry": 409,
    "bus_full": 503,
    "no_server": 503,
    "no_jetstream": 503,
    "not_stored": 503,
    "ledger_away": 503,
}


def answer(value: Any) -> Response:
    """JSON that nobody keeps."""
    return Response(to_json(value), media_type="application/json", headers={"cache-control": "no-store"})


def refusal_of(error: ModelnetError) -> Refusal:
    """An error of the network, as HTTP says it."""
    if isinstance(error, UnknownTask):
        status = 404
    elif isinstance(error, UsageError):
        status = 400
    else:
        status = _STATUS.get(error.wire_code, 500)
    return Refusal(status, error.wire_code, error.message)


def explained(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with errors of the network as answers."""

    @functools.wraps(endpoint)
    async def serve(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ModelnetError as error:
            raise refusal_of(error) from None

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
