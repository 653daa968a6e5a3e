"""The gateway beside other doors, in one run: a mock upstream, LiteLLM's proxy before it, Ray Serve's echo, modelnet.

    python -m bench.gateway [--rounds 3] [--seconds 5] [--peers FOLDER] [--write]

Each is asked for the same small chat completion by `wrk`: one after the other on one connection, then on 32 at once.
modelnet's answer goes through the gateway, the bus, an auction and a function worker in processes of their own; LiteLLM
and Ray Serve answer without any of that. LiteLLM and Ray are installed into a virtual environment of their own in
FOLDER (a gigabyte; kept for the next run), never into this one. `wrk` comes from the system's packages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from modelnet.bus.embedded import HeldPort
from modelnet.network import Network, WorkerProcess
from modelnet.processes import ChildProcess
from modelnet.settings import Settings

PEERS = ("litellm[proxy]==1.106.12", "ray[serve]==2.60.0")
KEY = f"sk-{secrets.token_hex(24)}"
"""LiteLLM starts with none that is weak; the others take any."""
FLIGHT = 32
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
HERE = Path(__file__).parent
PEERS_FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "modelnet-bench-peers"
PATIENCE_S = 300
"""Longest wait for a door to open: LiteLLM imports for a minute where the machine is slow."""

WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
wrk.body = [==[%s]==]
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() refused = 0 end
function response(status) if status ~= 200 then refused = refused + 1 end end
function done(summary, latency)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  for _, thread in ipairs(threads) do bad = bad + thread:get("refused") end
  io.write(string.format("RESULT %%d %%f %%f %%f %%d\\n", summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, bad))
end
"""


class Measured(NamedTuple):
    """One door in one round."""

    p50_ms: float
    p99_ms: float
    rate: float
    busy_p50_ms: float


Door = Callable[[Path], AbstractAsyncContextManager[str]]


# ------------------------------------------------------------------ the doors


@contextlib.asynccontextmanager
async def mock(folder: Path) -> AsyncIterator[str]:
    """The upstream itself."""
    port = _port()
    async with _child("mock", [sys.executable, "-m", "bench.mock_openai", str(port)], folder):
        yield f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def litellm_proxy(python: Path, folder: Path, name: str, model: str, upstream: str) -> AsyncIterator[str]:
    """LiteLLM's proxy, which asks for KEY, before a server of OpenAI's protocol. `python`: of the environment that has
    it; `name`: what its clients ask for; `model`: as LiteLLM names it, with the protocol before it."""
    port = _port()
    said = {"model": model, "api_base": f"{upstream}/v1", "api_key": "sk-bench"}
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": name, "litellm_params": said}]}))
    command = [str(python.with_name("litellm")), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    env["LITELLM_MASTER_KEY"] = KEY
    async with _child("litellm", command, folder, env=env):
        yield f"http://127.0.0.1:{port}"


def litellm(python: Path) -> Door:
    """LiteLLM's proxy before the upstream."""

    @contextlib.asynccontextmanager
    async def door(folder: Path) -> AsyncIterator[str]:
        async with mock(folder) as upstream, litellm_proxy(python, folder, "echo", "openai/echo", upstream) as url:
            yield url

    return door


def ray(python: Path) -> Door:
    """Ray Serve's echo."""
    return partial(ray_serve, python, "ray_echo.py")


@contextlib.asynccontextmanager
async def ray_serve(python: Path, script: str, folder: Path, *arguments: str) -> AsyncIterator[str]:
    """One of the scripts here that serve with Ray. `python`: of the environment that has it."""
    port = _port()
    command = [str(python), str(HERE / script), str(port), *arguments]
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)}
    try:
        async with _child("ray", command, folder, env=env, ready=b" is up"):
            yield f"http://127.0.0.1:{port}"
    finally:
        stop = [str(python.with_name("ray")), "stop", "--force"]
        await asyncio.to_thread(subprocess.run, stop, check=False, capture_output=True)


@contextlib.asynccontextmanager
async def network(folder: Path) -> AsyncIterator[str]:
    """modelnet: gateway, bus, negotiator, worker, ledger, each a process."""
    config = Settings(log_level="error")
    worker = WorkerProcess("bench.echo_worker:app")
    async with Network(data=folder / "modelnet", workers=[worker], gateway=True, config=config) as running:
        yield running.gateway_url


@contextlib.asynccontextmanager
async def _child(
    name: str, command: list[str], folder: Path, *, env: dict[str, str] | None = None, ready: bytes | None = None
) -> AsyncIterator[None]:
    process = ChildProcess(name, command, log_dir=folder, env=env, ready=ready, restart=False)
    await process.start(PATIENCE_S)
    try:
        yield
    finally:
        await process.stop()


def _port() -> int:
    """A free port that the system gives nobody meanwhile: some doors take a minute to listen on it."""
    with HeldPort(random.randrange(18_000, 28_000)) as port:
        return port.number


# ------------------------------------------------------------------ measuring


async def measure(door: Door, seconds: int) -> Measured:
    """One round of one door."""
    with tempfile.TemporaryDirectory(prefix="modelnet-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        script = folder / "chat.lua"
        script.write_text(WRK % (KEY, json.dumps(CHAT)))
        async with door(folder) as url:
            try:
                await _until_answered(url)
            except TimeoutError:
                logs = await asyncio.to_thread(_ends_of_logs, folder)
                raise SystemExit(f"no answer from {url} within {PATIENCE_S} s\n{logs}") from None
            await wrk(url, script, connections=8, seconds=2)  # warm
            alone = await wrk(url, script, connections=1, seconds=seconds)
            busy = await wrk(url, script, connections=FLIGHT, seconds=seconds)
    return Measured(alone[0], alone[1], busy[2], busy[0])


def _ends_of_logs(folder: Path) -> str:
    return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log"))


async def wrk(url: str, script: Path, *, connections: int, seconds: int) -> tuple[float, float, float]:
    """p50 and p99 in ms, and answers a second. An answer that is no 200 ends the benchmark."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", str(script)]
    process = await asyncio.create_subprocess_exec(
        *command, f"{url}/v1/chat/completions", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    found = re.search(r"RESULT (\d+) ([\d.]+) ([\d.]+) ([\d.]+) (\d+)", said)
    if found is None or found[5] != "0" or found[1] == "0":
        raise SystemExit(f"wrk: {said}")
    return float(found[3]), float(found[4]), int(found[1]) / float(found[2])


async def _until_answered(url: str) -> None:
    """Wait until a chat is answered with its words: until then the door is not open."""

    def ask() -> str:
        body = json.dumps(CHAT).encode()
        asked = urllib.request.Request(
            f"{url}/v1/chat/completions", body, {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            said: str = json.load(answer)["choices"][0]["message"]["content"]
            return said

    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert await asyncio.to_thread(ask) == "one two three"
            except OSError:  # nothing listens yet, or it is not ready
                await asyncio.sleep(0.2)
            else:
                return


def install_peers(folder: Path, packages: Sequence[str] = PEERS) -> Path:
    """The Python of an environment that has these, LiteLLM and Ray; it is made if it is not there."""
    python = folder / "venv" / "bin" / "python"
    done = folder / "installed"
    if not done.is_file() or done.read_text() != "\n".join(packages):
        print(f"installing {' and '.join(packages)} into {folder} (minutes)", file=sys.stderr)
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([uv, "venv", "-q", "--clear", "-p", sys.executable, str(folder / "venv")], check=True)
        wheels = os.environ.get("PIP_FIND_LINKS")
        torch = ["--find-links", wheels] if wheels else ["--torch-backend=auto"]
        command = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", str(python), *torch, *packages]
        subprocess.run(command, check=True, cwd=HERE.parent)  # where pyproject.toml says what vLLM needs not
        done.write_text("\n".join(packages))
    return python


# ------------------------------------------------------------------ what is said of it


def report(rounds: list[dict[str, Measured]]) -> str:
    """The table, and the ratios that the gateway is judged by, round by round."""
    lines = [f"{'':<34}{'p50 ms':>9}{'p99 ms':>9}{f'{FLIGHT} at once/s':>15}{'p50 then':>10}"]
    for name in rounds[0]:
        of = [one[name] for one in rounds]
        p50, p99, rate, busy = (statistics.median(values) for values in zip(*of, strict=True))
        lines.append(f"{name:<34}{p50:>9.2f}{p99:>9.2f}{rate:>15.0f}{busy:>10.1f}")

    def ratio(what: str, aim: str, each: list[float]) -> str:
        return f"{what}: {statistics.median(each):.2f} ({', '.join(f'{x:.2f}' for x in each)}), aim {aim}"

    if RAY in rounds[0]:
        of_ray = [(one[MODELNET], one[RAY]) for one in rounds]
        lines.append(ratio("modelnet / Ray Serve, p50", "1 at most", [a.p50_ms / b.p50_ms for a, b in of_ray]))
        lines.append(ratio("modelnet / Ray Serve, rate", "1.5 at least", [a.rate / b.rate for a, b in of_ray]))
    if LITELLM in rounds[0]:
        of_all = [(one[MODELNET], one[LITELLM], one[MOCK].p50_ms) for one in rounds]
        added = [(a.p50_ms - bare) / (b.p50_ms - bare) for a, b, bare in of_all]
        lines.append(ratio("modelnet / LiteLLM, time added to the mock's p50", "0.5 at most", added))
        lines.append(ratio("modelnet / LiteLLM, rate", "3 at least", [a.rate / b.rate for a, b, _ in of_all]))
    return "\n".join(lines)


MOCK, LITELLM, RAY = "mock upstream", "LiteLLM proxy, mock", "Ray Serve echo"
MODELNET = "modelnet gateway, auction, worker"


async def main() -> None:
    """Run all rounds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--peers", type=Path, default=PEERS_FOLDER, help="where the peers are, or are installed")
    parser.add_argument("--only", action="store_true", help="modelnet and the mock only, without the peers")
    parser.add_argument("--write", action="store_true", help="write the output to bench/results/gateway.txt too")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt-get install wrk")
    doors: dict[str, Door] = {MOCK: mock}
    if not args.only:
        python = install_peers(args.peers)
        doors |= {LITELLM: litellm(python), RAY: ray(python)}
    doors[MODELNET] = network
    head = (
        f"bench/gateway.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{', '.join(PEERS)}; {args.rounds} rounds of {args.seconds} s; medians"
    )
    print(head, flush=True)
    rounds = list[dict[str, Measured]]()
    for _ in range(args.rounds):
        rounds.append({name: await measure(door, args.seconds) for name, door in doors.items()})
    said = report(rounds)
    print(said, flush=True)
    if args.write:
        HERE.joinpath("results", "gateway.txt").write_text(f"{head}\n{said}\n")


if __name__ == "__main__":
    asyncio.run(main())
