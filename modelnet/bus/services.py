"""What a process of the network tells whoever asks by the NATS services API (ADR-32): `$SRV.PING`, `INFO` and `STATS`.

nats-py's own service subscribes to its endpoints and answers each request. Here a request is an award or a task, whose
way is the protocol's; so this answers the three verbs only, in nats-py's words, from counters that the work keeps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import (
    EndpointInfo,
    EndpointStats,
    ServiceInfo,
    ServicePing,
    ServiceStats,
    ServiceVerb,
    control_subject,
)

from .connection import unsubscribe

__all__ = ["PROTOCOL", "Endpoint", "Service", "Statistics", "endpoint_name"]

PROTOCOL = "modelnet/1"
"""In the metadata of every service: what is spoken on the subjects of its endpoints, described in docs/protocol.md."""

try:
    _VERSION = version("modelnet")
except PackageNotFoundError:  # run from a folder that was never installed
    _VERSION = "0.0.0"


@dataclass(slots=True)
class Statistics:
    """What became of the requests of one endpoint, since the process started. Counting is all that it costs."""

    requests: int = 0
    """Those that were begun."""
    errors: int = 0
    """Those that ended in an error; one that was cancelled is none."""
    processing_ms: float = 0.0
    """Time spent on all of them."""
    last_error: str = ""
    data: dict[str, int] = field(default_factory=dict)
    """Counts of the endpoint's own, by name."""

    def count(self, name: str) -> None:
        """Add one to a count of the endpoint's own."""
        self.data[name] = self.data.get(name, 0) + 1

    def ended(self, run_ms: float, error: str | None = None) -> None:
        """A request is over."""
        self.processing_ms += run_ms
        if error is not None:
            self.errors += 1
            self.last_error = error


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something that a service does, and where it hears of it."""

    name: str
    """Letters, digits, `-` and `_`."""
    subject: str
    statistics: Statistics
    metadata: Mapping[str, str] = field(default_factory=dict)


class Service:
    """One process as the services API shows it. Answers while it is open; subscriptions outlive a lost connection."""

    def __init__(
        self,
        nc: Client,
        name: str,
        id: str,
        *,
        description: str,
        endpoints: Sequence[Endpoint],
        metadata: Mapping[str, str] | None = None,
        state: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`name`: the kind, shared by all of a kind; `id`: this one's. `state`: counts as of now, added to the
        statistics of every endpoint."""
        self._nc, self._name, self._id = nc, name, id
        self._description, self._endpoints, self._state = description, tuple(endpoints), state
        self._metadata = {"protocol": PROTOCOL, **(metadata or {})}
        self._started = datetime.now(UTC)
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Begin to answer."""
        answers = {
            ServiceVerb.PING: self._ping,
            ServiceVerb.INFO: self._info,
            ServiceVerb.STATS: self._stats,
        }
        for verb, answer in answers.items():
            for who in ((None, None), (self._name, None), (self._name, self._id)):
                subscription = await self._nc.subscribe(control_subject(verb, *who), cb=self._answer(answer))
                self._subscriptions.append(subscription)

    async def close(self) -> None:
        """Answer no more; harmless if it never did."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await unsubscribe(subscription)

    def _answer(self, tell: Callable[[], Any]) -> Callable[[Msg], Any]:
        async def answer(msg: Msg) -> None:
            if msg.reply:
                await self._nc.publish(msg.reply, json.dumps(tell().to_dict()).encode())

        return answer

    def _who(self) -> dict[str, Any]:
        return {"id": self._id, "name": self._name, "version": _VERSION, "metadata": self._metadata}

    def _ping(self) -> ServicePing:
        return ServicePing(**self._who())

    def _info(self) -> ServiceInfo:
        endpoints = [
            EndpointInfo(name=one.name, subject=one.subject, queue_group="", metadata=dict(one.metadata))
            for one in self._endpoints
        ]
        return ServiceInfo(**self._who(), description=self._description, endpoints=endpoints)

    def _stats(self) -> ServiceStats:
        state = self._state()
        endpoints = [_stats_of(one, state) for one in self._endpoints]
        return ServiceStats(**self._who(), started=self._started, endpoints=endpoints)


def _stats_of(endpoint: Endpoint, state: Mapping[str, int]) -> EndpointStats:
    seen = endpoint.statistics
    ended_ns = int(seen.processing_ms * 1e6)
    return EndpointStats(
        name=endpoint.name,
        subject=endpoint.subject,
        queue_group="",
        num_requests=seen.requests,
        num_errors=seen.errors,
        last_error=seen.last_error,
        processing_time=ended_ns,
        average_processing_time=ended_ns // seen.requests if seen.requests else 0,
        data={**seen.data, **state},
    )


def endpoint_name(pattern: str, taken: Iterable[str] = ()) -> str:
    """A capability as the name of an endpoint, which has no dots; numbered where another has it already."""
    name = base = pattern.replace(".", "-").replace(">", "all")
    known, number = set(taken), 1
    while name in known:
        number += 1
        name = f"{base}-{number}"
    return name
