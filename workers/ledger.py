"""The ledger worker: settles what the journal says has ended, and asks after holds whose task should have.

A Final is acknowledged only once Redis has it, and settling twice is settling once: so each counts once, whatever dies
or is away meanwhile. Any number of these processes share the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from faststream import FastStream
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import subjects
from modelnet.bus.broker import make_broker, specification
from modelnet.bus.journal import HELD_HEADER
from modelnet.bus.metering import MeteredTenants, announce_metering
from modelnet.bus.pull import Pull
from modelnet.bus.replay import last_of, message_at
from modelnet.bus.services import Endpoint, Service, Statistics
from modelnet.bus.streams import LEDGER_CONSUMER, setup_bus
from modelnet.errors import ConnectionFailed, LedgerAway
from modelnet.log import setup_logging
from modelnet.messages import Final, new_id
from modelnet.settings import Settings, settings
from modelnet.store.ledger import MARGIN_S, Ledger

T = TypeVar("T")

log = structlog.get_logger("ledger")

SWEEP_S = 30.0
RETRY_S = (0.2, 0.5, 1.0, 2.0)
"""Pauses before Redis or the streams are asked again; the last one for ever."""


class LedgerWorker:
    """Carries Finals from the journal to the ledger."""

    def __init__(self, config: Settings, ledger: Ledger | None = None) -> None:
        self._settings = config
        self._ledger = ledger or Ledger(config.redis)
        self._jobs: list[asyncio.Task[None]] = []
        self._in_hand: set[str] = set()
        """Reply subjects of the Finals that are not acknowledged."""
        self._pull: Pull | None = None
        self._service: Service | None = None
        self._statistics = Statistics()
        self._away = False

    async def start(self, nc: Client) -> None:
        """Make the streams and begin."""
        self._nc = nc
        await setup_bus(nc, ack_wait_s=self._settings.ack_wait_s, replicas=self._settings.replicas)
        self._metered = MeteredTenants(nc)
        await self._metered.listen()
        self._pull = Pull(nc, "JOURNAL", LEDGER_CONSUMER)
        await self._pull.start()
        finals = {"stream": "JOURNAL", "message": "Final"}
        self._service = Service(
            nc,
            "modelnet-ledger",
            f"ledger-{new_id()[-12:]}",
            description="Settles what tasks have cost",
            endpoints=[Endpoint("settlements", subjects.journal("*", "*", "final"), self._statistics, finals)],
            state=lambda: {"in_hand": len(self._in_hand)},
        )
        await self._service.open()
        self._jobs = [asyncio.create_task(self._follow()), asyncio.create_task(self._sweep_for_ever())]
        log.info("ledger_started")

    async def stop(self) -> None:
        """Give back what is not settled; another worker gets it at once."""
        if self._service is not None:
            await self._service.close()
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        if self._pull is not None:
            await self._pull.stop()
        for reply in self._in_hand:
            await self._nc.publish(reply, b"-NAK")
        self._in_hand.clear()
        await self._ledger.close()

    async def reconnected(self) -> None:
        """The server has forgotten what was asked for."""
        if self._pull is not None:
            self._pull.reset()

    # ------------------------------------------------------------------ what has ended

    async def _follow(self) -> None:
        assert self._pull is not None
        while True:
            batch = await self._pull.next()
            held = [msg for msg in batch if HELD_HEADER in (msg.headers or {})]
            self._in_hand.update(msg.reply for msg in held)
            for msg in batch:
                if msg.reply not in self._in_hand:
                    await self._nc.publish(msg.reply, b"+ACK")
            await asyncio.gather(*map(self._book, held))

    async def _book(self, msg: Msg) -> None:
        """Enter one Final, as often as it takes."""

        async def enter() -> None:
            stored = await message_at(self._nc, "JOURNAL", msg.metadata.sequence.stream)
            if stored is not None:  # else it lay there for two days: the sweep has seen to its hold
                await self._end(stored.body)

        async def keep() -> None:
            await self._nc.publish(msg.reply, b"+WPI")

        self._statistics.requests += 1
        begun, failure = time.monotonic(), None
        try:
            await self._until_done(enter, keep)
        except Exception as error:  # one that cannot be entered must not stand before the others
            failure = repr(error)
            log.error("final_not_entered", subject=msg.subject, error=failure, exc_info=error)
            await self._nc.publish(msg.reply, b'-NAK {"delay": %d}' % int(SWEEP_S * 1e9))
        else:
            await self._nc.publish(msg.reply, b"+ACK")
        self._statistics.ended((time.monotonic() - begun) * 1e3, failure)
        self._in_hand.discard(msg.reply)

    async def _end(self, body: bytes) -> None:
        try:
            final = Final.decode(body)
        except ValidationError as error:
            log.error("final_unreadable", error=str(error))  # its hold is released by the sweep
            return
        lost = {(one.auction, one.worker): -one.price for one in final.settlements if one.price < 0}
        if (final.price is not None and final.owner is not None) or lost:
            price, owner = max(final.price or 0, 0), final.owner or ""
            paid = await self._ledger.settle(final.tenant, final.task, owner, price, lost)
            log.debug("task_settled", task=final.task, tenant=final.tenant, owner=owner, paid=paid)
            if paid != price:
                log.warning("paid_other_than_price", task=final.task, tenant=final.tenant, price=price, paid=paid)
        else:
            await self._ledger.release(final.tenant, final.task)
            log.debug("task_released", task=final.task, tenant=final.tenant, status=final.status)

    # ------------------------------------------------------------------ what should have ended

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self._until_done(self.sweep)
            except Exception as error:
                log.error("sweep_failed", error=repr(error), exc_info=error)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Ask what became of each hold that is due, and tell the bus again who is metered.

        Raises `LedgerAway` or `ConnectionFailed`; all that was done by then stands.
        """
        await self._metered.refresh()  # first: whoever opens an account meanwhile tells the ledger before the bus
        for tenant in await self._ledger.metered():
            if tenant not in self._metered:
                await announce_metering(self._nc, tenant, metered=True)
        while holds := await self._ledger.due():
            for tenant, task in holds:
                await self._ask_after(tenant, task)

    async def _ask_after(self, tenant: str, task: str) -> None:
        # In this order: a task leaves its stream only when its Final stands in the journal.
        if await last_of(self._nc, "TASKS", subjects.queued_task(tenant, task)) is not None:
            await self._ledger.postpone(tenant, task, MARGIN_S)
            return
        final = await last_of(self._nc, "JOURNAL", subjects.journal(tenant, task, "final"))
        if final is not None:
            await self._end(final.body)
        else:
            log.warning("hold_without_task", tenant=tenant, task=task)
        await self._ledger.release(tenant, task)  # nothing, if its Final has settled it

    # ------------------------------------------------------------------ patience

    async def _until_done(
        self, work: Callable[[], Awaitable[T]], keep: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """Do something that needs Redis and the streams, as often as it takes. `keep`: done before each pause."""
        tried = 0
        while True:
            try:
                done = await work()
            except (LedgerAway, ConnectionFailed) as error:
                if not self._away:
                    log.warning("ledger_away", error=str(error))
                self._away = True
            else:
                if self._away:
                    log.info("ledger_back")
                self._away = False
                return done
            if keep is not None:
                await keep()
            await asyncio.sleep(RETRY_S[min(tried, len(RETRY_S) - 1)])
            tried += 1


def make_app(config: Settings, worker: LedgerWorker | None = None) -> FastStream:
    """The ledger worker, a new one unless it is given, as a FastStream app."""
    worker = worker or LedgerWorker(config)
    broker = make_broker(config, "modelnet-ledger", on_reconnect=worker.reconnected)
    app = FastStream(broker, specification=specification("ledger"))

    @app.on_startup
    async def prepare() -> None:
        setup_logging(config)

    @app.after_startup
    async def join() -> None:
        await worker.start(broker.connection)

    @app.on_shutdown
    async def leave() -> None:
        await worker.stop()

    return app


app = make_app(settings())
