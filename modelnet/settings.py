"""Configuration: one settings object, every field from `MODELNET_*` in the environment, shown by `modelnet config`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["NETWORK_FILE", "Durability", "Settings", "settings"]

Durability = Literal["process", "power", "replicated"]
"""What must not lose an accepted task: the death of any process, a power cut too, the loss of a whole server."""

NETWORK_FILE = "network.json"
"""Written by `modelnet up` into its data folder, so that commands on the same machine find the network."""


def default_data_dir() -> Path:
    """`.modelnet` in the home folder: where `modelnet up` keeps streams and logs unless told otherwise."""
    return Path.home() / ".modelnet"


class Settings(BaseSettings):
    """All settings of clients, workers and the network's own processes."""

    model_config = SettingsConfigDict(env_prefix="MODELNET_", extra="ignore")

    url: str = Field(default="", description="NATS servers, comma-separated. Empty: the network started by `up`.")
    redis_url: str = Field(default="", description="Redis. Empty: the network started by `up`.")
    data: Path = Field(default_factory=default_data_dir, description="Data folder of `modelnet up`.")
    durability: Durability = Field(
        default="process", description="What accepted tasks survive: process, power or replicated."
    )
    monitor_url: str = Field(
        default="", description="Monitoring address of the NATS server, to verify durability. Empty: that of `up`."
    )
    ready_listen: str = Field(
        default="",
        pattern=r"^$|^[^:]*:[0-9]{1,5}$",
        description="host:port where this process answers GET /ready. Empty: nowhere.",
    )
    gateway_listen: str = Field(
        default="127.0.0.1:8090",
        pattern=r"^[^:]*:[0-9]{1,5}$|^\[[^\]]*\]:[0-9]{1,5}$",
        description="host:port of the gateway's doors. Beyond loopback every request needs a key.",
    )
    gateway_keys: Literal["auto", "required"] = Field(
        default="auto", description="Whether the gateway asks for keys: auto: not on loopback, or always."
    )
    gateway_max_body_bytes: int = Field(
        default=32 * 1024 * 1024, ge=1024, description="Largest body of a request to the gateway."
    )
    tenant: str = Field(default="default", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Who pays for tasks.")
    prefix_secret: str = Field(
        default="",
        pattern=r"^$|^.{16,}$",
        repr=False,
        description="What negotiators key prefix hashes with, the same for all. Empty: they agree on one.",
    )
    free_tenants: bool = Field(
        default=True, description="Tenants without an account are served for nothing; false: they have no funds."
    )
    openai_api_key: SecretStr = Field(
        default=SecretStr(""), description="Key for the server of `work --openai`, if it wants one.", repr=False
    )
    owner: str = Field(default="local", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Who owns workers started here.")
    user: str = Field(default="", description="User name for the NATS server.")
    password: str = Field(default="", description="Password for the NATS server.", repr=False)
    connect_timeout_s: float = Field(default=3.0, gt=0, description="Give up connecting after this many seconds.")
    beat_s: float = Field(default=1.0, gt=0, description="Seconds between a worker's beats.")
    missed_beats: int = Field(default=3, ge=1, description="Beats missed before a worker counts as lost.")
    bid_window_ms: float = Field(default=200.0, gt=0, description="Longest time that an auction takes bids.")
    award_timeout_ms: float = Field(
        default=2000.0, gt=0, description="Longest wait for the answer to an award, and again once asked."
    )
    ack_wait_s: float = Field(default=10.0, ge=1, description="A negotiator silent for so long loses its tasks.")
    max_attempts: int = Field(default=3, ge=1, description="Attempts awarded before a task fails.")
    drain_s: float = Field(default=30.0, ge=0, description="What runs may go on for so long when a worker stops.")
    max_in_flight: int = Field(default=512, ge=1, description="Tasks one negotiator holds that no worker is at.")
    max_at_work: int = Field(
        default=8192, ge=0, description="Tasks it holds beside them that workers are at; more take places of theirs."
    )
    max_body_bytes: int = Field(
        default=256 * 1024, ge=1024, le=768 * 1024, description="Largest input or output that travels in a message."
    )
    max_object_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1024, description="Largest input or output; above max_body_bytes it is stored."
    )
    log_level: str = Field(default="info", description="debug, info, warning or error.")
    log_format: str = Field(default="auto", description="json, console, or auto: console on a terminal.")

    @property
    def servers(self) -> list[str]:
        """Where to connect: the URL given, else the network that `up` runs on this machine, else the NATS default."""
        if self.url:
            return [part.strip() for part in self.url.split(",") if part.strip()]
        return [self.running_network().get("url", "nats://127.0.0.1:4222")]

    @property
    def redis(self) -> str:
        """The Redis URL given, else that of the network that `up` runs on this machine, else the Redis default."""
        return self.redis_url or self.running_network().get("redis_url", "redis://127.0.0.1:6379/0")

    @property
    def monitor(self) -> str:
        """Where the NATS server tells about itself: what was given, else of the network that `up` runs, else empty."""
        running = self.running_network()
        known = running.get("monitor_url", "") if self.url in ("", running.get("url")) else ""
        return (self.monitor_url or known).rstrip("/")

    @property
    def gateway_keys_required(self) -> bool:
        """Whether the gateway serves nobody without a key."""
        host = self.gateway_listen.rpartition(":")[0].strip("[]")
        return self.gateway_keys == "required" or not (host in ("localhost", "::1") or host.startswith("127."))

    @property
    def replicas(self) -> int:
        """How many servers hold each stream."""
        return 3 if self.durability == "replicated" else 1

    def running_network(self) -> dict[str, Any]:
        """What `modelnet up` has written of itself, or nothing."""
        try:
            found = json.loads((self.data / NETWORK_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@lru_cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
