"""The parts of tasks that are made of others: published, followed in their journals, cancelled.

Their deltas are not heard: who wants them reads the part's own stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client as Bus
from nats.aio.msg import Msg

from modelnet.bus import journal, subjects
from modelnet.bus.bodies import Bodies
from modelnet.bus.connection import unsubscribe
from modelnet.bus.replay import last_of
from modelnet.client import Client
from modelnet.errors import ModelnetError, ObjectLost, TooLarge, UnknownTask, UsageError
from modelnet.market.commands import StartPart
from modelnet.messages import Awarded, ErrorInfo, Final
from modelnet.settings import Settings

from .hand import Hand, Held, Part

__all__ = ["Parts"]

log = structlog.get_logger("negotiator")

RETRY_S = 1.0
POLL_S = 5.0
"""A part's journal is read when it has news, and so often in case that news was missed."""

LARGE_AT_ONCE = 2
"""Part inputs that are put together from large values at once."""


class Parts:
    """All parts of the tasks in hand. What is begun here is tried again while the streams are away."""

    def __init__(
        self,
        nc: Bus,
        config: Settings,
        hand: Hand,
        *,
        on_event: Callable[[Held, int, Awarded | Final | ErrorInfo], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """`on_event(held, number, what)` is told of a part's awards and its end, or why it cannot be published."""
        self._nc, self._hand, self._on_event, self._spawn = nc, hand, on_event, spawn
        self._client, self._bodies = Client(nc, config), Bodies(nc, config)
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    def start(self, held: Held, order: StartPart) -> None:
        """Publish a part and follow it, to its own end or its task's."""
        held.parts[order.task.id] = part = Part()
        part.follower = self._spawn(self._follow(held, order, part))

    def cancel(self, held: Held, part: str) -> None:
        """Cancel a part, unless it has ended or was never published."""
        if part not in held.cancels:
            held.cancels[part] = self._spawn(self._cancel(held, part))

    async def cancelled(self, held: Held) -> None:
        """Wait until all cancels of a task's parts stand."""
        while left := [job for job in held.cancels.values() if not job.done()]:
            await asyncio.wait(left)

    def reconnected(self) -> None:
        """News may have been missed."""
        for held in self._hand.all():
            for part in held.parts.values():
                part.news.set()

    # ------------------------------------------------------------------ following

    async def _follow(self, held: Held, order: StartPart, part: Part) -> None:
        tenant, id = order.task.tenant, order.task.id

        async def hear(msg: Msg) -> None:
            part.news.set()

        sub = await self._nc.subscribe(subjects.news_of(tenant, id), cb=hear)
        try:
            try:
                await self._until_done(held, id, lambda: self._publish(order))
            except (TooLarge, ObjectLost, UsageError) as error:
                refused = ErrorInfo(code=error.wire_code, message=error.message[:4096])
                await self._on_event(held, order.number, refused)
                return
            finally:
                part.published.set()
            await self._until_done(held, id, lambda: self._watch(held, order, part))
        finally:
            await unsubscribe(sub)

    async def _until_done(self, held: Held, id: str, work: Callable[[], Awaitable[None]]) -> None:
        while self._hand.holds(held) and not held.undertaking.over and not self._nc.is_closed:
            try:
                await work()
                break
            except (TooLarge, ObjectLost, UsageError):
                raise
            except (ModelnetError, nats.errors.Error) as error:
                log.warning("part_not_followed", task=held.task.id, part=id, error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _publish(self, order: StartPart) -> None:
        task = order.task
        if order.perhaps_known:
            # Under the same Msg-Id it would be stored again, once the stream has forgotten that.
            queued = subjects.queued_task(task.tenant, task.id)
            if await journal.read(self._nc, task.tenant, task.id) or await last_of(self._nc, "TASKS", queued):
                return
        if not order.stored:
            await self._client.publish(task, follow=False)
            return
        async with self._large:
            values = {name: await self._bodies.fetch(reference) for name, reference in order.stored.items()}
            whole = task.model_copy(update={"input": {**task.input, **values}})
            await self._client.publish(whole, follow=False)

    async def _watch(self, held: Held, order: StartPart, part: Part) -> None:
        while True:
            part.news.clear()
            for sequence, entry in await journal.read(self._nc, order.task.tenant, order.task.id):
                if sequence <= part.seen:
                    continue
                part.seen = sequence
                if isinstance(entry, Awarded | Final):
                    await self._on_event(held, order.number, entry)
                if isinstance(entry, Final):
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await part.news.wait()

    # ------------------------------------------------------------------ cancelling

    async def _cancel(self, held: Held, id: str) -> None:
        if (part := held.parts.get(id)) is not None:
            await part.published.wait()  # else it might come after it was looked for in vain
        while not self._nc.is_closed:
            try:
                await self._client.cancel(id, tenant=held.task.tenant)
                return
            except UnknownTask:
                return
            except (ModelnetError, nats.errors.Error) as error:
                log.warning("part_not_cancelled", task=held.task.id, part=id, error=str(error))
            await asyncio.sleep(RETRY_S)
