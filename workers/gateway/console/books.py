"""Accounts and dead letters on the console: an operator sees all of them, a tenant its own."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from modelnet.bus.deadletters import Buried, DeadLetters
from modelnet.store.ledger import Ledger
from workers.gateway.lobby import lobby_of
from workers.gateway.refusal import Refusal

from .answers import answer, body_of
from .audience import audience_of

__all__ = ["account", "drop", "letter", "letters", "retry"]

_LETTERS = 200
_BODY = 64 * 1024


async def account(request: Request) -> Response:
    """An account: balance, limits, open holds, and its last movements."""
    name = request.path_params["name"]
    if not audience_of(request).may_see(name):
        raise Refusal(403, "not_yours", "a tenant sees its own account alone")
    async with Ledger(lobby_of(request).config.redis) as ledger:
        found = await ledger.account(name)
        holds, entries = await ledger.holds(name), await ledger.statement(name, 50)
    return answer(
        {**asdict(found), "open_holds": [asdict(one) for one in holds], "entries": [asdict(one) for one in entries]}
    )


async def letters(request: Request) -> Response:
    """The newest dead letters, without their bodies."""
    audience = audience_of(request)
    found: deque[dict[str, Any]] = deque(maxlen=_LETTERS)
    async for buried in DeadLetters(lobby_of(request).net.bus).all():
        if audience.may_see(_tenant(buried)):
            found.append(_summary(buried))
    return answer(list(found))


async def letter(request: Request) -> Response:
    """One letter, with its body as text, or as hex where it is none."""
    buried = await _buried(request)
    body = buried.letter.body[:_BODY]
    try:
        told = {"body": body.decode()}
    except UnicodeDecodeError:
        told = {"body_hex": body.hex(" ", 4)}
    cut = buried.letter.cut_from is not None or len(buried.letter.body) > _BODY
    return answer({**_summary(buried), "headers": buried.letter.headers, "cut": cut, **told})


async def retry(request: Request) -> Response:
    """Publish a letter's task again."""
    await body_of(request)
    buried = await _buried(request)
    task = await DeadLetters(lobby_of(request).net.bus).retry(buried)
    return answer({"number": buried.number, "task": task.id, "tenant": task.tenant})


async def drop(request: Request) -> Response:
    """Delete a letter for good."""
    await body_of(request)
    buried = await _buried(request)
    await DeadLetters(lobby_of(request).net.bus).drop(buried.number)
    return answer({"number": buried.number, "dropped": True})


async def _buried(request: Request) -> Buried:
    number, audience = int(request.path_params["number"]), audience_of(request)
    buried = await DeadLetters(lobby_of(request).net.bus).get(number)
    if not audience.may_see(_tenant(buried)):
        raise Refusal(404, "unknown_letter", f"there is no dead letter {number} of yours")
    return buried


def _tenant(buried: Buried) -> str | None:
    """Whose task it is, as the subject says that the server gave it."""
    parts = buried.letter.subject.split(".")
    return parts[3] if parts[0] == "task" and len(parts) > 5 else None


def _summary(buried: Buried) -> dict[str, Any]:
    return {
        "number": buried.number,
        "time": buried.time,
        "subject": buried.letter.subject,
        "bytes": buried.size,
        "reason": buried.letter.reason,
        "tenant": _tenant(buried),
    }
