"""The gateway: the network through HTTP, for whoever speaks one of its doors' protocols. Stateless; several run."""

from .app import create_app, make_app
from .lobby import Lobby, Room

__all__ = ["Lobby", "Room", "app", "create_app", "make_app"]

from modelnet.settings import settings

app = make_app(settings())
