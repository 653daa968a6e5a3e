"""Every channel of the bus as a table: who sends which message where. The AsyncAPI documents are made from it.

FastStream documents what a broker subscribes to and publishes; the hot path runs on nats-py, so each role's document is
made from a broker that only describes and is never started.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from faststream.nats import NatsBroker
from faststream.specification import AsyncAPI

from modelnet import messages as m

__all__ = ["CHANNELS", "Channel", "describe"]


class Channel(NamedTuple):
    """One kind of subject."""

    name: str
    address: str
    message: Any
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    description: str


CHANNELS = [
    Channel(
        "task",
        "task.{class}.{tenant}.{task}.{capability}",
        m.Task,
        ("client",),
        ("negotiator",),
        "Stream TASKS. class is 0, 1 or 2, from priority 0-3, 4-6, 7-9. Nats-Msg-Id: <tenant>/<task>.",
    ),
    Channel(
        "bidRequest",
        "cap.{capability}",
        m.BidRequest,
        ("negotiator",),
        ("worker",),
        "Reply subject: bid.<negotiator>.<auction>, to which the bidder appends its id.",
    ),
    Channel(
        "shortlistRequest",
        "worker.{worker}.cfp",
        m.BidRequest,
        ("negotiator",),
        ("worker",),
        "The same to a chosen few, one by one, where more than 32 could answer.",
    ),
    Channel(
        "bid",
        "bid.{negotiator}.{auction}.{worker}",
        m.Bid | m.Refusal,
        ("worker",),
        ("negotiator",),
        "A binding proposal, or none and why.",
    ),
    Channel(
        "award",
        "worker.{worker}.award",
        m.Award,
        ("negotiator",),
        ("worker",),
        "Request; the reply is Confirm or Decline.",
    ),
    Channel(
        "awardReply",
        "{reply}",
        m.Confirm | m.Decline,
        ("worker",),
        ("negotiator",),
        "The reply subject of an award, or of the question whether an attempt runs.",
    ),
    Channel(
        "claim",
        "claim.{negotiator}.{worker}",
        m.Claim,
        ("negotiator",),
        ("negotiator",),
        "A negotiator tells the others that it has awarded, if it has heard of any.",
    ),
    Channel(
        "negotiatorBeat",
        "negotiator.{negotiator}",
        m.NegotiatorBeat,
        ("negotiator",),
        ("negotiator",),
        "A negotiator tells the others that it is there.",
    ),
    Channel("cancel", "worker.{worker}.cancel", m.CancelAttempt, ("negotiator",), ("worker",), "Stop an attempt."),
    Channel(
        "adopt",
        "worker.{worker}.adopt",
        m.AdoptAttempt,
        ("negotiator",),
        ("worker",),
        "Request; the reply is Confirm or Decline. Asks whether an attempt still runs, and for its Done.",
    ),
    Channel(
        "query",
        "worker.{worker}.query",
        m.RollCall,
        ("negotiator", "worker", "client"),
        ("worker",),
        "Request; the reply is a Beat. No responders: nobody serves this id.",
    ),
    Channel(
        "alive",
        "client.{client}.alive",
        m.RollCall,
        ("negotiator",),
        ("client",),
        "Request; any reply will do. No responders, three times in a row: the client's tasks are cancelled.",
    ),
    Channel("drain", "worker.{worker}.drain", m.Drain, ("client",), ("worker",), "Request; the reply is a Beat."),
    Channel("rollCall", "roll", m.RollCall, ("negotiator", "client"), ("worker",), "Every worker sends a beat now."),
    Channel("beat", "beat.{worker}", m.Beat, ("worker",), ("negotiator", "client"), "Liveness, once a second."),
    Channel(
        "offer",
        "offer.{capability}.{worker}",
        m.Offer,
        ("worker",),
        ("negotiator",),
        "Standing offer, when it changes and beside each beat. A prefix a.b.> is spelled a.b._all.",
    ),
    Channel(
        "result",
        "result.{tenant}.{lane}.{task}.{worker}.{attempt}",
        m.Delta | m.Progress | m.Output | m.Failure,
        ("worker",),
        ("client",),
        "Stream RESULTS. The events of one attempt, numbered without gaps.",
    ),
    Channel(
        "done",
        "done.{negotiator}.{task}.{worker}.{attempt}",
        m.Done,
        ("worker",),
        ("negotiator",),
        "An attempt has ended.",
    ),
    Channel(
        "status",
        "journal.{tenant}.{lane}.{task}.status",
        m.Awarded | m.Planned | m.Waiting,
        ("negotiator",),
        ("negotiator",),
        "Stream JOURNAL, by compare-and-set on journal.<tenant>.<lane>.<task>.*; republished as result.….status.",
    ),
    Channel(
        "cancelAsked",
        "journal.{tenant}.{lane}.{task}.cancel",
        m.CancelAsked,
        ("client",),
        ("negotiator",),
        "Stream JOURNAL, by compare-and-set; republished as result.….cancel.",
    ),
    Channel(
        "final",
        "journal.{tenant}.{lane}.{task}.final",
        m.Final,
        ("negotiator",),
        ("negotiator", "ledger"),
        "Stream JOURNAL, by compare-and-set; republished as result.….final. The ledger reads those with Modelnet-Held.",
    ),
    Channel(
        "accepted",
        "result.{tenant}.{lane}.{task}.{entry}",
        m.Awarded | m.Planned | m.Waiting | m.CancelAsked | m.Final,
        (),
        ("client", "negotiator"),
        "A journal entry that was accepted: entry is status, cancel or final. Sent by the server.",
    ),
    Channel(
        "audit",
        "audit.{tenant}.{task}",
        m.Transcript,
        ("negotiator",),
        ("client",),
        "Stream AUDIT. The transcript of each auction.",
    ),
    Channel(
        "metering",
        "$KV.CATALOGUE.metering.{tenant}",
        m.Metering,
        ("client", "ledger"),
        ("negotiator", "ledger"),
        "KV bucket CATALOGUE. Whether a tenant is charged; sent by those who change its account.",
    ),
    Channel(
        "prefixSecret",
        "$KV.CATALOGUE.secret.prefix",
        m.PrefixSecret,
        ("negotiator",),
        ("negotiator",),
        "KV bucket CATALOGUE. What prefix hashes are keyed with; written once.",
    ),
    Channel("deadLetter", "dlq.{kind}", m.DeadLetter, ("negotiator",), ("client",), "Stream DLQ."),
]


def describe(role: str | None = None) -> AsyncAPI:
    """The AsyncAPI 3 document of a role, `negotiator`, `worker`, `ledger` or `client`: what it receives and sends.

    Without a role, of the whole network, as seen from it: every channel is received.
    """
    broker = NatsBroker("nats://localhost:4222", logger=None)
    for channel in CHANNELS:
        if role is None or role in channel.receivers:
            broker.subscriber(channel.address, title=channel.name, description=channel.description)(
                _receiver(channel.message)
            )
        if role is not None and role in channel.senders:
            name = f"{channel.name}Out" if role in channel.receivers else channel.name
            broker.publisher(channel.address, title=name, description=channel.description, schema=channel.message)
    title = f"modelnet {role}" if role else "modelnet"
    return AsyncAPI(broker, title=title, version="1", license={"name": "Apache-2.0"}, schema_version="3.0.0")


def _receiver(message: Any) -> Any:
    async def receive(body: Any) -> None: ...

    receive.__annotations__ = {"body": message, "return": None}
    return receive
