"""Checks of a worker whose server stops storing, or goes away and comes back with less than it had."""

from __future__ import annotations

import asyncio
import contextlib
import json

import nats.errors

from modelnet.bus import subjects
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.replay import last_of, read_all
from modelnet.bus.streams import stream_config
from modelnet.errors import ConnectionFailed

from .desk import Desk
from .ears import Ear
from .work import QUICK_S, SLOW_S, is_whole

__all__ = ["restarted", "unstored"]

_AGAIN_S = 10.0
"""For what is repeated every few seconds."""
_BACK_S = 15.0
_POLL_S = 0.1


async def unstored(desk: Desk) -> None:
    """W26: the last event comes again until the stream has it."""
    report = desk.report
    await _let_results_store(desk, False)
    try:
        async with desk.attempt() as attempt:
            await attempt.begin()
            last = await attempt.last(QUICK_S)
            report.demand("W26", last is not None, "no last event came")
            body = next(msg.data for msg in attempt.results.heard if is_whole(msg))
            known = len(attempt.results.heard)
            again = await attempt.results.first(_AGAIN_S, lambda msg: msg.data == body, since=known)
            report.demand("W26", again is not None, f"not stored, it did not come again within {_AGAIN_S:g} s")
            await _let_results_store(desk, True)
            await attempt.results.first(_AGAIN_S, lambda msg: msg.data == body, since=len(attempt.results.heard))
            subject = subjects.result(attempt.award.tenant, attempt.award.task, desk.worker, 1)
            stored = await last_of(desk.bus, "RESULTS", subject)
            right = stored is not None and stored.body == body
            report.expect("W26", right, "once the stream stored again, it did not get the last event")
    finally:
        await _let_results_store(desk, True)


async def _let_results_store(desk: Desk, stores: bool) -> None:
    config = stream_config("RESULTS")
    if not stores:
        config["subjects"] = ["ready.RESULTS"]
    await desk.bus.request("$JS.API.STREAM.UPDATE.RESULTS", json.dumps(config).encode(), timeout=5)


async def restarted(desk: Desk, server: EmbeddedNats) -> None:
    """W40, W41, W42: the server comes back without an attempt's events, the worker's card and its contract."""
    report, slow = desk.report, desk.terms.slow_input is not None
    async with contextlib.AsyncExitStack() as stack:
        attempt = await stack.enter_async_context(desk.slow() if slow else desk.attempt())
        beats = await stack.enter_async_context(Ear(desk.bus, subjects.beat(desk.worker)))
        await attempt.begin()
        if slow:
            await attempt.results.first(2.0)
        card = f"$KV.CATALOGUE.worker.{desk.worker}"
        digest = desk.served.contract.removeprefix("sha256:")
        contract = f"$KV.CATALOGUE.contract.{desk.served.pattern.replace('>', '_all')}.{digest}"
        result = subjects.result(attempt.award.tenant, attempt.award.task, desk.worker, 1)
        for stream, lost in (("KV_CATALOGUE", card), ("KV_CATALOGUE", contract), ("RESULTS", result)):
            body = json.dumps({"filter": lost}).encode()
            await desk.bus.request(f"$JS.API.STREAM.PURGE.{stream}", body, timeout=5)
        await server.stop()
        heard = len(beats.heard)
        await server.start()
        back = await _back(desk, beats, heard)
        report.demand("W40", back, f"it is not there within {_BACK_S:g} s after the server came back")
        for what, subject in (("card", card), ("contract", contract)):
            there = await _stored(desk, "KV_CATALOGUE", subject)
            report.expect("W42", there, f"its {what}, which the server had lost, did not come back")
        last = await attempt.last(SLOW_S)
        report.demand("W41", last is not None, f"no last event within {SLOW_S:g} s after the server came back")
        assert last is not None
        said = {msg.data for msg in attempt.results.heard}
        missing = await _missing(desk, result, said, last.number - attempt.award.from_number)
        report.expect("W41", not missing, f"RESULTS lacks {missing} of the attempt's events")
        answer = await desk.ask(desk.request())
        report.expect("W40", answer is not None, "after the server came back it does not bid any more")


async def _back(desk: Desk, beats: Ear, heard: int) -> bool:
    """Whether the worker comes back: it beats, or answers if its beat came before the kit could hear it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BACK_S):
            while True:
                if await beats.first(0.5, since=heard) is not None:
                    return True
                if desk.bus.is_connected and await desk.beat(0.5) is not None:
                    return True
    return False


async def _stored(desk: Desk, stream: str, subject: str) -> bool:
    async with Ear(desk.bus, subject) as ear:
        for _ in range(2):  # there already, or soon
            with contextlib.suppress(ConnectionFailed):
                if await last_of(desk.bus, stream, subject) is not None:
                    return True
            await ear.first(_AGAIN_S)
    return False


async def _missing(desk: Desk, subject: str, said: set[bytes], count: int) -> int:
    """How many events the stream does not come to hold: of those that were heard, and of the `count` there must be."""
    async with Ear(desk.bus, subject) as ear:
        while True:
            found = set[bytes]()
            with contextlib.suppress(ConnectionFailed, nats.errors.Error):
                async for stored in read_all(desk.bus, "RESULTS", subject):
                    found.add(stored.body)
            missing = len(said - found)
            if "W22" not in desk.report.failed:  # else their numbers say nothing of how many there are
                missing = max(missing, count - len(found))
            if missing <= 0 or await ear.first(_AGAIN_S, since=len(ear.heard)) is None:
                return max(missing, 0)
