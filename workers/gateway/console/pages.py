"""The console's files: the page, its modules, style and fonts, with headers that let it run nothing else."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from workers.gateway.refusal import Refusal

__all__ = ["HEADERS", "asset", "home", "page"]

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
}

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def _read(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for one in folder.iterdir():
        if one.is_dir():
            found |= _read(one, f"{prefix}{one.name}/")
        elif one.name.rpartition(".")[2] in _TYPES:
            found[prefix + one.name] = one.read_bytes()
    return found


_FILES = _read(files(__package__) / "static")
_TAGS = {name: f'"{hashlib.sha256(body).hexdigest()[:16]}"' for name, body in _FILES.items()}


async def page(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


async def asset(request: Request) -> Response:
    """One of its files."""
    return _answer(request, request.path_params["name"])


async def home(request: Request) -> Response:
    """Whoever asks for the gateway itself with a browser wants to see something."""
    return RedirectResponse("/console")


def _answer(request: Request, name: str) -> Response:
    body = _FILES.get(name)
    if body is None:
        raise Refusal(404, "not_found", f"the console has no file {name[:80]!r}")
    headers = {**HEADERS, "etag": _TAGS[name]}
    if request.headers.get("if-none-match") == _TAGS[name]:
        return Response(None, 304, headers)
    return Response(body, 200, headers, media_type=_TYPES[name.rpartition(".")[2]])
