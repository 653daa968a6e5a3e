"""What nobody should send: bytes, and messages that are almost right, for every subject that takes input.

Hypothesis draws a message that is right, from its schema, or plain bytes; a seeded generator then spoils it in many
ways. Nothing here is a forgery: what would be valid *and* speak in the name of somebody who is really there is a matter
of permissions, not of parsing, and is left out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.bus.subjects import lane
from tests.messages.samples import documents

__all__ = ["TARGETS", "Names", "Shot", "Target", "drawn", "shots"]

KNOWN = "chaos.echo"
"""A capability that is served, so that some garbage comes as far as a handler."""


@dataclass(slots=True)
class Names:
    """Who and what is there, to be put into subjects."""

    workers: list[str]
    negotiators: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    """Of the valid ones, those without an end."""
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class Shot:
    """One message."""

    subject: str
    body: bytes
    wants_reply: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A subject that takes input, and what belongs there."""

    subject: str
    kinds: tuple[type[m.Message], ...]
    spares: Callable[[bytes], bool] = lambda body: False
    """Whether a body must not be sent: it is valid, and speaks with an authority that it has not."""


def _reads(*readers: Callable[[bytes], object]) -> Callable[[bytes], bool]:
    def reads(body: bytes) -> bool:
        for reader in readers:
            try:
                reader(body)
            except ValidationError:
                continue
            return True
        return False

    return reads


def _is_object(body: bytes) -> bool:
    """Whether it is a JSON object for a reader that is not strict: a Drain needs no more."""
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


_ENTRIES = (m.Awarded, m.Planned, m.Waiting, m.CancelAsked, m.Final)
_EVENTS = (m.Delta, m.Progress, m.Output, m.Failure)
_ENTRY, _EVENT = _reads(m.decode_entry), _reads(m.decode_event)

TARGETS = (
    Target("task.{class}.{tenant}.{id}.{known}", (m.Task,)),
    Target("task.{class}.{tenant}.{id}.{capability}", (m.Task,)),
    Target("cap.{known}", (m.BidRequest,)),
    Target("cap.{capability}", (m.BidRequest,)),
    Target("bid.{negotiator}.{id}.{worker}", (m.Bid, m.Refusal)),
    Target("bid.{negotiator}.{id}.{stranger}", (m.Bid, m.Refusal)),
    Target("offer.{known}.{worker}", (m.Offer,)),
    Target("offer.{capability}.{stranger}", (m.Offer,)),
    Target("worker.{worker}.award", (m.Award,)),
    Target("worker.{worker}.cfp", (m.BidRequest,)),
    Target("worker.{worker}.cancel", (m.CancelAttempt,)),
    Target("worker.{worker}.query", (m.RollCall,)),
    Target("worker.{worker}.drain", (m.Drain,), spares=_is_object),
    Target("worker.{worker}.{stranger}", (m.Award,)),
    Target("claim.{negotiator}.{worker}", (m.Claim,), spares=_reads(m.Claim.decode)),
    Target("claim.{stranger}.{stranger}", (m.Claim,)),
    Target("negotiator.{negotiator}", (m.NegotiatorBeat,)),
    Target("negotiator.{stranger}", (m.NegotiatorBeat,)),
    Target("beat.{worker}", (m.Beat,)),
    Target("beat.{stranger}", (m.Beat,)),
    Target("done.{negotiator}.{id}.{worker}.1", (m.Done,)),
    Target("done.{negotiator}.{task}.{worker}.1", (m.Done,), spares=_reads(m.Done.decode)),
    Target("done.{negotiator}.{stranger}", (m.Done,)),
    Target("result.{tenant}.{id_lane}.{id}.{worker}.1", _EVENTS),
    Target("result.{tenant}.{task_lane}.{task}.{worker}.1", _EVENTS, spares=_EVENT),
    Target("result.{tenant}.{task_lane}.{task}.final", _ENTRIES, spares=_ENTRY),
    Target("result.{tenant}.{task_lane}.{task}.cancel", _ENTRIES, spares=_ENTRY),
    Target("journal.{tenant}.{id_lane}.{id}.status", _ENTRIES),
    Target("journal.{tenant}.{id_lane}.{id}.cancel", _ENTRIES),
    Target("journal.{tenant}.{id_lane}.{id}.final", _ENTRIES),
    Target("journal.{tenant}.{task_lane}.{task}.status", _ENTRIES, spares=_ENTRY),
    Target("roll", (m.RollCall,)),
    Target("audit.{tenant}.{id}", (m.Transcript,)),
    Target("dlq.{stranger}", (m.DeadLetter,)),
    Target("$KV.CATALOGUE.contract.{capability}.{few}", (m.Contract,)),
    Target("$KV.CATALOGUE.contract.{known}.{few}", (m.Contract,)),
    Target("$KV.CATALOGUE.worker.{few}", (m.WorkerCard,)),
)


def drawn() -> st.SearchStrategy[tuple[Target, Any, int]]:
    """A target; a message that belongs there, as JSON values, or bytes; and a seed for what is made of it."""
    seeds = st.integers(0, 2**64 - 1)

    def for_target(target: Target) -> st.SearchStrategy[tuple[Target, Any, int]]:
        right = [documents(kind.model_json_schema()) for kind in target.kinds]
        return st.tuples(st.just(target), st.one_of(*right, st.binary(max_size=300)), seeds)

    return st.one_of([for_target(target) for target in TARGETS])


def shots(target: Target, drawn: Any, seed: int, names: Names, count: int) -> Iterator[Shot]:
    """`count` messages made of what was drawn: itself first, then spoiled."""
    chance = random.Random(seed)
    for number in range(count):
        about = _about(names, chance)
        subject = target.subject.format(**about)
        if isinstance(drawn, bytes):
            body = drawn if not number else _bent(drawn, chance)
        else:
            document = json.loads(json.dumps(drawn))
            if target.kinds == (m.Task,):
                named = {"id": about["id"], "tenant": about["tenant"], "capability": subject.split(".", 4)[4]}
                document |= named | {"deadline_s": 2.0}
            body = _encoded(document if not number else _spoiled(document, chance), chance, spoil=number > 0)
        if target.spares(body):
            body = b"\xff" + body
        yield Shot(subject, body, chance.random() < 0.5)


def _about(names: Names, chance: random.Random) -> dict[str, str]:
    """Words for a subject."""
    strange = f"fuzz-{chance.getrandbits(32):x}"
    task = chance.choice(names.tasks or [strange])
    return {
        "class": str(chance.randrange(3)),
        "tenant": names.tenant,
        "id": strange,
        "id_lane": lane(strange),
        "stranger": strange,
        "few": f"fuzz-{chance.randrange(20)}",  # the catalogue is kept for ever and read whole
        "known": KNOWN,
        "capability": f"fuzz.{chance.getrandbits(16):x}",
        "worker": chance.choice(names.workers),
        "negotiator": chance.choice(names.negotiators or [strange]),
        "task": task,
        "task_lane": lane(task),
    }


_STRANGE_TEXT = (
    "",
    "\x00",
    "\ud800",
    "\u202eabc",
    "\U0001f600" * 10,
    "a.b.c",
    "*",
    ">",
    " ",
    "../..",
    "%s%n{}",
    "\r\nPUB x 0\r\n",
    "x" * 5000,
)
_STRANGE_NUMBERS = (-1, 0, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400, 0.1, -0.0, 1e308, 5e-324)


def _strange(chance: random.Random) -> Any:
    """A value that is unlikely to belong anywhere."""
    match chance.randrange(8):
        case 0:
            return None
        case 1:
            return chance.random() < 0.5
        case 2 | 3:
            return chance.choice(_STRANGE_NUMBERS)
        case 4 | 5:
            return chance.choice(_STRANGE_TEXT)
        case 6:
            nested: Any = []
            for _ in range(chance.choice((3, 60, 300))):
                nested = [nested] if chance.random() < 0.5 else {"a": nested}
            return nested
    return [chance.choice(_STRANGE_NUMBERS)] * chance.choice((1, 300))


def _spoiled(document: Any, chance: random.Random) -> Any:
    """A document with one to three of its values replaced, removed, renamed or added to."""
    for _ in range(chance.randrange(1, 4)):
        places = list(_places(document))
        if not places:
            return _strange(chance)
        inside, key = chance.choice(places)
        match chance.randrange(5):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[chance.choice(_STRANGE_TEXT)] = inside.pop(key)
            case 2 if isinstance(inside, dict):
                inside[chance.choice(_STRANGE_TEXT)] = _strange(chance)
            case 3 if isinstance(inside[key], str):
                inside[key] += chance.choice(_STRANGE_TEXT)
            case _:
                inside[key] = _strange(chance)
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _encoded(document: Any, chance: random.Random, *, spoil: bool) -> bytes:
    """As JSON; sometimes with a key twice, or with its bytes bent."""
    body = json.dumps(document, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    if not spoil:
        return body
    if isinstance(document, dict) and document and chance.random() < 0.1:
        key = chance.choice(list(document))
        twice = f"{json.dumps(key)}:{json.dumps(_strange(chance))},".encode()
        return b"{" + twice + body[1:]
    return _bent(body, chance) if chance.random() < 0.25 else body


def _bent(body: bytes, chance: random.Random) -> bytes:
    """Bytes cut, flipped, put in or put around."""
    at = chance.randrange(len(body) + 1)
    match chance.randrange(6):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + chance.randbytes(chance.choice((1, 4, 100))) + body[at:]
        case 2:
            return body[:at] + chance.randbytes(1) + body[at + 1 :]
        case 3:
            return b"\xef\xbb\xbf" + body
        case 4:
            return body + body
    return chance.randbytes(chance.choice((0, 1, 50, 5000)))
