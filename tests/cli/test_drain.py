"""`modelnet drain` and SIGTERM: a worker takes nothing new, finishes or hands on what it runs, and ends with 0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import MODELNET, ROOT, Run

WORKER = """
from modelnet import Worker

worker = Worker("NAME", slots=2)

@worker.capability("drain.gate", price=PRICE)
def gate(ctx, input):
    if ctx.attempt == 1:  # a FIFO: opened for reading here, it waits for the test to open its other end
        open(input["gate"]).close()
    return {"worker": ctx.worker}
"""


class Started:
    """A worker in a process of its own, started by `modelnet work`."""

    def __init__(self, folder: Path, name: str, price: int, env: dict[str, str]) -> None:
        file = folder / f"{name}.py"
        file.write_text(WORKER.replace("NAME", name).replace("PRICE", str(price)))
        self.process = subprocess.Popen(
            [*MODELNET, "work", str(file)],
            cwd=ROOT,
            env={**os.environ, **env, "MODELNET_LOG_LEVEL": "info", "MODELNET_LOG_FORMAT": "json"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        assert any("workers_joined" in line for line in self.process.stderr)

    def ends_well(self) -> bool:
        """Whether it ends by itself, with 0."""
        _, _ = self.process.communicate(timeout=30)
        return self.process.returncode == 0


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def begin(modelnet: Run, gate: Path) -> str:
    """Submit a task that waits at the gate, and see it begin: its id."""
    done = modelnet("submit", "drain.gate", "--input", json.dumps({"gate": str(gate)}), "--detach")
    return done.stdout.strip()


def until_busy(modelnet: Run, worker: str) -> None:
    """Wait until a worker runs something."""
    while True:
        for line in modelnet("workers", "--json").stdout.splitlines():
            found = json.loads(line)
            if found["worker"] == worker and found["running"]:
                return


def test_a_drained_worker_finishes_what_it_runs(
    modelnet: Run, network: dict[str, str], tmp_path: Path, gate: Path
) -> None:
    worker = Started(tmp_path, "drained", 1, network)
    task = begin(modelnet, gate)
    until_busy(modelnet, "drained")
    draining = subprocess.Popen(
        [*MODELNET, "drain", "drained", "--json"],
        cwd=ROOT,
        env={**os.environ, **network},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert draining.stdout is not None
    assert json.loads(draining.stdout.readline()) == {"kind": "drain", "worker": "drained", "running": 1}
    limited = modelnet("drain", "drained", "--timeout", "100ms")
    assert limited.returncode == 1
    assert "[timeout]" in limited.stderr
    with gate.open("w"):
        pass
    rest = [json.loads(line) for line in draining.stdout]
    assert draining.wait(30) == 0
    assert rest[-1] == {"kind": "left", "worker": "drained"}
    assert worker.ends_well()
    assert json.loads(modelnet("result", task, "--json").stdout)["output"] == {"worker": "drained"}
    gone = modelnet("drain", "drained")
    assert gone.returncode == 1
    assert "[unknown_worker]" in gone.stderr


@pytest.mark.parametrize("how", ["drain", "SIGTERM", "SIGINT"])
def test_what_takes_too_long_is_handed_on(
    modelnet: Run, network: dict[str, str], tmp_path: Path, gate: Path, how: str
) -> None:
    slow = Started(tmp_path, "slow", 1, network | {"MODELNET_DRAIN_S": "0.2"})
    task = begin(modelnet, gate)
    until_busy(modelnet, "slow")
    other = Started(tmp_path, "other", 500, network)
    if how == "drain":
        assert modelnet("drain", "slow").returncode == 0
    else:
        slow.process.send_signal(getattr(signal, how))
    assert slow.ends_well()
    final = json.loads(modelnet("result", task, "--json").stdout)
    assert (final["status"], final["worker"], final["attempts"]) == ("completed", "other", 2)
    other.process.send_signal(signal.SIGTERM)
    assert other.ends_well()
