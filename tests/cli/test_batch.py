"""`modelnet batch`: every line once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.cli.conftest import MODELNET, ROOT, Run


def test_each_line_is_done_and_bad_ones_are_listed(modelnet: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"values": ["1", "2"]}\nnot json\n{"values": "x"}\n{"values": ["0.5", "0.5"]}\n')
    done = modelnet("batch", str(source), "-c", "math.sum", "-o", str(out))
    assert done.returncode == 1
    assert "line 2:" in done.stderr
    assert "line 3:" in done.stderr
    lines = {line["line"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert lines[1]["final"]["output"] == {"value": "3"}
    assert lines[1]["input"] == {"values": ["1", "2"]}
    assert lines[4]["final"]["output"] == {"value": "1"}
    assert lines[3]["final"]["error"]["code"] == "contract_violation"


def test_an_interrupted_batch_goes_on_without_doing_a_line_twice(
    modelnet: Run, network: dict[str, str], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    count, gate = 100, tmp_path / "gate"
    os.mkfifo(gate)
    inputs: list[dict[str, object]] = [{"number": number} for number in range(1, count + 1)]
    inputs[count // 2]["gate"] = str(gate)  # this line is not done before the test lets it
    source.write_text("".join(json.dumps(input) + "\n" for input in inputs))
    args = ["batch", str(source), "-c", "test.gate", "-o", str(out), "--concurrency", "4"]
    first = subprocess.Popen(
        [*MODELNET, *args], cwd=ROOT, env={**os.environ, **network}, stderr=subprocess.PIPE, text=True
    )
    while not out.exists() or out.read_bytes().count(b"\n") < 20:
        assert first.poll() is None
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "goes on from here" in said
    assert out.read_bytes().count(b"\n") < count
    with out.open("a") as file:
        file.write('{"line": 100, "inp')  # as a kill in the middle of a write leaves it
    writer = os.open(gate, os.O_RDWR)  # both ends are open: whoever waits at the gate goes on
    try:
        assert modelnet(*args).returncode == 0
    finally:
        os.close(writer)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["line"] for line in lines) == list(range(1, count + 1))
    assert all(line["final"]["output"] == {"number": line["line"]} for line in lines)
