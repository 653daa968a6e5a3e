"""A gateway on the loop of a test, as the process that it is."""

from __future__ import annotations

from typing import Any, Self

from modelnet.bus.embedded import HeldPort
from modelnet.settings import Settings
from workers.gateway import make_app

__all__ = ["Gateway"]


class Gateway:
    """Serves on a port of its own."""

    def __init__(self, config: Settings, **changes: Any) -> None:
        self._port = HeldPort()
        address = f"127.0.0.1:{self._port.number}"
        self.config = config.model_copy(update={"gateway_listen": address, **changes})
        self.url = f"http://{address}"
        self._app = make_app(self.config)

    async def __aenter__(self) -> Self:
        await self._app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._app.stop()
        self._port.release()
