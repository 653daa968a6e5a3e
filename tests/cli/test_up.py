"""`modelnet up`: its lines, its end, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.cli.conftest import MODELNET, ROOT, read_until_ready, start_up


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_goes_on_where_it_stopped_and_leaves_no_orphans(tmp_path: Path) -> None:
    def command(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "MODELNET_DATA": str(tmp_path)}
        return subprocess.run(
            [*MODELNET, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    up = start_up(tmp_path, "--worker", "examples/upper.py")
    first = read_until_ready(up)
    assert set(first) == {"MODELNET_URL", "MODELNET_REDIS_URL", "MODELNET_GATEWAY_URL"}
    assert command("submit", "text.upper", "-i", '{"text": "kept"}', "--id", "kept").returncode == 0
    busy = command("up", "--data", str(tmp_path), "--worker", "examples/upper.py")
    assert busy.returncode == 1
    assert "[already_running]" in busy.stderr
    orphans = children(up.pid)
    assert orphans
    up.send_signal(signal.SIGKILL)
    up.wait()

    again = start_up(tmp_path, "--worker", "examples/upper.py")  # waits until the last of them has let go
    try:
        second = read_until_ready(again)
        assert second == first
        assert not [pid for pid in orphans if alive(pid)]
        kept = command("result", "kept", "--json")
        assert json.loads(kept.stdout)["output"] == {"text": "KEPT"}
        family = children(again.pid)
        again.send_signal(signal.SIGINT)
        assert again.wait(30) == 0
        assert not [pid for pid in family if alive(pid)]
    finally:
        if again.poll() is None:
            again.send_signal(signal.SIGINT)
            again.wait(30)
