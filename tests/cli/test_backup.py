"""`modelnet backup` from a running network, `modelnet restore` into the folder of another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.cli.conftest import MODELNET, ROOT, read_until_ready, start_up


def test_a_network_is_copied_and_comes_up_elsewhere(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MODELNET_")}
    copy, data = tmp_path / "copy", tmp_path / "new"

    def command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*MODELNET, *args],
            cwd=ROOT,
            env=env | {"MODELNET_DATA": str(folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    old = start_up(tmp_path / "old", "--worker", "examples/upper.py")
    try:
        read_until_ready(old)
        assert (
            command(tmp_path / "old", "submit", "text.upper", "-i", '{"text": "kept"}', "--id", "kept").returncode == 0
        )
        copied = command(tmp_path / "old", "backup", str(copy), "--json")
        assert copied.returncode == 0, copied.stderr
        lines = [json.loads(line) for line in copied.stdout.splitlines()]
        assert [line["part"] for line in lines][-1] == "Redis"
        assert next(line["entries"] for line in lines if line["part"] == "JOURNAL") == 2
        again = command(tmp_path / "old", "backup", str(copy))
        assert (again.returncode, "[usage]" in again.stderr) == (2, True)
        checked = command(tmp_path / "old", "doctor", "--json")
        found = {line["check"]: line for line in map(json.loads, checked.stdout.splitlines())}
        assert found["storage"]["ok"]
        assert found["durability"]["detail"] == "process is named, and verified"
    finally:
        old.send_signal(signal.SIGINT)
        assert old.wait(30) == 0

    assert "[backup_damaged]" in command(data, "restore", str(tmp_path), "--data", str(data)).stderr
    restored = command(data, "restore", str(copy), "--data", str(data))
    assert restored.returncode == 0, restored.stderr
    new = start_up(data, "--worker", "examples/upper.py")
    try:
        read_until_ready(new)
        assert json.loads(command(data, "result", "kept", "--json").stdout)["output"] == {"text": "KEPT"}
        assert "[not_empty]" in command(data, "restore", str(copy)).stderr
    finally:
        new.send_signal(signal.SIGINT)
        assert new.wait(30) == 0
