"""The streams and consumers of the network, and the one function that makes them; nothing else changes any."""

from __future__ import annotations

import json
from typing import Any

import nats.errors
from nats.aio.client import Client

from modelnet.errors import ConnectionFailed

from .subjects import BUCKETS, CLASSES

__all__ = [
    "CATALOGUE",
    "FULL",
    "LEDGER_CONSUMER",
    "PROBED",
    "STREAMS",
    "TASK_CONSUMERS",
    "delete_stream",
    "last_sequence",
    "probe_subject",
    "setup_bus",
    "stream_config",
    "stream_messages",
    "task_consumer",
]

_S = 1_000_000_000
_HOUR = 3600 * _S
_GIB = 1 << 30

CATALOGUE = "CATALOGUE"
"""KV bucket: `contract.<sha256>` every contract ever announced, `worker.<id>` the card of each worker."""

ACK_WAIT_S = 10.0
"""How long a negotiator may be silent before its tasks go to another, unless the settings say otherwise."""

FULL = (10023, 10047, 10077, 10122)
"""Error codes of a stream or server at its bound: resources, storage, the stream's own limits, size of a message."""

_NO_STREAM = 10059

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
        "subjects": ["journal.*.*.*.*"],
        "republish": {
            "src": "journal.*.*.*.*",
            "dest": "result.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}",
        },
        "discard": "new",
        "max_bytes": _GIB,
        "allow_msg_ttl": True,
        "description": "What was decided for each task, by compare-and-set.",
    },
    "RESULTS": {
        "subjects": ["result.*.*.*.*.*"],
        "discard": "old",
        "max_bytes": _GIB,
        "allow_msg_ttl": True,
        "description": "Events of every attempt.",
    },
    "BODIES": {
        "subjects": ["body.*.*.*.*"],
        "discard": "new",
        "max_bytes": 4 * _GIB,
        "allow_msg_ttl": True,
        "description": "Inputs and outputs too large for a message, in chunks.",
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


PROBED = ("TASKS", "JOURNAL", "RESULTS", "BODIES")
"""Streams without which no task ends. Each also takes a subject that nobody reads, to find out whether it stores."""

_NO_CLUSTER = (10074, 10005)
"""Replicas asked of a single server; of a cluster with too few of them."""


def probe_subject(stream: str) -> str:
    """What is published here is stored by the stream and read by nobody."""
    return f"ready.{stream}"


def stream_config(name: str, *, replicas: int = 1) -> dict[str, Any]:
    """A stream's whole description, as the JetStream API takes it."""
    config = {"name": name, "storage": "file", "allow_direct": True, "retention": "limits", **STREAMS[name]}
    if name in PROBED:
        config["subjects"] = [*config["subjects"], probe_subject(name)]
    return config | {"num_replicas": replicas}


async def setup_bus(nc: Client, *, ack_wait_s: float = ACK_WAIT_S, replicas: int = 1) -> None:
    """Make every stream and consumer as described here, or bring it up to the description. Idempotent.

    `ack_wait_s`: a negotiator silent for this long has lost its tasks to another, a ledger worker its Finals.
    `replicas`: servers that hold each stream; a stream that has more keeps them.

    Raises `ConnectionFailed` where the server has no JetStream or refuses.
    """
    for name in STREAMS:
        body = stream_config(name, replicas=replicas)
        reply = await _api(nc, f"STREAM.CREATE.{name}", body)
        # It exists with another configuration, or just exists: the server looks for room for it before it notices.
        if reply.get("err_code") in (10058, *FULL) and (present := await _replicas(nc, name)):
            body["num_replicas"] = max(replicas, present)
            reply = await _api(nc, f"STREAM.UPDATE.{name}", body)
        if reply.get("err_code") in _NO_CLUSTER and replicas > 1:
            raise ConnectionFailed(
                f"MODELNET_DURABILITY=replicated needs a cluster of {replicas} servers that answer, and this is none",
                code="no_cluster",
            )
        if reply.get("err_code") in FULL:
            raise ConnectionFailed(
                f"stream {name} cannot be made: the server has no {STREAMS[name]['max_bytes'] >> 20} MiB left to "
                "reserve for it (free space, or raise its max_file_store)",
                code="no_space",
            )
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
        "filter_subject": "journal.*.*.*.final",
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


async def _replicas(nc: Client, stream: str) -> int:
    """How many servers hold the stream; 0: there is no such stream."""
    answer = await _ask(nc, f"STREAM.INFO.{stream}", {})
    return int(answer.get("config", {}).get("num_replicas", 0))


async def last_sequence(nc: Client, stream: str) -> int:
    """Sequence of the last message that the stream has stored. Raises `ConnectionFailed`."""
    answer = await _ask(nc, f"STREAM.INFO.{stream}", {})
    if "state" not in answer:
        raise ConnectionFailed(f"stream {stream} does not answer: {answer.get('error', {}).get('description')}")
    return int(answer["state"]["last_seq"])


async def stream_messages(nc: Client, stream: str, *, missing: int | None = None) -> int:
    """How many messages a stream holds; `missing` if there is no such stream. Raises `ConnectionFailed`."""
    answer = await _ask(nc, f"STREAM.INFO.{stream}", {})
    if "state" in answer:
        return int(answer["state"]["messages"])
    error = answer.get("error", {})
    if missing is not None and error.get("err_code") == _NO_STREAM:
        return missing
    raise ConnectionFailed(f"stream {stream} does not answer: {error.get('description')}")


async def delete_stream(nc: Client, stream: str) -> None:
    """Delete a stream, if there is one, with all that it holds. Raises `ConnectionFailed`."""
    error = await _api(nc, f"STREAM.DELETE.{stream}", {})
    if error and error.get("err_code") != _NO_STREAM:
        raise ConnectionFailed(f"stream {stream} cannot be deleted: {error.get('description')}")


async def _api(nc: Client, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call the JetStream API; the error as a dictionary, empty if there is none."""
    error: dict[str, Any] = (await _ask(nc, verb, body)).get("error") or {}
    return error


async def _ask(nc: Client, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call the JetStream API: straight, because nats-py's configuration classes drop fields that they do not know."""
    try:
        reply = await nc.request(f"$JS.API.{verb}", json.dumps(body).encode(), timeout=10)
    except nats.errors.NoRespondersError:
        raise ConnectionFailed(
            "the server answers, but JetStream is not enabled on it (start it with -js)", code="no_jetstream"
        ) from None
    except nats.errors.TimeoutError:
        raise ConnectionFailed("JetStream did not answer within 10 s") from None
    answer: dict[str, Any] = json.loads(reply.data)
    return answer
