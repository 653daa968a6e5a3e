"""OpenAI's API in front of the network: chat, completions, responses, embeddings, models."""

from starlette.routing import Route

from workers.gateway.exchange import answered_by
from workers.gateway.lobby import Room

from .chat import chat
from .completions import completions
from .embeddings import embeddings
from .models import model, models
from .responses import responses

__all__ = ["openai_room"]


def openai_room() -> Room:
    """Its routes."""
    doors = {"chat/completions": chat, "completions": completions, "responses": responses, "embeddings": embeddings}
    return Room(
        [
            *(Route(f"/v1/{path}", answered_by(serve), methods=["POST"]) for path, serve in doors.items()),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", model),
        ]
    )
