"""Where the A2A agent answers over HTTP: its card at the well-known path, JSON-RPC and REST below one path."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable

from a2a.auth.user import User
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.routes.rest_routes import create_rest_routes
from a2a.utils.constants import AGENT_CARD_WELL_KNOWN_PATH
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from modelnet.agents.a2a_agent import Agent, KnownUser
from modelnet.agents.a2a_card import agent_card
from modelnet.agents.caller import Caller
from modelnet.client import Client
from modelnet.presence import Presence

__all__ = ["PATH", "a2a_routes"]

PATH = "/a2a"

# What a client did wrong it is told; the SDK would warn of each in the log too.
logging.getLogger("a2a").setLevel(logging.ERROR)


class _Contexts(DefaultServerCallContextBuilder):
    def __init__(self, caller_of: Callable[[Request], Caller]) -> None:
        self._caller_of = caller_of

    def build_user(self, request: Request) -> User:
        return KnownUser(self._caller_of(request))


def a2a_routes(
    client: Client,
    presence: Presence,
    *,
    caller_of: Callable[[Request], Caller],
    url_of: Callable[[Request], str],
    keys: bool = True,
) -> list[BaseRoute]:
    """`caller_of`: whose request it is, once it has been let in. `url_of`: the base URL that its sender knows us by.
    `keys`: whether a bearer key is needed, which the card says; the card itself is for everybody."""
    agent, contexts = Agent(client, presence), _Contexts(caller_of)

    async def card(request: Request) -> Response:
        found = agent_card_to_dict(agent_card(presence.contracts, url_of(request) + PATH, keys=keys))
        body = json.dumps(found, ensure_ascii=False).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "public, no-cache"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    return [
        Route(AGENT_CARD_WELL_KNOWN_PATH, card, methods=["GET"]),
        *create_jsonrpc_routes(agent, PATH, contexts),
        Mount(PATH, routes=create_rest_routes(agent, contexts)),
    ]
