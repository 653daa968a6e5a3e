"""Checks of a worker before it has won anything: catalogue, beats, bids, offers, discovery."""

from __future__ import annotations

import asyncio
import contextlib
import json
from itertools import pairwise
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.bus import subjects
from modelnet.bus.catalogue import contract_key
from modelnet.bus.replay import last_of
from modelnet.bus.services import PROTOCOL

from .desk import PATIENCE_S, Desk, said
from .ears import Ear

__all__ = ["beats", "bids", "catalogue", "discovery", "garbage", "offers"]

_BEAT_S = 1.0
_SLACK_S = 1.0
_SILENCE_S = 0.2
"""What was not answered when a later question was, and this long after, is not answered."""
_OTHER = "sha256:" + "0" * 64


async def catalogue(desk: Desk) -> None:
    """W1, W2."""
    card, report = desk.card, desk.report
    assert card is not None
    for served in card.capabilities:
        digest = served.contract.removeprefix("sha256:")
        key = f"contract.{served.pattern.replace('>', '_all')}.{digest}"
        stored = await last_of(desk.bus, "KV_CATALOGUE", f"$KV.CATALOGUE.{key}")
        report.expect("W1", stored is not None, f"the card names a contract that the catalogue does not have: {key}")
        if stored is None:
            continue
        try:
            contract = m.Contract.decode(stored.body)
        except ValidationError as error:
            report.expect("W1", False, f"{key} is no Contract: {error.errors()[0]['msg']}")
            continue
        report.expect("W1", contract_key(contract) == key, f"{key} holds a contract whose digest is {contract.digest}")
        if served == desk.served:
            desk.contract = contract
    report.expect("W2", card.worker == desk.worker, f"the card under worker.{desk.worker} is of {card.worker}")


async def beats(desk: Desk) -> None:
    """W6, W7, W8."""
    report, worker = desk.report, desk.worker
    async with Ear(desk.bus, subjects.beat(worker)) as ear:
        loop, times = asyncio.get_running_loop(), list[float]()
        for number in range(4):
            msg = await ear.first(2 * _BEAT_S, since=number)
            if msg is None:
                break
            times.append(loop.time())
        gaps = [later - earlier for earlier, later in pairwise(times)]
        worst = max(gaps, default=0.0)
        report.expect("W6", len(times) == 4, f"only {len(times)} beats in {2 * _BEAT_S * (len(times) + 1):.0f} s")
        if len(times) == 4:
            report.expect("W6", worst <= _BEAT_S + _SLACK_S, f"{worst:.1f} s passed between two beats")
        for msg in ear.heard:
            beat = _beat(msg)
            ours = beat is not None and desk.card is not None and beat.instance == desk.card.instance
            report.expect("W6", beat is not None and ours, f"a beat is none of this worker's: {msg.data[:200]!r}")
        rolls = 10
        before = len(ear.heard)
        for _ in range(rolls):  # so many in a second cannot be its ordinary ones
            await desk.bus.publish(subjects.ROLL_CALL, m.RollCall().encode())
        await ear.first(_SLACK_S, since=before + rolls - 1)
        came = len(ear.heard) - before
        report.expect("W7", came >= rolls, f"{rolls} roll calls brought {came} beats in {_SLACK_S} s")
    answer = await desk.beat()
    report.expect("W8", answer is not None, f"worker.{worker}.query is not answered with a Beat")
    if answer is not None:
        report.expect("W8", answer.worker == worker, f"the answer to a query is the beat of {answer.worker}")


def _beat(msg: Msg) -> m.Beat | None:
    with contextlib.suppress(ValidationError):
        return m.Beat.decode(msg.data)
    return None


async def bids(desk: Desk) -> None:
    """W10, W11, W12, W13, W14."""
    report, card, served = desk.report, desk.card, desk.served
    assert card is not None
    request = desk.request()
    bid = await desk.ask(request)
    report.demand("W10", bid is not None, f"a request on cap.{desk.terms.capability} is not answered")
    assert bid is not None
    same = bid.auction == request.auction and bid.worker == desk.worker
    report.expect("W10", same, "the answer names another auction or worker")
    report.demand("W10", isinstance(bid, m.Bid), f"an idle worker answered with {said(bid)}")
    assert isinstance(bid, m.Bid)
    report.expect("W14", bid.p90_ms >= bid.p50_ms, f"p90_ms {bid.p90_ms} is below p50_ms {bid.p50_ms}")
    chosen = await desk.ask(desk.request(), subject=subjects.bid_request(desk.worker))
    report.expect("W11", chosen is not None, f"a request on worker.{desk.worker}.cfp is not answered")

    fits: list[dict[str, Any]] = [
        {"contract": served.contract},
        {"require": m.Selector(worker=desk.worker, owner=card.owner, model=served.model, labels=card.labels)},
        {"require": m.Selector(worker=("somebody", desk.worker))},
        {"exclude": m.Selector(worker="somebody", labels={"conformance": "no"})},
    ]
    for terms in fits:
        answer = await desk.ask(desk.request(**terms))
        broken = "W12" if "contract" in terms else "W13"
        report.expect(broken, answer is not None, f"no answer, though it fits: {_told(terms)}")
    misfits: list[tuple[str, dict[str, Any]]] = [
        ("W12", {"contract": _OTHER}),
        ("W13", {"require": m.Selector(worker="somebody")}),
        ("W13", {"require": m.Selector(owner=("somebody", "else"))}),
        ("W13", {"require": m.Selector(model="no-such-model")}),
        ("W13", {"require": m.Selector(labels={"conformance": "no"})}),
        ("W13", {"exclude": m.Selector(worker=desk.worker)}),
        ("W13", {"exclude": m.Selector(owner=(card.owner, "else"))}),
    ]
    async with Ear(desk.bus, f"bid.{desk.negotiator}.*.{desk.worker}") as ear:
        asked = dict[str, tuple[str, dict[str, Any]]]()
        for broken, terms in misfits:
            request = desk.request(**terms)
            asked[request.auction] = (broken, terms)
            reply = subjects.bids(desk.negotiator, request.auction)
            await desk.bus.publish(subjects.capability(desk.terms.capability), request.encode(), reply=reply)
        await desk.ask(desk.request())
        await asyncio.sleep(_SILENCE_S)
        answered = {msg.subject.split(".")[2] for msg in ear.heard}
    for auction, (broken, terms) in asked.items():
        report.expect(broken, auction not in answered, f"answered, though it does not fit: {_told(terms)}")


def _told(terms: dict[str, Any]) -> str:
    plain = {
        key: value.model_dump(exclude_defaults=True) if isinstance(value, m.Selector) else value
        for key, value in terms.items()
    }
    return json.dumps(plain)


async def offers(desk: Desk) -> None:
    """W39."""
    report, pattern = desk.report, desk.served.pattern
    async with Ear(desk.bus, subjects.offer(pattern, desk.worker)) as ear:
        for number in range(2):
            await ear.first(2 * _BEAT_S, since=number)
        found = list[m.Offer]()
        for msg in ear.heard:
            with contextlib.suppress(ValidationError):
                found.append(m.Offer.decode(msg.data))
    wanted = subjects.offer(pattern, desk.worker)
    report.demand("W39", len(found) >= 2, f"{len(found)} offers on {wanted} in {2 * _BEAT_S:.0f} s or more")
    numbers = [offer.number for offer in found]
    rising = all(later > earlier for earlier, later in pairwise(numbers))
    report.expect("W39", rising, f"the offers' numbers do not rise: {numbers}")
    report.expect("W39", all(one.worker == desk.worker for one in found), "an offer names another worker")


async def discovery(desk: Desk) -> None:
    """W44."""
    report = desk.report
    parsers: dict[str, Any] = {"PING": ServicePing, "INFO": ServiceInfo, "STATS": ServiceStats}
    found = dict[str, Any]()
    for verb, parser in parsers.items():
        for who in ("", ".modelnet-worker", f".modelnet-worker.{desk.worker}"):
            answer = await _answer(desk, f"$SRV.{verb}{who}")
            report.expect("W44", answer is not None, f"$SRV.{verb}{who} is not answered by this worker")
            if answer is None:
                continue
            try:
                found[verb] = parser.from_dict(answer)
            except (KeyError, TypeError, ValueError) as error:
                report.expect("W44", False, f"the answer to $SRV.{verb} is none of the services API: {error!r}")
    info = found.get("INFO")
    if info is None:
        return
    report.expect("W44", info.metadata.get("protocol") == PROTOCOL, f"its metadata lacks protocol {PROTOCOL}")
    served = desk.served
    ours = [one for one in info.endpoints if (one.metadata or {}).get("capability") == served.pattern]
    report.demand(
        "W44", len(ours) == 1, f"{len(ours)} endpoints have the capability {served.pattern} in their metadata"
    )
    same = ours[0].subject == f"cap.{served.pattern}" and ours[0].metadata.get("contract") == served.contract
    report.expect("W44", same, f"the endpoint of {served.pattern} has another subject or contract")


async def _answer(desk: Desk, subject: str) -> dict[str, Any] | None:
    inbox = desk.bus.new_inbox()

    def ours(msg: Msg) -> bool:
        with contextlib.suppress(ValueError):
            found = json.loads(msg.data)
            return isinstance(found, dict) and (found.get("name"), found.get("id")) == ("modelnet-worker", desk.worker)
        return False

    async with Ear(desk.bus, inbox) as ear:
        await desk.bus.publish(subject, b"", reply=inbox)
        msg = await ear.first(PATIENCE_S / 2, lambda msg: ours(msg) or "Status" in (msg.headers or {}))
    return json.loads(msg.data) if msg is not None and ours(msg) else None


async def garbage(desk: Desk) -> None:
    """W43."""
    report = desk.report
    own = [f"worker.{desk.worker}.{kind}" for kind in ("award", "adopt", "cancel", "cfp", "query")]
    inbox = desk.bus.new_inbox()
    for subject in (*own, subjects.capability(desk.terms.capability), subjects.ROLL_CALL):
        for body in (b"", b"{", b"null", b'{"worker": 1, "tenant": [], "auction": {}}', b"\xff\xfe" * 100):
            for reply in ("", inbox):
                await desk.bus.publish(subject, body, reply=reply)
    try:
        await desk.bus.flush()
    except nats.errors.Error:
        report.expect("W43", False, "the connection was lost")
    answer = await desk.ask(desk.request())
    report.expect("W43", answer is not None, "after garbage on its subjects it does not answer any more")
