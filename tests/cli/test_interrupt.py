"""Ctrl-C: what it cancels, what it says, and what it leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from tests.cli.conftest import MODELNET, ROOT, Run


def begin(network: dict[str, str], *args: str) -> tuple[subprocess.Popen[str], str]:
    """A command that shows a task which never ends, once it has shown the first text; and the task's id."""
    shown = subprocess.Popen(
        [*MODELNET, *args, "--json"],
        cwd=ROOT,
        env={**os.environ, **network},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert shown.stdout is not None
    for line in shown.stdout:
        event = json.loads(line)
        if event["kind"] == "delta":
            return shown, event["task"]
    raise AssertionError(f"it ended with {shown.wait()}")


def test_submit_cancels_its_task(modelnet: Run, network: dict[str, str]) -> None:
    submit, task = begin(network, "submit", "test.never", "-i", "{}")
    submit.send_signal(signal.SIGINT)
    out, said = submit.communicate(timeout=30)
    assert submit.returncode == 130
    assert json.loads(out.splitlines()[-1])["status"] == "cancelled"
    assert f"{task} is cancelled" in said
    assert "Traceback" not in said
    assert json.loads(modelnet("result", task, "--json").stdout)["status"] == "cancelled"


def test_watch_only_stops_watching(modelnet: Run, network: dict[str, str]) -> None:
    task = modelnet("submit", "test.never", "-i", "{}", "--detach").stdout.strip()
    watch, watched = begin(network, "watch", task)
    assert watched == task
    watch.send_signal(signal.SIGINT)
    _, said = watch.communicate(timeout=30)
    assert (watch.returncode, said) == (130, "")
    running = [
        json.loads(line)["task"]
        for line in modelnet("tasks", "--status", "running", "--json").stdout.split("\n")
        if line
    ]
    assert task in running
    assert modelnet("cancel", task).returncode == 0
