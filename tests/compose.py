"""`make compose-test`: compose.yaml on a real engine, used from outside, scaled and broken under load, taken down.

Needs `docker compose` or `docker-compose` and an engine that answers; not part of `make test`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import openai

import modelnet
from modelnet.bus.embedded import HeldPort
from modelnet.errors import ConnectionFailed
from modelnet.messages import Final

ROOT = Path(__file__).resolve().parent.parent
PROJECT = f"modelnet-test-{os.getpid()}"
READY_S = 300.0


class Compose:
    """The compose command of this machine, on a project of its own."""

    def __init__(self) -> None:
        new = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        if not new and not shutil.which("docker-compose"):
            sys.exit("neither `docker compose` nor docker-compose is installed")
        self._command = ["docker", "compose"] if new else ["docker-compose"]
        self._ports = {name: HeldPort() for name in ("NATS", "REDIS", "GATEWAY")}
        nats, redis, gateway = (port.number for port in self._ports.values())
        self.url, self.redis_url = f"nats://127.0.0.1:{nats}", f"redis://127.0.0.1:{redis}/0"
        self.gateway_url = f"http://127.0.0.1:{gateway}"
        self._env = {**os.environ, **{f"MODELNET_{name}_PORT": str(port.number) for name, port in self._ports.items()}}

    def __call__(self, *args: str) -> str:
        """Run it; its stdout."""
        done = subprocess.run(
            [*self._command, "-p", PROJECT, *args],
            cwd=ROOT,
            env=self._env,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def kill_one(self, service: str) -> None:
        """Kill -9 one container of a service."""
        victim = self("ps", "-q", service).split()[0]
        subprocess.run(["docker", "kill", "--signal", "KILL", victim], check=True, stdout=subprocess.DEVNULL)


def say(started: float, what: str) -> None:
    """A line of progress."""
    print(f"{time.monotonic() - started:6.1f} s  {what}", flush=True)


async def workers_of(net: modelnet.Client, name: str) -> list[str]:
    """Ids of the living workers of this name."""
    found = [worker.card.worker for worker in await net.workers()]
    return [worker for worker in found if worker == name or worker.startswith(f"{name}-")]


async def until(net: modelnet.Client, name: str, count: int) -> None:
    """Wait until that many workers of a name live; each look waits for their beats."""
    async with asyncio.timeout(READY_S):
        while True:
            try:
                if len(await workers_of(net, name)) == count:
                    return
            except ConnectionFailed:  # no negotiator has made the streams yet
                continue


class Load:
    """Sums, 16 at a time, until told to stop."""

    def __init__(self, net: modelnet.Client) -> None:
        self.finals: list[Final] = []
        self._net = net
        self._stop = False
        self._progress = asyncio.Condition()
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(16)]

    async def _lane(self) -> None:
        while not self._stop:
            task = await self._net.submit("math.sum", {"values": ["1.5", "2"]}, deadline_s=60)
            self.finals.append(await task.final())
            async with self._progress:
                self._progress.notify_all()

    async def until(self, enough: Callable[[list[Final]], bool]) -> None:
        """Wait until what has come since now is enough."""
        start = len(self.finals)
        async with asyncio.timeout(60), self._progress:
            await self._progress.wait_for(lambda: enough(self.finals[start:]))

    async def stop(self) -> Counter[str]:
        """How many ended how."""
        self._stop = True
        await asyncio.gather(*self._lanes)
        return Counter(final.status for final in self.finals)


def through_the_gateway(compose: Compose) -> list[str]:
    """What it lists to a tenant that the command has made, after it has refused one without a key."""
    command = [sys.executable, "-m", "modelnet.cli", "tenant", "create", "acme", "--json"]
    env = {**os.environ, "MODELNET_URL": compose.url, "MODELNET_REDIS_URL": compose.redis_url}
    made = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
    base = f"{compose.gateway_url}/v1"
    try:
        openai.OpenAI(base_url=base, api_key="none").models.list()
    except openai.AuthenticationError:
        pass
    else:
        raise AssertionError("the gateway let somebody in without a key")
    client = openai.OpenAI(base_url=base, api_key=json.loads(made.stdout)["key"])
    listed = [model.id for model in client.models.list()]
    assert "math.sum" in listed, listed
    with urllib.request.urlopen(compose.gateway_url, timeout=10) as page:
        assert b"<html" in page.read()
    return listed


async def use(compose: Compose, started: float) -> None:
    """Everything a user would do from outside."""
    async with asyncio.timeout(READY_S):
        while True:
            try:
                net = await modelnet.connect(compose.url)
                break
            except ConnectionFailed:
                continue
    try:
        await until(net, "calculator", 1)
        assert await net.run("math.multiply", {"values": ["6", "7"]}) == {"value": "42"}
        say(started, "a task from outside was answered")
        await until(net, "date-de", 1)
        text = {"text": "dritter März zweitausendeinundzwanzig"}
        answer = await (await net.submit("normalize.date.de", text)).result()
        say(
            started,
            f"a specialist on vLLM answered {answer.output} for {answer.price} in {answer.timings.total_ms:.0f} ms",
        )
        listed = await asyncio.to_thread(through_the_gateway, compose)
        say(started, f"the gateway lists {len(listed)} models to who has a key, and nobody else")
        load = Load(net)
        await asyncio.to_thread(compose, "up", "-d", "--no-recreate", "--scale", "tools=3")
        await until(net, "calculator", 3)
        await load.until(lambda finals: len({final.worker for final in finals}) == 3)
        say(started, "scaled to three calculators under load; all three work")
        await asyncio.to_thread(compose.kill_one, "tools")
        await load.until(lambda finals: len(finals) >= 500)
        statuses = await load.stop()
        shares = Counter(final.worker for final in load.finals)
        say(started, f"one was killed under load; {len(load.finals)} tasks: {dict(statuses)}, by {dict(shares)}")
        assert set(statuses) == {"completed"}, statuses
    finally:
        await net.close()


def main() -> None:
    """Build, start, use, take down."""
    compose, started = Compose(), time.monotonic()
    try:
        compose("build")
        say(started, "images are built")
        compose("up", "-d")
        say(started, "containers are up")
        asyncio.run(use(compose, started))
    except BaseException:
        print(compose("logs", "--no-color", "--tail", "40"), file=sys.stderr)
        raise
    finally:
        compose("down", "-v", "--remove-orphans", "-t", "5")
        say(started, "taken down")


if __name__ == "__main__":
    main()
