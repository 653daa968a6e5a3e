"""Checks of a worker at work: awards, what it says, and how it stops."""

from __future__ import annotations

from typing import Any

from modelnet import messages as m
from modelnet.bus import subjects
from modelnet.bus.objects import put
from modelnet.contracts import check, compile_schema

from .desk import PATIENCE_S, TENANT, Attempt, Desk, said
from .ears import Ear

__all__ = [
    "adopted",
    "attempts",
    "cancelled",
    "declined",
    "expired",
    "full",
    "is_whole",
    "resumed",
    "stored_input",
    "superseded",
]

QUICK_S = 30.0
"""Longest time for the ordinary input."""
SLOW_S = 30.0
_AFTER_S = 0.5
"""What is still said this long after a cancel may have been on its way."""
_STILL_S = 3.0
"""So long nothing may come after it: longer than the slow input's shortest time."""
_EVENT_BYTES = 260 * 1024
_LATE_S = 1.5
"""How late the end may come that the deadline asks for."""


def examine(attempt: Attempt, last: m.Output | m.Failure | None) -> None:
    """W22, W23, W24, W25, W29, W30 on what an attempt has said, up to its `last`."""
    desk, award = attempt.desk, attempt.award
    report, events = desk.report, attempt.events()
    known = [event for event in events if event is not None]
    report.expect("W22", len(known) == len(events), "an event is none of Delta, Progress, Output, Failure")
    wanted = {"task": award.task, "attempt": award.attempt, "worker": desk.worker, "auction": award.auction}
    for event in known:
        stated = {key: getattr(event, key) for key in wanted}
        report.expect("W22", stated == wanted, f"an event says {stated}, the award {wanted}")
    numbers = [event.number for event in known]
    due = list(range(award.from_number + 1, award.from_number + 1 + len(numbers)))
    report.expect("W22", numbers == due, f"numbers {numbers[:20]} instead of {due[:20]}")
    ends = [event for event in known if isinstance(event, m.Output | m.Failure)]
    report.expect("W23", len(ends) == 1 and known[-1] is ends[0], f"{len(ends)} last events, or one that is not last")
    largest = max((len(msg.data) for msg in attempt.results.heard), default=0)
    report.expect("W30", largest <= _EVENT_BYTES, f"an event has {largest} bytes")
    if isinstance(last, m.Failure):
        report.expect("W29", bool(last.error.code), "a failure without a code")
    if not isinstance(last, m.Output) or last.output_ref is not None:
        return
    right = m.digest_of(last.output)
    report.expect("W24", last.digest == right, f"the digest is {last.digest}, that of the output {right}")
    if desk.contract is not None:
        violation = check(compile_schema(desk.contract.output), last.output)
        report.expect("W24", violation is None, f"the output breaks the contract: {violation}")
    if desk.served.continues:
        begun = award.resume.text if award.resume else ""
        text = begun + "".join(event.text for event in known if isinstance(event, m.Delta) and event.index == 0)
        report.expect("W25", text == last.output.get("text"), "the deltas joined are not the output's text")


async def told(attempt: Attempt, last: m.Output | m.Failure, negotiator: str, requirement: str = "W27") -> None:
    """W27, W33: what the negotiator hears of an end."""
    report, found = attempt.desk.report, await attempt.done()
    report.demand(requirement, found is not None, "no Done came")
    assert found is not None
    who, done = found
    report.expect(requirement, who == negotiator, f"the Done went to {who} instead of {negotiator}")
    report.demand("W27", done is not None, "the Done does not parse")
    assert done is not None
    right = m.Done.of(last, attempt.award.tenant)
    if done.digest is None:
        right = right.model_copy(update={"digest": None})
    differing = [
        name
        for name in ("task", "tenant", "worker", "attempt", "auction", "number", "output", "output_ref", "digest")
        if getattr(done, name) != getattr(right, name)
    ]
    same = (done.error, done.retryable) == (right.error, right.retryable)
    report.expect("W27", not differing and same, f"the Done differs from the last event: {differing or 'error'}")


async def finish(attempt: Attempt, within_s: float = QUICK_S) -> m.Output | m.Failure:
    """The end of an attempt, examined."""
    last = await attempt.last(within_s)
    attempt.desk.report.demand("W23", last is not None, f"no Output and no Failure within {within_s:g} s")
    assert last is not None
    examine(attempt, last)
    return last


async def attempts(desk: Desk) -> None:
    """W16, W17, W19, W22 to W27 on an ordinary attempt, each award sent twice."""
    report = desk.report
    async with desk.attempt() as attempt:
        await attempt.begin()
        again = await attempt.send()
        report.expect(
            "W17", isinstance(again, m.Confirm | m.Decline), f"the same award again was answered with {said(again)}"
        )
        last = await finish(attempt)
        report.expect("W24", isinstance(last, m.Output), f"the input under test ended with {_error(last)}")
        named = all(msg.reply for msg in attempt.results.heard if _is(msg.data, last))
        report.expect("W26", named, "the last event names no subject for the stream's acknowledgement")
        await told(attempt, last, desk.negotiator)
        late = await attempt.dones.quiet(0.3)
        report.expect("W17", late is None, "one award, sent twice, was worked on twice")
        over = await attempt.send()
        report.expect(
            "W19",
            isinstance(over, m.Decline) and over.reason == "duplicate",
            f"an award of an attempt that has ended was answered with {said(over)}",
        )
    if desk.terms.slow_input is None:
        report.skip(["W9"], "it needs --slow-input")
        return
    async with desk.slow() as attempt:
        await attempt.begin()
        again = await attempt.send()
        report.expect("W17", isinstance(again, m.Confirm), f"an award in hand was answered with {said(again)}")
        report.expect("W9", await desk.until_listed(attempt, True), "an attempt in hand is not in `running`")
        await desk.cancel(attempt.award, auction="another")
        end = await attempt.last(SLOW_S)
        report.demand("W31", isinstance(end, m.Output), f"the cancel of another auction's attempt: {_error(end)}")
        assert end is not None
        examine(attempt, end)
        listed = await desk.until_listed(attempt, False)
        report.expect("W9", listed, "an attempt that has ended is still in `running`")


def is_whole(msg: Any) -> bool:
    """Whether a message holds an attempt's last event."""
    return _kind(msg) in ("output", "error")


def _is(body: bytes, last: m.Message) -> bool:
    try:
        return m.decode_event(body) == last
    except ValueError:
        return False


def _error(last: m.Output | m.Failure | None) -> str:
    if last is None:
        return f"no end within {SLOW_S:g} s"
    return f"{last.error.code}: {last.error.message}" if isinstance(last, m.Failure) else "an Output"


async def declined(desk: Desk) -> None:
    """W18."""
    report = desk.report
    wrong: list[tuple[str, dict[str, Any]]] = [("a capability that it lacks", {"capability": "conformance.no-such"})]
    if desk.contract is not None and (bad := _breaking(desk.contract.input)) is not None:
        wrong.append(("an input that breaks the contract", {"input": bad}))
    if not desk.served.continues:
        wrong.append(("a resume that it cannot go on behind", {"resume": m.Resume(text="so far ")}))
    for what, changes in wrong:
        async with desk.attempt(**changes) as attempt:
            reply = await attempt.send()
            right = isinstance(reply, m.Decline) and reply.reason == "unsupported"
            report.expect("W18", right, f"an award with {what} was answered with {said(reply)}")


def _breaking(schema: dict[str, Any]) -> dict[str, Any] | None:
    """An input that a schema forbids, if one is easily found."""
    validator = compile_schema(schema)
    properties = schema.get("properties", {})
    candidates: list[dict[str, Any]] = [{}, *({name: {"no": [None]}} for name in properties), {"conformance": [None]}]
    return next((one for one in candidates if check(validator, one) is not None), None)


async def stored_input(desk: Desk) -> None:
    """W21."""
    report = desk.report
    from pydantic_core import to_json

    body, task = to_json(desk.terms.input), m.new_id()
    reference = await put(desk.bus, body, tenant=TENANT, task=task, live_s=60, limit=1 << 30)
    async with desk.attempt(task=task, input={}, input_ref=reference) as attempt:
        reply = await attempt.send()
        if isinstance(reply, m.Decline):
            report.expect("W21", reply.reason == "too_long", f"a stored input was answered with {said(reply)}")
            return
        report.demand("W21", isinstance(reply, m.Confirm), f"a stored input was answered with {said(reply)}")
        last = await attempt.last(QUICK_S)
        report.expect("W21", isinstance(last, m.Output), f"a stored input ended with {_error(last)}")


async def cancelled(desk: Desk) -> None:
    """W31, W32."""
    report = desk.report
    early = desk.award()
    await desk.cancel(early)
    reply = await desk.order("award", early.encode())
    report.expect("W32", isinstance(reply, m.Decline), f"an award after its cancel was answered with {said(reply)}")
    await desk.cancel(early)
    if desk.terms.slow_input is None:
        report.skip(["W31"], "it needs --slow-input")
        return
    async with desk.slow() as attempt:
        await attempt.begin()
        await desk.until_listed(attempt, True)
        await desk.cancel(attempt.award, auction=attempt.award.auction)
        await still(attempt, "W31", "after its cancel")
        report.expect("W9", await desk.until_listed(attempt, False), "a cancelled attempt is still in `running`")


async def still(attempt: Attempt, requirement: str, when: str) -> None:
    """That nothing more comes of an attempt, but what may have been on its way."""
    report = attempt.desk.report
    before = len(attempt.results.heard)
    await attempt.results.quiet(_AFTER_S, lambda _: False)
    ended = [one for one in map(_kind, attempt.results.heard[before:]) if one in ("output", "error")]
    late = await attempt.results.quiet(_STILL_S)
    kind = _kind(late) if late is not None else next(iter(ended), None)
    report.expect(requirement, kind is None, f"{when} an event came: {kind}")
    report.expect(requirement, not attempt.dones.heard, f"{when} a Done came")


def _kind(msg: Any) -> str:
    try:
        return str(m.decode_event(msg.data).kind)
    except ValueError:
        return "one that does not parse"


async def superseded(desk: Desk) -> None:
    """W19: a newer attempt of a task takes an older one's place."""
    async with desk.slow() as older, desk.slow(task=older.award.task, attempt=2) as newer:
        await older.begin()
        await newer.begin("W19")
        report = desk.report
        await still(older, "W19", "after a newer attempt began, of the older one")
        report.expect("W19", await desk.until_listed(older, False), "an older attempt runs on beside a newer one")
        stale = await older.send()
        report.expect("W19", isinstance(stale, m.Decline), f"an older attempt was answered with {said(stale)}")


async def expired(desk: Desk) -> None:
    """W28."""
    report, remaining_s = desk.report, 0.4
    async with desk.slow(remaining_ms=remaining_s * 1e3) as attempt:
        await attempt.begin()
        last = await attempt.last(remaining_s + _LATE_S)
        right = isinstance(last, m.Failure) and last.error.code == "expired" and not last.retryable
        report.expect("W28", right, f"{_LATE_S:g} s after the deadline: {_error(last) if last else 'no last event'}")
        if last is not None:
            examine(attempt, last)


async def adopted(desk: Desk) -> None:
    """W33."""
    report, other = desk.report, f"kit-{m.new_id()[-12:]}"
    async with desk.slow() as attempt:
        await attempt.begin()
        award = attempt.award
        question = m.AdoptAttempt(
            tenant=award.tenant, task=award.task, attempt=award.attempt, auction=award.auction, negotiator=other
        )
        misfits = ({"attempt": 2}, {"auction": "another"}, {"task": m.new_id()}, {"tenant": "another"})
        for changes in misfits:
            reply = await desk.order("adopt", question.model_copy(update=changes).encode())
            right = isinstance(reply, m.Decline) and reply.reason == "unknown"
            report.expect("W33", right, f"asked for another's {next(iter(changes))} it answered {said(reply)}")
        reply = await desk.order("adopt", question.encode())
        report.demand("W33", isinstance(reply, m.Confirm), f"asked for an attempt in hand it answered {said(reply)}")
        last = await attempt.last(SLOW_S)
        report.demand("W33", last is not None, f"no end within {SLOW_S:g} s")
        assert last is not None
        await told(attempt, last, other, "W33")


async def resumed(desk: Desk) -> None:
    """W34, W25."""
    report = desk.report
    if not desk.served.continues:
        report.skip(["W25", "W34"], "its card does not say `continues`")
        return
    async with desk.attempt() as attempt:
        await attempt.begin()
        await finish(attempt)
        deltas = [event for event in attempt.events() if isinstance(event, m.Delta)]
    if len(deltas) < 2:
        report.skip(["W34"], "the input under test brings fewer than two deltas: there is no middle to go on from")
        return
    kept = deltas[: len(deltas) // 2]
    begun = "".join(delta.text for delta in kept)
    resume = m.Resume(text=begun)
    async with desk.attempt(attempt=2, from_number=kept[-1].number, resume=resume) as attempt:
        await attempt.begin("W34")
        last = await finish(attempt)
        whole = last.output.get("text", "") if isinstance(last, m.Output) else None
        right = whole is not None and whole.startswith(begun)
        report.expect("W34", right, f"behind {begun[:40]!r} the output is {str(whole)[:80]!r}")


async def full(desk: Desk) -> None:
    """W15, W20: with all slots and the backlog taken."""
    report, beat = desk.report, await desk.beat()
    if beat is None:
        report.skip(["W15", "W20"], "the worker does not say how much it takes")
        return
    room = beat.slots + beat.backlog
    if room > 64:
        report.skip(["W15", "W20"], f"it takes {room} awards at once, more than are awarded here")
        return
    taken = [desk.slow() for _ in range(room)]
    try:
        for attempt in taken:
            await attempt.__aenter__()
            await attempt.begin("W20")
        reply = await desk.ask(desk.request())
        busy = isinstance(reply, m.Refusal) and reply.reason == "busy"
        report.expect("W15", busy, f"with {room} awards in hand, a request was answered with {said(reply)}")
        async with desk.slow() as more:
            answer = await more.send()
            right = isinstance(answer, m.Decline) and answer.reason == "busy"
            report.expect("W20", right, f"with {room} awards in hand, one more was answered with {said(answer)}")
        listed = await desk.beat()
        count = len(listed.running) if listed else 0
        report.expect("W9", count == room, f"of {room} awards in hand {count} are in `running`")
        async with Ear(desk.bus, subjects.offer(desk.served.pattern, desk.worker)) as offers:
            await desk.cancel(taken[0].award)
            msg = await offers.first(PATIENCE_S, lambda msg: m.Offer.decode(msg.data).free > 0)
            report.expect("W39", msg is not None, "no offer came when there was room again")
    finally:
        for attempt in taken:
            await attempt.__aexit__(None, None, None)
    for attempt in taken:
        await desk.until_listed(attempt, False)
