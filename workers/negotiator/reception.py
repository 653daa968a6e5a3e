"""Where tasks come in: messages off the stream are read, examined, and taken in hand, or go back, or are given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import nats.errors
import structlog
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet.bus import journal
from modelnet.bus.clock import ServerClock
from modelnet.bus.connection import Connection
from modelnet.bus.intake import Delivery, TaskIntake
from modelnet.bus.streams import last_sequence
from modelnet.errors import ModelnetError, ObjectLost, TooLarge
from modelnet.market import COMPOSITE, Directory, Journal, Pace, Undertaking
from modelnet.market.commands import Command
from modelnet.messages import ErrorInfo, Features, Final, Task

from .examiner import Examined, Examiner
from .hand import Hand, Held

__all__ = ["Reception"]

log = structlog.get_logger("negotiator")

RETURN_S = 1.0
RETURNS_PER_S = 1000.0

MAX_STUMBLES = 3
"""Times that taking a task may fail unexpectedly before it is given up."""


class Reception:
    """Takes tasks in hand. One of a kind that is known costs no question to anybody."""

    def __init__(
        self,
        nc: Connection,
        hand: Hand,
        *,
        negotiator: str,
        directory: Directory,
        examiner: Examiner,
        clock: ServerClock,
        limit: int,
        max_body_bytes: int,
        undertake: Callable[[Task, Features, Callable[[str], bool], float, Journal], Undertaking],
        relist: Callable[[], Awaitable[None]],
        run: Callable[[Held, list[Command]], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """`limit`: tasks held at once. `undertake(task, features, accepts, age_s, journal)` makes the undertaking of a
        task, `run` carries out its commands. `relist` reads the catalogue anew."""
        self._nc, self._hand, self._negotiator = nc, hand, negotiator
        self._directory, self._examiner, self._clock = directory, examiner, clock
        self._max_body_bytes = max_body_bytes
        self._undertake, self._relist, self._run, self._spawn = undertake, relist, run, spawn
        self._intake = TaskIntake(nc, self._on_task, limit=limit)
        self._pace = Pace(least_s=RETURN_S, rate=RETURNS_PER_S)
        self._released = 0
        self._fetching: dict[tuple[str, str], Msg] = {}
        """Tasks whose large inputs are on their way, before they are held."""
        self._stumbles: dict[int, int] = {}
        self._queued_before: int | None = None
        """Last task that was queued before this connection; None while that is not known."""

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Take tasks from now on."""
        await self._mark()
        await self._intake.start()

    async def close(self) -> None:
        """Take no more; what the server has sent already goes back to it."""
        await self._intake.stop()

    async def reconnected(self) -> None:
        """The server has forgotten what was asked for."""
        self._queued_before = None
        await self._intake.reset()
        await self._mark()

    async def tick(self, period_s: float) -> None:
        """Now and then: ask for tasks where no request is open."""
        if self._queued_before is None:
            await self._mark()
        await self._intake.refill()
        self._pace.worked_off(self._released / period_s)
        self._released = 0

    async def _mark(self) -> None:
        self._queued_before = await last_sequence(self._nc, "TASKS")

    async def keep(self) -> None:
        """Tell the server that all that is held is worked on."""
        for msg in [*(held.msg for held in self._hand.all()), *self._fetching.values()]:
            await self._nc.publish(msg.reply, b"+WPI")

    async def finished(self, held: Held) -> None:
        """A task has its Final: it leaves the stream."""
        self._released += 1
        await self._nc.publish(held.msg.reply, b"+ACK")
        self._hand.forget(held)
        await self._leave_intake(held)

    async def abandon(self, held: Held) -> None:
        """A task is another negotiator's."""
        self._hand.forget(held)
        await self._leave_intake(held)

    async def begun(self, held: Held) -> None:
        """A worker took a task on: others may be taken in hand meanwhile."""
        if self._hand.begin(held):
            await self._leave_intake(held)

    async def give_back(self, held: Held) -> None:
        """There is no room for a task after all: it comes again later."""
        self._hand.forget(held)
        await self._nc.publish(held.msg.reply, _nak(self._pause_s(held.msg, held.task)))
        await self._leave_intake(held)

    async def _leave_intake(self, held: Held) -> None:
        if held.in_intake:
            held.in_intake = False
            await self._intake.release()

    # ------------------------------------------------------------------ messages

    async def _on_task(self, msg: Msg) -> None:
        try:
            task = Task.decode(msg.data)
            _, _, _, tenant, task_id, capability = msg.subject.split(".", 5)
            if (task.tenant, task.id, task.capability) != (tenant, task_id, capability):
                raise ValueError("the subject names another task than the body")
        except ValueError as wrong:
            reason = journal.first_error(wrong) if isinstance(wrong, ValidationError) else str(wrong)
            error = ErrorInfo(code="malformed", message=reason[:4096])
            self._spawn(self._safely(msg, self._bury(msg, error)))
            return
        if not self._hand.has_room_for(task) or self._too_early(msg, task):
            await self._postpone(msg, task)
        elif self._is_simple(msg, task):
            await self._safely(msg, self._take(msg, task, ()))
        else:
            self._spawn(self._safely(msg, self._take_slowly(msg, task)))

    def _too_early(self, msg: Msg, task: Task) -> bool:
        """Whether it should be worked on by several, and will be in time when it is known who is there."""
        if task.strategy.kind not in COMPOSITE or self._directory.settled(time.monotonic()):
            return False
        return task.deadline_s - self._age_s(msg) > 2 * RETURN_S + self._directory.settles_in(time.monotonic())

    def _is_simple(self, msg: Msg, task: Task) -> bool:
        """Whether a task can be taken without asking the server for anything."""
        known = self._directory.knows(task.capability) and task.input_ref is None
        return known and self._is_new(msg) and self._hand.get(task.tenant, task.id) is None

    def _is_new(self, msg: Msg) -> bool:
        """Whether nobody can have had the task in hand. A server that crashed has forgotten what it delivered."""
        delivery, before = Delivery.of(msg), self._queued_before
        return delivery.times == 1 and before is not None and delivery.sequence > before

    async def _safely(self, msg: Msg, work: Coroutine[Any, Any, None]) -> None:
        """Take a message in hand; if that fails or is cut off, it goes back to the stream for a while, a few times."""
        sequence = Delivery.of(msg).sequence
        try:
            await work
        except (Exception, asyncio.CancelledError) as error:
            for held in self._hand.all():
                if held.msg is msg:
                    self._hand.forget(held)
            if isinstance(error, asyncio.CancelledError):
                await self._return(msg, RETURN_S)
                raise
            if isinstance(error, ModelnetError | nats.errors.Error):  # the streams are away: not the task's fault
                log.warning("task_not_taken", subject=msg.subject, error=str(error))
                await self._return(msg, RETURN_S)
                return
            log.error("task_not_taken", subject=msg.subject, error=repr(error), exc_info=error)
            self._stumbles[sequence] = self._stumbles.pop(sequence, 0) + 1
            if self._stumbles[sequence] < MAX_STUMBLES:
                await self._return(msg, RETURN_S)
                return
            reason = f"{type(error).__name__}: {error}"
            self._spawn(self._safely(msg, self._bury(msg, ErrorInfo(code="internal", message=reason[:4096]))))
        self._stumbles.pop(sequence, None)

    async def _return(self, msg: Msg, delay_s: float) -> None:
        await self._nc.publish(msg.reply, _nak(delay_s))
        await self._intake.release()

    async def _postpone(self, msg: Msg, task: Task) -> None:
        """There is no room for this task now."""
        await self._return(msg, self._pause_s(msg, task))

    def _pause_s(self, msg: Msg, task: Task) -> float:
        return self._pace.delay(time.monotonic(), task.deadline_s - self._age_s(msg))

    def _age_s(self, msg: Msg) -> float:
        return max(self._clock.now() - Delivery.of(msg).queued_at, 0.0)

    async def _bury(self, msg: Msg, error: ErrorInfo) -> None:
        """A message that cannot be handled: keep it whole for a person, tell its publisher, take it off the stream."""
        log.warning("task_given_up", subject=msg.subject, code=error.code, reason=error.message)
        await journal.bury(self._nc, msg, error.message)
        await journal.write_given_up(self._nc, self._negotiator, msg, error)
        await msg.term()
        await self._intake.release()

    # ------------------------------------------------------------------ taking

    async def _take_slowly(self, msg: Msg, task: Task) -> None:
        """A task that was delivered before, is in hand already, or wants a capability not heard of yet."""
        entries: Journal = ()
        key = task.tenant, task.id
        if self._hand.get(*key) is None:
            if not self._directory.knows(task.capability):
                await self._relist()
            entries = await journal.read(self._nc, *key)
        held = self._hand.get(*key)
        had = held.msg if held is not None else self._fetching.get(key)
        if had is not None:
            if Delivery.of(had).sequence != Delivery.of(msg).sequence:
                await msg.ack()  # published twice
            elif held is not None:
                held.msg = msg  # delivered again because an in-progress was late: this reply is the live one
            else:
                self._fetching[key] = msg
            await self._intake.release()
            return
        if task.input_ref is None:
            await self._take(msg, task, entries)
            return
        self._fetching[key] = msg
        try:
            examined = await self._examiner.examine_stored(task, task.input_ref)
        except (ObjectLost, TooLarge) as error:
            refused = ErrorInfo(code=error.wire_code, message=error.message)
            await self._take(self._fetching[key], task, entries, refused=refused)
        else:
            await self._take(self._fetching[key], task, entries, examined)
        finally:
            del self._fetching[key]

    async def _take(
        self,
        msg: Msg,
        task: Task,
        entries: Journal,
        examined: Examined | None = None,
        refused: ErrorInfo | None = None,
    ) -> None:
        if not self._hand.has_room_for(task):  # others were faster
            await self._postpone(msg, task)
            return
        violations, features = examined or self._examiner.examine(task, task.input, len(msg.data))
        verdicts = {digest: violation is None for digest, violation in violations.items()}

        def accepts(digest: str) -> bool:
            if task.input_ref is not None:
                return verdicts.get(digest, True)  # it is not at hand any more: the worker will see
            if digest not in verdicts and (verdict := self._examiner.accepts(digest, task.input)) is not None:
                verdicts[digest] = verdict
            return verdicts.get(digest, False)

        undertaking = self._undertake(task, features, accepts, self._age_s(msg), entries)
        held = Held(msg, undertaking, accepts)
        self._hand.add(held)
        now = time.monotonic()
        if any(isinstance(entry, Final) for _, entry in entries):
            commands = undertaking.begin(now)
        elif (error := refused or self._refusal(msg, task, violations)) is not None:
            commands = undertaking.reject(error, now)
        else:
            commands = undertaking.begin(now, queue=self._hand.waiting.is_before(task))
        await self._run(held, commands)
        if held.is_composite:
            await self._leave_intake(held)  # its parts need the place

    def _refusal(self, msg: Msg, task: Task, violations: dict[str, str | None]) -> ErrorInfo | None:
        """Why a task should never have been asked for."""
        if len(msg.data) > (limit := self._max_body_bytes):
            message = f"the task is {len(msg.data)} bytes as JSON, the limit is {limit} (MODELNET_MAX_BODY_BYTES)"
            return ErrorInfo(code=TooLarge.code, message=message)
        if not self._directory.knows(task.capability):
            known = ", ".join(self._directory.capabilities()) or "none"
            message = f"no worker ever announced {task.capability!r}; known: {known}"
            return ErrorInfo(code="unknown_capability", message=message[:4096])
        if violations and all(violations.values()):
            return ErrorInfo(code="contract_violation", message=str(next(iter(violations.values()))))
        return None


def _nak(delay_s: float) -> bytes:
    return b'-NAK {"delay": %d}' % int(delay_s * 1e9)
