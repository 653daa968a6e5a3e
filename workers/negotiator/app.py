"""The negotiator as a FastStream app: `workers.negotiator:app`."""

from __future__ import annotations

from faststream import FastStream

from modelnet.bus.broker import make_broker, specification
from modelnet.log import setup_logging
from modelnet.messages import Beat, Offer
from modelnet.settings import Settings, settings

from .negotiator import Negotiator

__all__ = ["app", "make_app"]


def make_app(config: Settings, negotiator: Negotiator | None = None) -> FastStream:
    """The negotiator, a new one unless it is given, as a FastStream app."""
    negotiator = negotiator or Negotiator(config)
    broker = make_broker(config, "modelnet-negotiator", on_reconnect=negotiator.reconnected)

    # Not in the document: `specification` describes them, with the names of what the wildcards stand for.
    @broker.subscriber("beat.*", include_in_schema=False)
    async def on_beat(beat: Beat) -> None:
        await negotiator.hear(beat)

    @broker.subscriber("offer.>", include_in_schema=False)
    async def on_offer(offer: Offer) -> None:
        await negotiator.offered(offer)

    app = FastStream(broker, specification=specification("negotiator"))

    @app.on_startup
    async def prepare() -> None:
        setup_logging(config)

    @app.after_startup
    async def join() -> None:
        await negotiator.start(broker.connection)

    @app.on_shutdown
    async def leave() -> None:
        await negotiator.stop()

    return app


app = make_app(settings())
