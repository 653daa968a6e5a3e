"""Checks of a worker that leaves, and of a second one of its name."""

from __future__ import annotations

import asyncio
import contextlib

import nats.errors
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.bus import subjects
from modelnet.bus.replay import last_of

from .desk import Attempt, Desk, said
from .ears import Ear
from .subject import Subject
from .work import SLOW_S

__all__ = ["drained", "gone", "terminated"]

_LEAVES_S = 10.0
_SOON_S = 2.0


async def drained(desk: Desk) -> None:
    """W35, W36, W37, by the drain subject."""
    report, beat = desk.report, await desk.beat()
    taken = list[Attempt]()
    async with contextlib.AsyncExitStack() as stack:
        beats = await stack.enter_async_context(Ear(desk.bus, subjects.beat(desk.worker)))
        if desk.terms.slow_input is not None and beat is not None and beat.slots + beat.backlog <= 64:
            for _ in range(beat.slots + beat.backlog):
                taken.append(await stack.enter_async_context(desk.slow()))
                await taken[-1].begin("W20")
        running, waiting = (taken[: beat.slots], taken[beat.slots :]) if beat is not None else ([], [])
        try:
            reply = await desk.bus.request(subjects.drain(desk.worker), m.Drain().encode(), timeout=3)
            answer = m.Beat.decode(reply.data)
        except (nats.errors.Error, ValidationError):
            report.demand("W35", False, "a request on its drain subject is not answered with a Beat")
            return
        report.expect("W35", answer.draining, "the answer to a drain is a beat that does not say so")
        if running:
            await _takes_nothing(desk)
        else:
            report.skip(["W36"], "it needs --slow-input")
        for attempt in waiting:
            last = await attempt.last(_SOON_S)
            right = isinstance(last, m.Failure) and last.error.code == m.HANDED_ON and last.retryable
            report.expect("W36", right, "what waited when it began to drain was not handed on with worker_leaving")
        if running and not waiting:
            report.skip(["W36"], "it takes no backlog")
        for attempt in running:
            last = await attempt.last(SLOW_S)
            right = isinstance(last, m.Output) or (isinstance(last, m.Failure) and last.error.code == m.HANDED_ON)
            report.expect("W35", right, "what ran when it began to drain was not finished")
        await gone(desk, beats)


async def _takes_nothing(desk: Desk) -> None:
    report = desk.report
    bid = await desk.ask(desk.request(), within_s=1.0)
    right = bid is None or (isinstance(bid, m.Refusal) and bid.reason == "draining")
    report.expect("W35", right, f"while it drains, a request was answered with {said(bid)}")
    async with desk.attempt() as attempt:
        reply = await attempt.send()
        right = isinstance(reply, m.Decline) and reply.reason == "draining"
        report.expect("W20", right, f"while it drains, an award was answered with {said(reply)}")


async def gone(desk: Desk, beats: Ear) -> None:
    """W37."""
    report = desk.report

    async def deleted() -> bool:
        stored = await last_of(desk.bus, "KV_CATALOGUE", f"$KV.CATALOGUE.worker.{desk.worker}")
        return stored is None or "KV-Operation" in stored.headers

    last = await beats.first(_LEAVES_S, lambda msg: _leaving(msg.data))
    report.expect("W37", last is not None, f"no beat with `leaving` within {_LEAVES_S:g} s")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SOON_S):
            while not await deleted():  # noqa: ASYNC110 - it happens on the server
                await asyncio.sleep(0.05)
    report.expect("W37", await deleted(), "its card is still in the catalogue")
    silent = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SOON_S):
            while not silent:
                try:
                    await desk.bus.request(subjects.query(desk.worker), m.RollCall().encode(), timeout=1)
                except nats.errors.NoRespondersError:
                    silent = True
                except nats.errors.TimeoutError:
                    continue
                else:
                    await asyncio.sleep(0.05)
    report.expect("W37", silent, "it is subscribed to its queries still")


def _leaving(body: bytes) -> bool:
    try:
        return m.Beat.decode(body).leaving
    except ValidationError:
        return False


async def terminated(desk: Desk, subject: Subject) -> None:
    """W38: on a worker that has nothing to do."""
    report = desk.report
    async with Ear(desk.bus, subjects.beat(desk.worker)) as beats:
        subject.terminate()
        last = await beats.first(_LEAVES_S, lambda msg: _leaving(msg.data))
        report.expect("W38", last is not None, f"no beat with `leaving` within {_LEAVES_S:g} s of SIGTERM")
        code = await subject.ended(_LEAVES_S)
        report.expect("W38", code is not None, f"it still runs {_LEAVES_S:g} s after it left")
    stored = await last_of(desk.bus, "KV_CATALOGUE", f"$KV.CATALOGUE.worker.{desk.worker}")
    report.expect("W38", stored is None or "KV-Operation" in stored.headers, "after SIGTERM its card is still there")
