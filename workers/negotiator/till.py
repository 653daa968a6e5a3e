"""The negotiator's side of the ledger: holds money for tasks of those who are charged."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

import structlog
from nats.aio.client import Client

from modelnet.bus.metering import MeteredTenants
from modelnet.errors import ModelnetError
from modelnet.market.commands import HoldDeposit
from modelnet.messages import ErrorInfo, Task
from modelnet.settings import Settings

if TYPE_CHECKING:
    from modelnet.store.ledger import Ledger

__all__ = ["Till"]

log = structlog.get_logger("negotiator")

LEDGER_TIMEOUT_S = 3.0
"""Longest wait for the ledger before a task's readers are told that it is away."""


class Till:
    """Who is charged, and a connection to the ledger, made when it is first needed."""

    def __init__(self, nc: Client, settings: Settings) -> None:
        self._settings = settings
        self._metered = MeteredTenants(nc)
        self._ledger: Ledger | None = None
        self._away = False

    async def open(self) -> None:
        """Learn who is charged."""
        await self._metered.listen()
        await self.refresh()
        if self._metered:
            await self._connect()

    async def refresh(self) -> None:
        """Learn it anew: news may have been missed."""
        await self._metered.refresh()

    async def close(self) -> None:
        """Disconnect."""
        if self._ledger is not None:
            await self._ledger.close()

    def charges(self, task: Task) -> bool:
        """Whether its tenant's money must be held before an award."""
        return task.tenant in self._metered or not self._settings.free_tenants

    async def _connect(self) -> Ledger:
        # A third of a second of imports that a network without accounts never needs.
        module = await asyncio.to_thread(importlib.import_module, "modelnet.store.ledger")
        if self._ledger is None:
            self._ledger = module.Ledger(self._settings.redis)
        return self._ledger

    async def hold(self, task: Task, amount: int, deadline_s: float) -> ErrorInfo | None:
        """Set `amount` micro-credits aside; the refusal, if there is one. Raises `ModelnetError` or `TimeoutError` if
        the ledger is away."""
        try:
            ledger = self._ledger or await self._connect()
            async with asyncio.timeout(LEDGER_TIMEOUT_S):
                refusal = await ledger.hold(task.tenant, task.id, amount, deadline_s=deadline_s)
        except (ModelnetError, TimeoutError) as error:
            if not self._away:
                log.warning("ledger_away", error=str(error) or f"no answer in {LEDGER_TIMEOUT_S:g} s")
            self._away = True
            raise
        if self._away:
            log.info("ledger_back")
        self._away = False
        return refusal

    async def deposit(self, task: Task, asked: HoldDeposit) -> bool:
        """Set what a worker's owner puts up aside; whether it is held. An answer that is lost counts as no: what is
        held all the same goes back when the task ends."""
        try:
            ledger = self._ledger or await self._connect()
            async with asyncio.timeout(LEDGER_TIMEOUT_S):
                said = await ledger.deposit(
                    task.tenant,
                    task.id,
                    asked.amount,
                    auction=asked.auction,
                    worker=asked.worker,
                    owner=asked.owner,
                )
        except (ModelnetError, TimeoutError) as error:
            log.warning("deposit_unanswered", task=task.id, worker=asked.worker, error=str(error))
            return False
        if said != "held":
            log.info("deposit_refused", task=task.id, worker=asked.worker, owner=asked.owner, reason=said)
        return said == "held"
