"""The console's paths. The page and what anybody may see need no key; all under `/console/api/` does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from workers.gateway.lobby import Lobby, Room

from . import books, pages, tasks
from .answers import Endpoint, explained
from .audience import NOBODY, Audience, audience_of
from .live import Picture

__all__ = ["console"]


def console() -> Room:
    """The console as a room of a gateway."""
    pictures: list[Picture] = []

    @contextlib.asynccontextmanager
    async def lifespan(lobby: Lobby) -> AsyncIterator[None]:
        pictures.append(Picture(lobby))
        try:
            yield
        finally:
            await pictures.pop().close()

    def frames(audience: Audience) -> Response:
        events = pictures[-1].frames(audience)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def watch(_: Request) -> Response:
        """The live picture, as anybody may see it."""
        return frames(NOBODY)

    async def live(request: Request) -> Response:
        """The live picture, for who is signed in."""
        return frames(audience_of(request))

    def get(path: str, endpoint: Endpoint) -> Route:
        return Route(path, explained(endpoint), methods=["GET"])

    def post(path: str, endpoint: Endpoint) -> Route:
        return Route(path, explained(endpoint), methods=["POST"])

    return Room(
        routes=[
            get("/", pages.home),
            get("/console", pages.page),
            get("/console/", pages.home),
            get("/console/static/{name:path}", pages.asset),
            get("/console/watch", watch),
            get("/console/api/live", live),
            get("/console/api/me", tasks.me),
            get("/console/api/contracts", tasks.contracts),
            post("/console/api/tasks", tasks.submit),
            get("/console/api/tasks/{tenant}/{task}", tasks.record),
            get("/console/api/tasks/{tenant}/{task}/stream", tasks.stream),
            post("/console/api/tasks/{tenant}/{task}/cancel", tasks.cancel),
            get("/console/api/accounts/{name}", books.account),
            get("/console/api/letters", books.letters),
            get("/console/api/letters/{number:int}", books.letter),
            post("/console/api/letters/{number:int}/retry", books.retry),
            post("/console/api/letters/{number:int}/drop", books.drop),
        ],
        public=("/", "/console", "/console/", "/console/static/*", "/console/watch"),
        lifespan=lifespan,
    )
