"""Mistakes in a command line, its environment and its input that no network is needed to see; and a wrong password."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelnet.bus.embedded import HeldPort, find_program
from modelnet.cli import invoke
from modelnet.cli.session import parse_duration, parse_input, parse_selector
from modelnet.errors import MalformedInput, UsageError
from modelnet.settings import settings


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands read the environment once a process, and set up its logging; here each test is one."""
    monkeypatch.setattr("modelnet.log.setup_logging", lambda config: None)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["submit"],
        ["submit", "text.upper"],
        ["submit", "text.upper", "-i", "{}", "--budget", "much"],
        ["submit", "text.upper", "-i", "{}", "--nosuch"],
        ["submit", "text.upper", "-i", "{}", "--width", "3"],
        ["submit", "text.upper", "-i", "{}", "--check", "a.b"],
        ["submit", "text.upper", "-i", "{}", "--strategy", "panel", "--confidence", "high"],
        ["batch", "in.jsonl"],
    ],
)
def test_wrong_usage_is_one_error_object_for_programs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*arguments, "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "error"
    assert shown["error"]["code"] == "usage"
    assert shown["error"]["message"]


def test_wrong_usage_is_told_on_stderr_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nosuch"], ["submit", "text.upper"], ["up", "--worker", "nosuch.py"]):
        assert invoke(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err


def test_the_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["--help"])
    assert "submit" in capsys.readouterr().out


def test_settings_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MODELNET_TENANT", "not a tenant")
    assert invoke(["workers"]) == 2
    assert "tenant" in capsys.readouterr().err


def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = HeldPort()
    port = held.number
    command = [find_program("nats-server"), "-a", "127.0.0.1", "-p", str(port), "--user", "a", "--pass", "right"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert any("Server is ready" in line for line in server.stderr)
        assert invoke(["workers", "--json", "--url", f"nats://a:wrong@127.0.0.1:{port}"]) == 1
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "bad_credentials"
        assert "wrong" not in error["message"]
        # The right one, but no network on that server: no JetStream even.
        assert invoke(["workers", "--json", "--url", f"nats://a:right@127.0.0.1:{port}"]) == 1
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "no_server"
    finally:
        server.terminate()
        server.wait()
        held.release()


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("3", 3), ("1.5s", 1.5), (".5", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 parsecs", "-5s", "1e3", "5sec", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_workers_are_chosen_by_what_they_have() -> None:
    chosen = parse_selector(["model=a=b", "labels.gpu=h100", "labels.zone=eu"])
    assert chosen == {"model": "a=b", "labels": {"gpu": "h100", "zone": "eu"}}
    assert parse_selector(["owner=a", "model=x", "owner=b"]) == {"owner": ["a", "b"], "model": "x"}
    for wrong in ("model", "model=", "colour=red", "labels.=x", "model.x=y"):
        with pytest.raises(UsageError):
            parse_selector([wrong])


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "null", "1", '{"a": NaN}', "[" * 100_000])
def test_input_that_is_no_json_object(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MalformedInput):
        parse_input(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(MalformedInput, match="stdin"):
        parse_input("-")


def test_input_from_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match="No such file"):
        parse_input(f"@{tmp_path}/absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(MalformedInput, match="UTF-8"):
        parse_input(f"@{tmp_path}/binary")
