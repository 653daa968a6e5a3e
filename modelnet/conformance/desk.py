"""The negotiator's side of the table, as the kit plays it towards one worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.bus import subjects
from modelnet.contracts import features_of

from .ears import Ear
from .report import Report

__all__ = ["PATIENCE_S", "Attempt", "Desk", "Terms", "read"]

PATIENCE_S = 3.0
"""Longest wait for an answer."""
TENANT = "conformance"
REMAINING_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What the worker under test is asked to do."""

    capability: str
    input: dict[str, Any]
    slow_input: dict[str, Any] | None = None
    """An input that takes from two to twenty seconds; None: what needs one is not checked."""


@dataclass(slots=True)
class Desk:
    """One worker and the kit's connection to it."""

    bus: Client
    report: Report
    terms: Terms
    worker: str = ""
    card: m.WorkerCard | None = None
    contract: m.Contract | None = None
    negotiator: str = field(default_factory=lambda: f"kit-{m.new_id()[-12:]}")

    @property
    def served(self) -> m.CapabilityCard:
        """The worker's card for the capability under test: the most exact one."""
        assert self.card is not None
        fitting = [c for c in self.card.capabilities if m.matches(c.pattern, self.terms.capability)]
        return max(fitting, key=lambda card: len(card.pattern))

    def request(self, **changes: Any) -> m.BidRequest:
        """A request for bids for the input under test."""
        size = len(json.dumps(self.terms.input))
        schema = self.contract.input if self.contract is not None else {}
        fields: dict[str, Any] = {
            "auction": m.new_id(),
            "negotiator": self.negotiator,
            "capability": self.terms.capability,
            "features": features_of(self.terms.input, size, schema),
            "remaining_ms": REMAINING_MS,
            "window_ms": 1000.0,
        }
        return m.BidRequest(**(fields | changes))

    async def ask(
        self, request: m.BidRequest, *, subject: str | None = None, within_s: float = PATIENCE_S
    ) -> m.Bid | m.Refusal | None:
        """The worker's answer to a request, or None if none comes in time, or one that is no answer."""
        reply = subjects.bids(self.negotiator, request.auction)
        async with Ear(self.bus, f"{reply}.{self.worker}") as ear:
            to = subject or subjects.capability(self.terms.capability)
            await self.bus.publish(to, request.encode(), reply=reply)
            msg = await ear.first(within_s)
        if msg is None:
            return None
        with contextlib.suppress(ValidationError):
            return m.decode_bid_reply(msg.data)
        return None

    async def beat(self, within_s: float = PATIENCE_S) -> m.Beat | None:
        """The worker's state, asked for; None if it does not answer, or not with a beat."""
        try:
            reply = await self.bus.request(subjects.query(self.worker), m.RollCall().encode(), timeout=within_s)
            return m.Beat.decode(reply.data)
        except (nats.errors.Error, ValidationError):
            return None

    async def until_listed(self, attempt: Attempt, listed: bool, within_s: float = PATIENCE_S) -> bool:
        """Whether the worker comes to list an attempt, or not to, in time."""
        wanted = (TENANT, attempt.award.task, attempt.award.attempt)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    beat = await self.beat()
                    if beat is not None:
                        found = {(one.tenant, one.task, one.attempt) for one in beat.running}
                        if (wanted in found) == listed:
                            return True
                    await asyncio.sleep(0.02)
        return False

    async def order(self, kind: str, body: bytes, within_s: float = PATIENCE_S) -> m.Confirm | m.Decline | None:
        """The answer to an award or to the question of adoption; None if there is none in time, or no such answer."""
        try:
            reply = await self.bus.request(f"worker.{self.worker}.{kind}", body, timeout=within_s)
            return m.decode_award_reply(reply.data)
        except (nats.errors.Error, ValidationError):
            return None

    async def cancel(self, award: m.Award, *, auction: str | None = None) -> None:
        """Order an attempt to stop."""
        order = m.CancelAttempt(tenant=award.tenant, task=award.task, attempt=award.attempt, auction=auction)
        await self.bus.publish(subjects.cancel_attempt(self.worker), order.encode())

    def award(self, **changes: Any) -> m.Award:
        """An award of the input under test, of an auction that nobody was asked in."""
        fields: dict[str, Any] = {
            "auction": m.new_id(),
            "negotiator": self.negotiator,
            "task": m.new_id(),
            "tenant": TENANT,
            "attempt": 1,
            "capability": self.terms.capability,
            "input": self.terms.input,
            "price": 1_000_000,
            "remaining_ms": REMAINING_MS,
        }
        return m.Award(**(fields | changes))

    def attempt(self, **changes: Any) -> Attempt:
        """An attempt that is heard from before it is awarded."""
        return Attempt(self, self.award(**changes))

    def slow(self, **changes: Any) -> Attempt:
        """One that takes its time."""
        assert self.terms.slow_input is not None
        return self.attempt(**({"input": self.terms.slow_input} | changes))


class Attempt:
    """All that is heard of one attempt."""

    def __init__(self, desk: Desk, award: m.Award) -> None:
        self.desk, self.award = desk, award
        result = subjects.result(award.tenant, award.task, desk.worker, award.attempt)
        self.results = Ear(desk.bus, result)
        self.dones = Ear(desk.bus, f"done.*.{award.task}.{desk.worker}.{award.attempt}")

    async def __aenter__(self) -> Self:
        await self.results.__aenter__()
        await self.dones.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.desk.bus.is_connected:
            await self.desk.cancel(self.award)  # whatever became of it, nobody wants more
        await self.results.__aexit__()
        await self.dones.__aexit__()

    async def send(self, within_s: float = PATIENCE_S) -> m.Confirm | m.Decline | None:
        """Award it, or once more; the answer."""
        return await self.desk.order("award", self.award.encode(), within_s)

    async def begin(self, requirement: str = "W16") -> None:
        """Award it; that it is confirmed is demanded."""
        reply = await self.send()
        self.desk.report.demand(
            requirement, isinstance(reply, m.Confirm), f"an award that it can take was answered with {said(reply)}"
        )

    async def last(self, within_s: float) -> m.Output | m.Failure | None:
        """The last event, if it comes in time."""
        msg = await self.results.first(within_s, is_last)
        return read(msg) if msg is not None else None  # type: ignore[return-value]  # a last one is one of these

    async def done(self, within_s: float = PATIENCE_S) -> tuple[str, m.Done | None] | None:
        """The negotiator that is told and what; None for the latter if it does not parse."""
        msg = await self.dones.first(within_s)
        if msg is None:
            return None
        try:
            return msg.subject.split(".")[1], m.Done.decode(msg.data)
        except ValidationError:
            return msg.subject.split(".")[1], None

    def events(self) -> list[Any]:
        """What was said so far, repeats of the same bytes left out, None for what does not parse."""
        return [read(data) for data in dict.fromkeys(msg.data for msg in self.results.heard)]


def read(msg: Msg | bytes) -> m.Delta | m.Progress | m.Output | m.Failure | None:
    """The event in a message, if it is one."""
    try:
        return m.decode_event(msg if isinstance(msg, bytes) else msg.data)
    except ValidationError:
        return None


def is_last(msg: Msg) -> bool:
    """Whether it ends an attempt."""
    return isinstance(read(msg), m.Output | m.Failure)


def said(reply: m.Message | None) -> str:
    """An answer in a few words."""
    if reply is None:
        return "nothing that can be read"
    kind, reason = getattr(reply, "kind", "?"), getattr(reply, "reason", None)
    return f"{kind} ({reason})" if reason else str(kind)
