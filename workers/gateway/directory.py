"""The directory: what the network can do, as its catalogue says, and what a client means by a model's name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelnet.client import Client
from modelnet.messages import CapabilityCard, Contract, WorkerCard, is_capability, matches

from .refusal import Refusal

__all__ = ["Directory", "Meant", "is_below"]

_FRESH_S = 5.0
_PAUSE_S = 0.5
"""Unknown names make it look again, but not more often than this."""


@dataclass(frozen=True, slots=True)
class Meant:
    """What a client asks for."""

    capability: str
    model: str | None = None
    """The model that must answer, if it was named."""

    @property
    def require(self) -> Mapping[str, str] | None:
        """As a task says it."""
        return {"model": self.model} if self.model else None


@dataclass(slots=True)
class _Known:
    at: float = float("-inf")
    contracts: list[Contract] = field(default_factory=list)
    cards: list[WorkerCard] = field(default_factory=list)


def is_below(capability: str, parent: str) -> bool:
    """Whether a capability is another or more special than that."""
    return capability == parent or capability.startswith(f"{parent}.")


class Directory:
    """A copy of the catalogue, made anew in the background, and at once for a name that it does not have."""

    def __init__(self, net: Client) -> None:
        self._net = net
        self._known = _Known()
        self._looking: asyncio.Task[None] | None = None

    async def contract(self, capability: str) -> Contract | None:
        """The most exact contract of a capability; the newest, if several stand beside each other."""
        await self._look_if(not self._covers(capability))
        found = [one for one in self._known.contracts if matches(one.capability, capability)]
        return max(found, key=lambda one: len(one.capability), default=None)

    async def contracts(self) -> list[Contract]:
        """All of them, as they are now."""
        await self._look()
        return self._known.contracts

    async def meaning(self, name: str, *, family: str) -> Meant:
        """What `name` stands for: a capability, a model, or `auto`, which is the `family` of the door that was come by.

        Of several capabilities that a model has, one of the family is taken. Raises `Refusal` 404 for what nobody
        knows, 400 for a model that has several of another family, and `ConnectionFailed`.
        """
        if name == "auto":
            return Meant(family)
        if is_capability(name) and (is_below(name, family) or self._covers(name)):
            return Meant(name)
        cards = self._served(name)
        if not cards:
            await self._look_if(True)
            if is_capability(name) and self._covers(name):
                return Meant(name)
            cards = self._served(name)
        if not cards:
            raise Refusal(
                404,
                "model_not_found",
                f"{name!r} is neither a capability nor a model of this network: GET /v1/models lists both",
                param="model",
            )
        return Meant(_capability(name, cards, family), name)

    def _covers(self, capability: str) -> bool:
        return any(matches(one.capability, capability) for one in self._known.contracts)

    def _served(self, model: str) -> list[CapabilityCard]:
        return [one for card in self._known.cards for one in card.capabilities if one.model == model]

    async def _look_if(self, missing: bool) -> None:
        age = time.monotonic() - self._known.at
        if missing and age > _PAUSE_S:
            await self._look()
        elif age > _FRESH_S and self._looking is None:
            self._begin()

    def _begin(self) -> asyncio.Task[None]:
        if self._looking is None:
            self._looking = asyncio.create_task(self._read())
            self._looking.add_done_callback(self._looked)
        return self._looking

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # who waited has been told; who did not goes on with what is known

    async def _look(self) -> None:
        await asyncio.shield(self._begin())

    async def _read(self) -> None:
        contracts = await self._net.contracts()
        cards = await self._net.catalogue.cards()
        self._known = _Known(time.monotonic(), contracts, cards)


def _capability(model: str, cards: list[CapabilityCard], family: str) -> str:
    """The one to ask a model for."""
    patterns = list(dict.fromkeys(card.pattern for card in cards))
    for pattern in patterns:
        if matches(pattern, family):
            return family
    related = [pattern for pattern in patterns if is_below(pattern.removesuffix(".>"), family)]
    wanted = [pattern for pattern in related or patterns if not pattern.endswith(">")]
    if len(wanted) != 1:
        said = ", ".join(sorted(patterns))
        raise Refusal(
            400,
            "ambiguous_model",
            f"model {model!r} serves {said}: name the capability as `model`, and the model in `modelnet.require`",
            param="model",
        )
    return wanted[0]
