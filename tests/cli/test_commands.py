"""The commands as a person or a script uses them: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run

FINAL_FIELDS = {"kind", "task", "status", "output", "worker", "price", "attempts", "usage", "error"}


def objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a command's output."""
    return [json.loads(line) for line in text.splitlines()]


def test_submit_prints_the_answer_and_one_line_about_it(modelnet: Run) -> None:
    done = modelnet("submit", "text.upper", "--input", '{"text": "hello"}', "--budget", "50", "--deadline", "5s")
    assert (done.returncode, done.stdout) == (0, '{"text": "HELLO"}\n')
    assert "completed by acme-upper, price" in done.stderr


def test_text_is_streamed_as_it_comes(modelnet: Run) -> None:
    done = modelnet("submit", "test.stream", "-i", "{}")
    assert done.stdout == "one two three\n"


def test_json_is_one_event_a_line_the_final_last(modelnet: Run) -> None:
    events = objects(modelnet("submit", "test.stream", "-i", "{}", "--json").stdout)
    assert all({"kind", "task", "attempt", "worker", "number"} <= event.keys() for event in events)
    assert "".join(event["text"] for event in events if event["kind"] == "delta") == "one two three"
    assert events[-1].keys() >= FINAL_FIELDS
    assert (events[-1]["kind"], events[-1]["status"]) == ("final", "completed")
    assert events[-1]["output"] == {"text": "one two three"}


def test_input_from_a_file_and_from_stdin(modelnet: Run, tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"text": "from a file"}')
    assert "FROM A FILE" in modelnet("submit", "text.upper", "-i", f"@{file}").stdout
    assert "FROM STDIN" in modelnet("submit", "text.upper", "-i", "-", stdin='{"text": "from stdin"}').stdout


def test_an_id_of_ones_own_is_done_once_and_can_be_asked_for_again(modelnet: Run) -> None:
    args = ("submit", "text.upper", "-i", '{"text": "once"}', "--id", "cli-once", "--json")
    first, second = objects(modelnet(*args).stdout)[-1], objects(modelnet(*args).stdout)[-1]
    assert first == second
    watched = modelnet("watch", "cli-once", "--json")
    assert objects(watched.stdout)[-1] == first
    assert modelnet("result", "cli-once").stdout == '{"text": "ONCE"}\n'
    listed = objects(modelnet("tasks", "--json", "--status", "completed").stdout)
    assert "cli-once" in [task["task"] for task in listed]


def test_audit_recomputes_what_was_decided(modelnet: Run) -> None:
    modelnet("submit", "text.upper", "-i", '{"text": "x"}', "--id", "cli-audit")
    (found,) = objects(modelnet("audit", "cli-audit", "--json").stdout)
    assert found["task"] == "cli-audit"
    assert found["winner"]
    assert found["differences"] == []
    assert "follows" in modelnet("audit", "cli-audit").stdout
    many = modelnet("audit", "--since", "1h")
    assert many.returncode == 0
    assert "0 differ" in many.stdout


def test_trace_tells_who_bid_and_why_it_won(modelnet: Run) -> None:
    modelnet("submit", "text.upper", "-i", '{"text": "x"}', "--id", "cli-trace")
    found = objects(modelnet("trace", "cli-trace", "--json").stdout)[0]
    assert [bid["worker"] for bid in found["auctions"][0]["bids"]] == ["acme-upper"]
    assert found["auctions"][0]["why"].startswith("best score")
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["output"]
    assert found["timeline"][0] == {"ms": 0.0, "event": "submitted"}
    assert found["final"]["status"] == "completed"
    assert "acme-upper" in modelnet("trace", "cli-trace").stdout


def test_workers_and_capabilities(modelnet: Run) -> None:
    workers = {one["worker"]: one for one in objects(modelnet("workers", "--json").stdout)}
    assert workers["calculator"]["capabilities"] == ["math.sum", "math.multiply"]
    assert workers["calculator"].keys() >= {"worker", "owner", "capabilities", "slots", "running", "models"}
    found = {one["capability"]: one for one in objects(modelnet("capabilities", "--json").stdout)}
    assert found["math.sum"]["workers"] == 1
    assert "math.sum" in modelnet("capabilities").stdout


def test_cancel_reaches_a_task_that_was_left_running(modelnet: Run) -> None:
    task = modelnet("submit", "test.never", "-i", "{}", "--detach").stdout.strip()
    assert objects(modelnet("cancel", task, "--json").stdout) == [{"task": task, "cancelled": True}]
    final = modelnet("result", task, "--json")
    assert (final.returncode, objects(final.stdout)[0]["status"]) == (1, "cancelled")
    assert objects(modelnet("cancel", task, "--json").stdout) == [{"task": task, "cancelled": False}]


def test_doctor_finds_nothing_wrong(modelnet: Run) -> None:
    done = modelnet("doctor", "--json")
    found = {one["check"]: one["ok"] for one in objects(done.stdout)}
    assert done.returncode == 0
    assert all(found[name] for name in ("nats", "streams", "workers", "negotiator", "redis"))


@pytest.mark.parametrize(
    ("args", "code", "exit_code"),
    [
        (("submit", "text.upper", "-i", "{not json"), "malformed", 2),
        (("submit", "text.upper", "-i", "[1]"), "malformed", 2),
        (("submit", "text.upper", "-i", "@nosuchfile.json"), "malformed", 2),
        (("submit", "Not A Capability", "-i", "{}"), "malformed", 2),
        (("submit", "text.upper", "-i", '{"text": "x"}', "--deadline", "soon"), "usage", 2),
        (("submit", "text.upper", "-i", '{"text": "x"}', "--deadline", "-1"), "usage", 2),
        (("submit", "text.upper", "-i", '{"text": "x"}', "--require", "colour=red"), "usage", 2),
        (("submit", "text.nosuch", "-i", "{}"), "unknown_capability", 1),
        (("submit", "text.upper", "-i", '{"txt": "x"}'), "contract_violation", 1),
        (("submit", "text.upper", "-i", '{"text": "x"}', "--budget", "0"), "over_budget", 1),
        (("submit", "test.raise", "-i", "{}"), "worker_error", 1),
        (("submit", "test.garbage", "-i", "{}"), "bad_output", 1),
        (("submit", "test.never", "-i", "{}", "--deadline", "300ms"), "expired", 1),
        (("watch", "nosuchtask"), "unknown_task", 1),
        (("cancel", "nosuchtask"), "unknown_task", 1),
        (("trace", "nosuchtask"), "unknown_task", 1),
        (("audit", "nosuchtask"), "unknown_task", 1),
        (("workers", "--url", "nats://127.0.0.1:1"), "no_server", 1),
    ],
)
def test_a_mistake_gets_one_clear_error(modelnet: Run, args: tuple[str, ...], code: str, exit_code: int) -> None:
    done = modelnet(*args, "--json")
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert objects(done.stdout)[-1]["error"]["code"] == code
    plain = modelnet(*args)
    assert plain.returncode == exit_code
    assert f"[{code}]" in plain.stderr
    assert "Traceback" not in plain.stderr


def test_work_says_what_is_wrong_with_a_file(modelnet: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nosuchmodule\n")
    done = modelnet("work", str(broken))
    assert done.returncode == 2
    assert "nosuchmodule" in done.stderr
    assert modelnet("work", str(tmp_path / "absent.py")).returncode == 2
    assert "[no_server]" in modelnet("work", "examples/upper.py", "--url", "nats://127.0.0.1:1").stderr


def test_a_strategy_can_be_named_and_the_trace_says_what_was_made_of_it(modelnet: Run) -> None:
    named = ("--strategy", "race", "--width", "2", "--id", "cli-race")
    assert modelnet("submit", "text.upper", "-i", '{"text": "x"}', *named).returncode == 0
    assert "race asked for, but only 1 worker could answer" in modelnet("trace", "cli-race").stdout


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--strategy", "bogus"), "strategy.kind"),
        (("--strategy", "race", "--width", "0"), "strategy.width"),
        (("--strategy", "race", "--width", "10"), "strategy.width"),
        (("--strategy", "cascade", "--check", "not a name"), "strategy.check"),
        (("--strategy", "cascade", "--confidence", "1.5"), "strategy.confidence"),
        (("--width", "3"), "--strategy"),
    ],
)
def test_a_strategy_that_cannot_be_meant(modelnet: Run, wrong: tuple[str, ...], told: str) -> None:
    done = modelnet("submit", "text.upper", "-i", '{"text": "x"}', *wrong)
    assert done.returncode == 2
    assert told in done.stderr


def test_the_help_of_submit_names_the_strategies(modelnet: Run) -> None:
    shown = modelnet("submit", "--help").stdout
    for option in ("--strategy", "--width", "--check", "--confidence"):
        assert option in shown
