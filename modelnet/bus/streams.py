"""The streams and consumers of the network, and the one function that makes them; nothing else changes any."""

from __future__ import annotations

import json
from typing import Any

import nats.errors
from nats.aio.client import Client

from modelnet.errors import ConnectionFailed

from .subjects import BUCKETS, CLASSES

__all__ = ["CATALOGUE", "LEDGER_CONSUMER", "STREAMS", "TASK_CONSUMERS", "last_sequence", "setup_bus", "task_consumer"]

_S = 1_000_000_000
_HOUR = 3600 * _S
_GIB = 1 << 30

CATALOGUE = "CATALOGUE"
"""KV bucket: `contract.<sha256>` every contract ever announced, `worker.<id>` the card of each worker."""

ACK_WAIT_S = 10.0
"""How long a negotiator may be silent before its tasks go to another, unless the settings say otherwise."""

TASK_CONSUMERS = [(c, b) for c in range(CLASSES) for b in range(BUCKETS)]


def task_consumer(priority_class: int, bucket: int) -> str:
    """Name of the durable consumer that all negotiators pull from for a class and bucket."""
    return f"negotiators-{priority_class}-{bucket}"


LEDGER_CONSUMER = "ledger"
"""Durable consumer of JOURNAL's Finals, that all ledger workers pull from."""

STREAMS: dict[str, dict[str, Any]] = {
    "TASKS": {
        # Named one by one: a task of any other class would be stored, but no consumer would ever take it.
        "subjects": [f"task.{priority_class}.*.*.>" for priority_class in range(CLASSES)],
        "subject_transform": {
            "src": "task.*.*.*.>",
            "dest": f"task.{{{{wildcard(1)}}}}.{{{{partition({BUCKETS},2)}}}}"
            ".{{wildcard(2)}}.{{wildcard(3)}}.>",
        },
        "retention": "workqueue",
        "discard": "new",
        "max_bytes": _GIB,
        "max_msgs": 1_000_000,
        "duplicate_window": 120 * _S,
        "description": "Tasks that have no Final yet.",
    },
    # Readers must never see an entry that the fence refused. Core subscribers of a stream's own subject get a message
    # before the stream has judged it, so entries are published where nobody listens and republished once stored.
    "JOURNAL": {
        "subjects": ["journal.*.*.*"],
        "republish": {
            "src": "journal.*.*.*",
            "dest": "result.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}",
        },
        "discard": "new",
        "max_bytes": _GIB,
        "allow_msg_ttl": True,
        "description": "What was decided for each task, by compare-and-set.",
    },
    "RESULTS": {
        "subjects": ["result.*.*.*.*"],
        "discard": "old",
        "max_bytes": _GIB,
        "allow_msg_ttl": True,
        "description": "Events of every attempt.",
    },
    "AUDIT": {
        "subjects": ["audit.*.*"],
        "discard": "old",
        "max_bytes": _GIB // 2,
        "max_age": 7 * 24 * _HOUR,
        "description": "The transcript of every auction.",
    },
    "DLQ": {
        "subjects": ["dlq.>"],
        "discard": "old",
        "max_bytes": _GIB // 4,
        "max_age": 30 * 24 * _HOUR,
        "description": "What could not be parsed or handled.",
    },
    f"KV_{CATALOGUE}": {
        "subjects": [f"$KV.{CATALOGUE}.>"],
        "discard": "new",
        "max_bytes": _GIB // 4,
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": 60 * _S,
        "description": "Contracts and worker cards.",
    },
}


async def setup_bus(nc: Client, *, ack_wait_s: float = ACK_WAIT_S) -> None:
    """Make every stream and consumer as described here, or bring it up to the description. Idempotent.

    `ack_wait_s`: a negotiator silent for this long has lost its tasks to another, a ledger worker its Finals.

    Raises `ConnectionFailed` where the server has no JetStream or refuses.
    """
    for name, config in STREAMS.items():
        body = {"name": name, "storage": "file", "allow_direct": True, "retention": "limits", **config}
        reply = await _api(nc, f"STREAM.CREATE.{name}", body)
        if reply.get("err_code") == 10058:  # exists with another configuration
            reply = await _api(nc, f"STREAM.UPDATE.{name}", body)
        if reply:
            raise ConnectionFailed(f"stream {name} cannot be made: {reply.get('description')}")
    for priority_class, bucket in TASK_CONSUMERS:
        name = task_consumer(priority_class, bucket)
        consumer = {
            "durable_name": name,
            "filter_subject": f"task.{priority_class}.{bucket}.>",
            "ack_policy": "explicit",
            "ack_wait": int(ack_wait_s * _S),
            # A bound here would count tasks that wait with a delay and block everything behind them.
            "max_ack_pending": -1,
            "max_deliver": -1,
        }
        await _make_consumer(nc, "TASKS", consumer)
    ledger = {
        "durable_name": LEDGER_CONSUMER,
        "filter_subject": "journal.*.*.final",
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * _S),
        "max_ack_pending": 10_000,
        "max_deliver": -1,
        # Whether a Final is of any interest stands in its headers: most are not, and may be large.
        "headers_only": True,
    }
    await _make_consumer(nc, "JOURNAL", ledger)


async def _make_consumer(nc: Client, stream: str, config: dict[str, Any]) -> None:
    name = config["durable_name"]
    reply = await _api(nc, f"CONSUMER.DURABLE.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
    if reply:
        raise ConnectionFailed(f"consumer {name} cannot be made: {reply.get('description')}")


async def last_sequence(nc: Client, stream: str) -> int:
    """Sequence of the last message that the stream has stored. Raises `ConnectionFailed`."""
    answer = await _ask(nc, f"STREAM.INFO.{stream}", {})
    if "state" not in answer:
        raise ConnectionFailed(f"stream {stream} does not answer: {answer.get('error', {}).get('description')}")
    return int(answer["state"]["last_seq"])


async def stream_messages(nc: Client, stream: str) -> int:
    """How many messages a stream holds. Raises `ConnectionFailed`."""
    answer = await _ask(nc, f"STREAM.INFO.{stream}", {})
    if "state" not in answer:
        raise ConnectionFailed(f"stream {stream} does not answer: {answer.get('error', {}).get('description')}")
    return int(answer["state"]["messages"])


async def _api(nc: Client, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call the JetStream API; the error as a dictionary, empty if there is none."""
    error: dict[str, Any] = (await _ask(nc, verb, body)).get("error") or {}
    return error


async def _ask(nc: Client, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call the JetStream API: straight, because nats-py's configuration classes drop fields that they do not know."""
    try:
        reply = await nc.request(f"$JS.API.{verb}", json.dumps(body).encode(), timeout=10)
    except nats.errors.NoRespondersError:
        raise ConnectionFailed("the server answers, but JetStream is not enabled on it (start it with -js)") from None
    except nats.errors.TimeoutError:
        raise ConnectionFailed("JetStream did not answer within 10 s") from None
    answer: dict[str, Any] = json.loads(reply.data)
    return answer
