"""GET /ready of a process, asked from outside: what compose and Kubernetes see."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.asyncio import Redis

from modelnet.bus.durability import verify_durability
from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis, HeldPort, find_program
from modelnet.bus.streams import stream_config
from modelnet.errors import ConnectionFailed
from modelnet.processes import ChildProcess, StartFailed
from modelnet.ready import Readiness
from modelnet.settings import Settings
from tests.network.stage import Network, fast, until
from workers.negotiator import Negotiator, make_app

ROOT = Path(__file__).resolve().parents[2]


async def ask(port: int, path: str = "/ready") -> tuple[int, dict[str, Any]]:
    """Status and body."""

    def get() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read()

    status, body = await asyncio.to_thread(get)
    return status, json.loads(body) if path == "/ready" else {}


async def healthcheck(port: int) -> int:
    """Exit code of what compose.yaml asks each process of ours with."""
    found = re.search(r'\["CMD", "python", "-c", "(.*)"\]', (ROOT / "compose.yaml").read_text())
    assert found is not None
    command = found[1].replace(":8088/", f":{port}/")
    asked = await asyncio.create_subprocess_exec(sys.executable, "-c", command, stderr=asyncio.subprocess.DEVNULL)
    return await asked.wait()


def test_the_server_configuration_of_compose_syncs_always_and_is_valid() -> None:
    config = ROOT / "compose.power.conf"
    assert "sync_interval: always" in config.read_text()
    subprocess.run([find_program("nats-server"), "-c", str(config), "-t"], check=True, capture_output=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_process_answers_and_says_what_is_named_and_what_holds(
    tmp_path: Path, nats_server: EmbeddedNats
) -> None:
    redis, held = EmbeddedRedis(tmp_path / "redis"), HeldPort()
    port = held.number
    await redis.start()
    env = {
        "MODELNET_URL": nats_server.url,
        "MODELNET_REDIS_URL": redis.url,
        "MODELNET_DATA": str(tmp_path),
        "MODELNET_DURABILITY": "power",
        "MODELNET_READY_LISTEN": f"127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "modelnet.run", "workers.negotiator:app"]
    process = ChildProcess("negotiator", command, log_dir=tmp_path, env=env, ready=b"ready_listening")
    try:
        await process.start()
        status, said = await ask(port)
        assert status == 200
        assert said == {
            "ready": True,
            "durability": "power",
            "assured": {"streams": True, "NATS sync": None, "Redis": True},
        }
        assert (await ask(port, "/other"))[0] == 404
        assert await healthcheck(port) == 0
    finally:
        await process.stop()
        await redis.stop()
        held.release()
    assert b"durability_not_assured" in (tmp_path / "negotiator.log").read_bytes()


async def test_no_process_is_ready_before_a_full_stream_or_without_its_server(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path / "nats")
    await server.start()
    config = fast(server.url, ready_listen="127.0.0.1:0", data=tmp_path)
    app = make_app(config, Negotiator(config))
    readiness = Readiness.of(app, config)
    async with Network(config) as network:
        await app.start()
        await readiness.open()
        assert readiness.address is not None
        port = readiness.address[1]
        try:
            assert (await ask(port))[0] == 200
            body = json.dumps(stream_config("TASKS") | {"max_bytes": 1}).encode()
            await network.bus.request("$JS.API.STREAM.UPDATE.TASKS", body, timeout=5)
            readiness.forget()
            status, said = await ask(port)
            assert (status, said["ready"], said["code"]) == (503, False, "bus_full")
            assert await healthcheck(port) != 0
            gone = asyncio.Event()
            network.bus._disconnected_cb = set_when_called(gone)
            await server.stop()
            await until(gone)
            readiness.forget()
            assert (await ask(port))[0] == 503
        finally:
            await readiness.close()
            await app.stop()


def set_when_called(event: asyncio.Event) -> Any:
    """A callback of nats-py."""

    async def called() -> None:
        event.set()

    return called


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_servers_started_as_named_are_verified_to_be_so(tmp_path: Path, durability: str) -> None:
    sync = durability == "power"
    nats = EmbeddedNats(tmp_path / "nats", sync_always=sync, monitored=True)
    redis = EmbeddedRedis(tmp_path / "redis")
    await asyncio.gather(nats.start(), redis.start())
    try:
        named = {"redis_url": redis.url, "monitor_url": nats.monitor_url, "durability": durability}
        async with Network(fast(nats.url, **named)) as network:
            await network.negotiator()
            found = await verify_durability(network.bus, network.config)
            assert {one.what for one in found} == {"streams", "Redis"} | ({"NATS sync"} if sync else set())
            assert all(one.holds for one in found), found
    finally:
        await asyncio.gather(nats.stop(), redis.stop())


async def test_power_named_on_servers_that_do_not_sync_is_told(tmp_path: Path) -> None:
    nats, redis = EmbeddedNats(tmp_path / "nats", monitored=True), EmbeddedRedis(tmp_path / "redis")
    await asyncio.gather(nats.start(), redis.start())
    try:
        named = {"redis_url": redis.url, "monitor_url": nats.monitor_url, "durability": "power"}
        async with Network(fast(nats.url, **named)) as network:
            await network.negotiator()
            found = {one.what: one for one in await verify_durability(network.bus, network.config)}
            assert [found["NATS sync"].holds, found["Redis"].holds, found["streams"].holds] == [False, True, True]
            assert "120 s" in found["NATS sync"].detail
    finally:
        await asyncio.gather(nats.stop(), redis.stop())


@pytest.mark.parametrize("durability", ["process", "power", "replicated"])
async def test_a_redis_that_syncs_each_second_is_told_at_every_durability(
    tmp_path: Path, nats_server: EmbeddedNats, durability: Literal["process", "power", "replicated"]
) -> None:
    redis = EmbeddedRedis(tmp_path / "redis")
    await redis.start()
    client = Redis.from_url(redis.url)
    config = Settings(url=nats_server.url, redis_url=redis.url, durability=durability)
    try:
        async with Network(fast(nats_server.url)) as network:
            for sync, holds in ("always", True), ("everysec", False):
                await client.config_set("appendfsync", sync)
                found = {one.what: one for one in await verify_durability(network.bus, config)}
                assert found["Redis"].holds is holds
                assert sync in found["Redis"].detail
    finally:
        await client.aclose()
        await redis.stop()


@pytest.mark.asyncio(loop_scope="module")
async def test_replicated_is_refused_by_a_single_server_and_by_up(bare_network: Network, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="cluster of 3") as caught:
        await bare_network.negotiator(durability="replicated")
    assert caught.value.wire_code == "no_cluster"

    from modelnet.network import Network as Machine

    with pytest.raises(StartFailed, match="MODELNET_URL"):
        await Machine(data=tmp_path, config=Settings(durability="replicated", url="")).start()
    assert not os.listdir(tmp_path)
