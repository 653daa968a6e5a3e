"""The catalogue: every contract ever announced, and the card of each worker, in a KV bucket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js.kv import KeyValue
from pydantic import ValidationError

from modelnet.errors import ConnectionFailed
from modelnet.messages import Contract, PrefixSecret, RollCall, WorkerCard

from . import subjects
from .replay import read_all
from .streams import CATALOGUE

__all__ = ["Catalogue"]

log = structlog.get_logger(__name__)

_PREFIX = f"$KV.{CATALOGUE}."
_PREFIX_SECRET = subjects.PREFIX_SECRET.removeprefix(_PREFIX)


class Catalogue:
    """Reads and writes of the catalogue. What no longer parses is skipped and logged."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._bucket: KeyValue | None = None

    async def _kv(self) -> KeyValue:
        if self._bucket is None:
            try:
                self._bucket = await self._nc.jetstream().key_value(CATALOGUE)
            except (nats.js.errors.NotFoundError, nats.js.errors.NoStreamResponseError, nats.errors.Error):
                raise ConnectionFailed(
                    "this server does not carry a modelnet network yet (start a negotiator, or `modelnet up`)"
                ) from None
        return self._bucket

    async def announce(self, contract: Contract) -> None:
        """Keep a contract under its digest and capability; harmless if it is known."""
        key = contract_key(contract)
        with contextlib.suppress(nats.js.errors.KeyWrongLastSequenceError):
            await (await self._kv()).create(key, contract.encode())

    async def claim(self, card: WorkerCard) -> int | None:
        """Take the card's id unless a living worker has it: the claim's revision, or None.

        It is ours once `confirm` says so, which must be asked when we answer queries for the id: until then another
        that starts at the same moment hears nobody and takes it.
        """
        kv, key, body = await self._kv(), f"worker.{card.worker}", card.encode()
        try:
            created: int = await kv.create(key, body)
            return created
        except nats.js.errors.KeyWrongLastSequenceError:
            pass
        if await self._answers(card.worker):
            return None
        try:
            entry = await kv.get(key)
            updated: int = await kv.update(key, body, last=entry.revision)
            return updated
        except (nats.js.errors.KeyWrongLastSequenceError, nats.js.errors.KeyNotFoundError):
            return None  # another took it meanwhile

    async def confirm(self, card: WorkerCard, revision: int) -> bool:
        """Whether nobody has taken the id since it was claimed; from now on nobody can without asking its holder."""
        try:
            await (await self._kv()).update(f"worker.{card.worker}", card.encode(), last=revision)
        except nats.js.errors.KeyWrongLastSequenceError:
            return False
        return True

    async def _answers(self, worker: str) -> bool:
        """Whether a process serves this id. One that is connected but frozen still holds it."""
        try:
            await self._nc.request(subjects.query(worker), RollCall().encode(), timeout=1.0)
        except nats.errors.NoRespondersError:
            return False
        except nats.errors.TimeoutError:
            return True
        return True

    async def prefix_secret(self, fresh: bytes) -> bytes:
        """What all negotiators key prefix hashes with: `fresh`, if there was none. Raises `ConnectionFailed`."""
        kv, body = await self._kv(), PrefixSecret(secret=fresh).encode()
        try:
            with contextlib.suppress(nats.js.errors.KeyWrongLastSequenceError):
                await kv.create(_PREFIX_SECRET, body)
                return fresh
            entry = await kv.get(_PREFIX_SECRET)
            return PrefixSecret.decode(entry.value or b"").secret
        except (nats.errors.Error, nats.js.errors.Error) as error:
            raise ConnectionFailed(f"the catalogue does not tell the secret of prefix hashes: {error}") from None

    async def leave(self, worker: str) -> None:
        """Remove a worker's card."""
        await (await self._kv()).delete(f"worker.{worker}")

    async def card(self, worker: str) -> WorkerCard | None:
        """The card of a worker, or None."""
        try:
            entry = await (await self._kv()).get(f"worker.{worker}")
        except nats.js.errors.KeyNotFoundError:
            return None
        try:
            return WorkerCard.decode(entry.value or b"")
        except ValidationError as error:
            log.warning("card_unreadable", worker=worker, error=str(error))
            return None

    async def cards(self) -> list[WorkerCard]:
        """All cards, of the dead too."""
        found = []
        async for body in self._all("worker.*"):
            with contextlib.suppress(ValidationError):
                found.append(WorkerCard.decode(body))
        return found

    async def contract(self, pattern: str, digest: str) -> Contract | None:
        """The contract of this digest that was announced for a capability or prefix, or None."""
        try:
            entry = await (await self._kv()).get(_contract_key(pattern, digest))
            return Contract.decode(entry.value or b"")
        except (nats.js.errors.KeyNotFoundError, ValidationError):
            return None

    async def contracts(self) -> list[Contract]:
        """All contracts ever announced."""
        found = []
        async for body in self._all("contract.>"):
            with contextlib.suppress(ValidationError):
                found.append(Contract.decode(body))
        return found

    async def _all(self, keys: str) -> AsyncIterator[bytes]:
        await self._kv()
        async for stored in read_all(self._nc, f"KV_{CATALOGUE}", _PREFIX + keys):
            if "KV-Operation" not in stored.headers and stored.body:
                yield stored.body


def contract_key(contract: Contract) -> str:
    """Key of a contract: its capability, the wildcard spelled `_all`, and its digest's hex."""
    return _contract_key(contract.capability, contract.digest)


def _contract_key(pattern: str, digest: str) -> str:
    return f"contract.{pattern.replace('>', '_all')}.{digest.removeprefix('sha256:')}"
