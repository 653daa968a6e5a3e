"""Refusal: an error as clients of an OpenAI-like API expect it, with status, type, code and when to try again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from pydantic_core import to_json
from starlette.responses import Response

from modelnet.errors import (
    BusFull,
    ConnectionFailed,
    LedgerAway,
    ModelnetError,
    ObjectLost,
    TooLarge,
    UnknownTask,
    UsageError,
)
from modelnet.messages import Final

__all__ = ["Refusal", "refusal_of", "unsuccessful"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_STATUS = {
    "malformed": 400,
    "usage": 400,
    "contract_violation": 400,
    "bad_prompt": 400,
    "bad_sampling": 400,
    "unsupported": 400,
    "over_budget": 400,
    "quality_too_low": 400,
    "no_acceptable_bid": 400,
    "too_long": 400,
    "unknown_capability": 404,
    "cancelled": 409,
    "client_gone": 409,
    "too_large": 413,
    "no_funds": 429,
    "over_limit": 429,
    "internal": 500,
    "poison": 500,
    "expired": 504,
}
"""By the code of a Final's error. What is not named here is an answer that workers could not give: 502."""

_CODES = {
    "unknown_capability": "model_not_found",
    "no_funds": "insufficient_quota",
    "over_limit": "rate_limit_exceeded",
    "too_long": "context_length_exceeded",
}
"""What OpenAI's clients know the error by, where that is not our code."""


class Refusal(Exception):
    """Raised where a request cannot be served; the gateway answers with it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`type`: the error's class in OpenAI's words, by default what the status stands for."""
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.type = type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    def body(self) -> bytes:
        """As JSON."""
        said = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return to_json({"error": said})

    def response(self) -> Response:
        """As a whole answer."""
        return Response(self.body(), self.status, self.headers, media_type="application/json")


def refusal_of(error: ModelnetError) -> Refusal:
    """That of what could not be published or read."""
    code, message = error.wire_code, error.message
    match error:
        case BusFull():
            return Refusal(503, code, message, type="overloaded_error", retry_after_s=1)
        case ConnectionFailed() | LedgerAway():
            return Refusal(503, code, message, retry_after_s=1)
        case TooLarge():
            return Refusal(413, code, message)
        case UsageError():
            return Refusal(400, code, message)
        case UnknownTask():
            return Refusal(404, code, message)
        case ObjectLost():
            return Refusal(410, code, message)
    return Refusal(500, code, message)


def unsuccessful(final: Final) -> Refusal:
    """That of a task which did not complete."""
    code = final.error.code if final.error else final.status
    message = (final.error.message if final.error else "") or final.status
    status = _STATUS.get(code, 502)
    refusal = Refusal(
        status,
        _CODES.get(code, code),
        message,
        type="insufficient_quota" if code == "no_funds" else None,
        # Limits are those of an hour or a day (docs/ledger.md): sooner than in the next hour it is no use.
        retry_after_s=3600 - time.time() % 3600 if code == "over_limit" else None,
    )
    # The network has tried already; clients that retry by themselves would pay for the same disappointment again.
    return with_task(refusal, final)


def with_task(refusal: Refusal, final: Final) -> Refusal:
    """A refusal that names the task it is about, and that should not be repeated unasked."""
    refusal.headers |= {"modelnet-task": final.task, "x-request-id": final.task, "x-should-retry": "false"}
    return refusal
