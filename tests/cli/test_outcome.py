"""The output file of a batch, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelnet.cli.outcome import Outcomes
from modelnet.errors import MalformedInput, UsageError
from modelnet.messages import Final, Timings


def final(**changes: object) -> Final:
    """The end of some task."""
    fields = {
        "task": "t",
        "tenant": "default",
        "capability": "math.sum",
        "status": "completed",
        "output": {"value": "3"},
        "worker": "calculator",
        "price": 2,
        "negotiator": "n",
        "timings": Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0),
        **changes,
    }
    return Final.model_validate(fields)


def test_what_is_written_counts_when_it_is_read_again(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    with Outcomes(out, source) as first:
        first.add(1, {"values": ["1"]}, final())
        first.refuse(2, "no json", MalformedInput("bad"))
    with Outcomes(out, source) as second:
        assert second.has(1, '{"values":  ["1"]}')
        assert second.has(2, "no json")
        assert not second.has(3, "{}")
        assert second.failures == {2: "bad [malformed]"}
        assert second.price == 2
        assert second.run == first.run


def test_a_refused_line_has_every_field_of_a_final(tmp_path: Path) -> None:
    with Outcomes(tmp_path / "out", tmp_path / "in") as outcomes:
        outcomes.refuse(1, "x", MalformedInput("bad"))
    written = json.loads((tmp_path / "out").read_text())
    assert written["line"] == 1
    assert written["input"] == "x"
    wanted = {"kind", "task", "status", "output", "worker", "price", "attempts", "usage", "error"}
    assert written["final"].keys() >= wanted


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    with Outcomes(out, source) as first:
        first.add(1, {}, final())
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"line": 2, "inp')
    with Outcomes(out, source) as second:
        assert list(second.done) == [1]
        second.add(2, {}, final())
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == [1, 2]


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    with Outcomes(out, source) as first:
        first.add(1, {}, final())
        first.finish()
    out.unlink()
    with Outcomes(out, source) as second:
        assert second.run != first.run
        assert not second.done


def test_another_inputs_answers_are_refused(tmp_path: Path) -> None:
    with Outcomes(tmp_path / "out", tmp_path / "in") as first:
        first.add(1, {"text": "one"}, final())
        with pytest.raises(UsageError, match="another line 1"):
            first.has(1, '{"text": "two"}')


def test_files_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    source, other = tmp_path / "in", tmp_path / "other"
    source.write_text("{}\n")
    other.write_text("some text\n")
    with pytest.raises(UsageError, match="the input itself"):
        Outcomes(source, source)
    with pytest.raises(UsageError, match="not written by batch"):
        Outcomes(other, source)
    with pytest.raises(UsageError, match="No such file"):
        Outcomes(tmp_path / "absent" / "out", source)
    with Outcomes(tmp_path / "out", source), pytest.raises(UsageError, match="another batch"):
        Outcomes(tmp_path / "out", source)
