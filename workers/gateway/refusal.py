"""Refusal: an error as clients of an OpenAI-like API expect it, with status, type, code and when to try again."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic_core import to_json
from starlette.responses import Response

__all__ = ["Refusal"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


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
