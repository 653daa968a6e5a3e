"""What the servers do against what `MODELNET_DURABILITY` names: looked up, not believed.

A client sees a stream's replicas. Whether a server syncs before it acknowledges, it tells on its monitoring address
only.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import RedisError

from modelnet.settings import Settings

from .streams import STREAMS

__all__ = ["Assurance", "verify_durability"]

_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Assurance:
    """One thing that the named durability rests on."""

    what: str
    holds: bool | None
    """None: it cannot be told from here."""
    detail: str
    advice: str = ""


async def verify_durability(nc: Client, settings: Settings) -> list[Assurance]:
    """Everything that the named durability rests on, and whether it holds. Raises nothing."""
    found = [await _streams(nc, settings)]
    if settings.durability == "power":
        found.append(await asyncio.to_thread(_server_syncs, settings.monitor))
    found.append(await _redis(settings))
    return found


async def _streams(nc: Client, settings: Settings) -> Assurance:
    wrong: list[str] = []
    unknown: list[str] = []
    for name in STREAMS:
        try:
            reply = await nc.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=_TIMEOUT_S)
            info: dict[str, Any] = json.loads(reply.data)
        except (nats.errors.Error, ValueError):
            unknown.append(name)
            continue
        if "config" not in info:
            unknown.append(name)
        elif info["config"]["storage"] != "file":
            wrong.append(f"{name} is kept in memory")
        elif settings.durability == "replicated":
            current = 1 + sum(peer["current"] for peer in info["cluster"].get("replicas") or ())
            if current < settings.replicas:
                wrong.append(f"{name} is on {current}")
    what = "streams"
    if wrong:
        advice = "start the missing servers; a negotiator with MODELNET_DURABILITY=replicated makes the replicas"
        return Assurance(what, False, "; ".join(wrong), advice)
    if unknown:
        return Assurance(what, None, f"not to be seen: {', '.join(unknown)}", "is JetStream enabled on the server?")
    if settings.durability == "replicated":
        return Assurance(what, True, f"each on {settings.replicas} servers or more, all of them current")
    return Assurance(what, True, "in files")


def _server_syncs(monitor: str) -> Assurance:
    what = "NATS sync"
    if not monitor:
        return Assurance(what, None, "no monitoring address is known", "set MODELNET_MONITOR_URL, as http://nats:8222")
    try:
        with urllib.request.urlopen(f"{monitor}/varz", timeout=_TIMEOUT_S) as answer:
            config = json.load(answer).get("jetstream", {}).get("config", {})
    except (OSError, ValueError) as error:
        return Assurance(what, None, f"{monitor} does not tell: {error}", "look at MODELNET_MONITOR_URL")
    if config.get("sync_always"):
        return Assurance(what, True, "every message, before it is acknowledged")
    every_s = config.get("sync_interval", 0) / 1e9
    advice = "set jetstream { sync_interval: always } in the server's configuration"
    return Assurance(what, False, f"only every {every_s:g} s", advice)


async def _redis(settings: Settings) -> Assurance:
    what = "Redis"
    client = Redis.from_url(settings.redis, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S)
    try:
        set_to = await client.config_get("append*")
    except (RedisError, OSError, ValueError) as error:
        return Assurance(what, None, f"does not tell: {str(error).splitlines()[0]}", "look at MODELNET_REDIS_URL")
    finally:
        await client.aclose()
    appends, sync = set_to.get("appendonly") == "yes", set_to.get("appendfsync")
    if not appends:
        return Assurance(what, False, "keeps no log of its writes", "start it with --appendonly yes")
    # At any level: with `everysec` it answers writes that a kill -9 can still lose.
    detail = f"appends every write, synced {sync}" + ("; one server" if settings.durability == "replicated" else "")
    return Assurance(what, sync == "always", detail, "start it with --appendfsync always")
