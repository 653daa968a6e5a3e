"""A real network for the CLI's tests: `modelnet up` with the example worker, the calculator and an awkward worker."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelnet.cli import invoke
from modelnet.settings import settings

ROOT = Path(__file__).resolve().parents[2]
MODELNET = [sys.executable, "-c", "from modelnet.cli import main; main()"]
AWKWARD = """
import asyncio
from modelnet import Progress, Worker

worker = Worker("awkward")

@worker.capability("test.stream", price=3)
async def stream(ctx, input):
    for word in ("one ", "two ", "three"):
        yield word
    yield Progress(1.0, "all said")

@worker.capability("test.raise", price=3)
def fail(ctx, input):
    raise ValueError("this worker always fails")

@worker.capability("test.garbage", price=3)
async def garbage(ctx, input):
    yield 7

@worker.capability("test.gate", price=3)
async def gate(ctx, input):
    if "gate" in input:  # a FIFO: opened for reading here, it waits for the test to open its other end
        await asyncio.to_thread(lambda: open(input["gate"]).close())
    return {"number": input["number"]}

@worker.capability("test.never", price=3)
async def never(ctx, input):
    yield "begun"
    await asyncio.Event().wait()
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def read_until_ready(up: subprocess.Popen[str]) -> dict[str, str]:
    """The lines that `up` prints, up to `ready`, as a mapping."""
    assert up.stdout is not None
    found: dict[str, str] = {}
    for line in up.stdout:
        if line == "ready\n":
            return found
        name, _, value = line.strip().partition("=")
        found[name] = value
    raise AssertionError(f"up ended before it was ready: {up.wait()}")


def start_up(data: Path, *args: str) -> subprocess.Popen[str]:
    """`modelnet up` in a process of its own. What it tells on stderr stands in pytest's report of a test that fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MODELNET_")}
    return subprocess.Popen(
        [*MODELNET, "up", "--data", str(data), *args],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that points commands at a running network."""
    folder = tmp_path_factory.mktemp("up")
    awkward = folder / "awkward.py"
    awkward.write_text(AWKWARD)
    workers = ["examples/upper.py", "workers.tools:app", str(awkward)]
    up = start_up(folder / "data", *[arg for worker in workers for arg in ("--worker", worker)])
    try:
        yield read_until_ready(up)
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0


@pytest.fixture
def modelnet(
    network: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a command against the network, in this process: what `main` does, without its half second of imports."""
    # Loggers keep the stderr they first had, which is closed when the test has ended.
    monkeypatch.setattr("modelnet.log.setup_logging", lambda config: None)

    def run(
        *args: str, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        for name, value in {**network, **(env or {})}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin or ""))
        settings.cache_clear()
        capsys.readouterr()
        code = invoke(args)
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, shown.out, shown.err)

    yield run
    settings.cache_clear()
