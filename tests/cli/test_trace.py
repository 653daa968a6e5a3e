"""What `modelnet trace` says of a task that is made of parts, and of a standing offer that was taken."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.cli.trace import _show
from modelnet.history import TaskTrace
from modelnet.messages import Final, Planned, Transcript
from modelnet.telling import trace_object
from tests.cli.test_stream import final
from tests.market.table import Table
from tests.market.table import transcript as transcript_of


def ended(task: str, **given: Any) -> Final:
    return final(task=task, **given)


def made_of_parts() -> TaskTrace:
    plan = Planned(task="t", strategy="race", width=2, why="race of 2: asked for", negotiator="n")
    parts = [
        TaskTrace("t-part1", [(3.0, ended("t-part1", output={}))]),
        TaskTrace(
            "t-part2",
            [(3.1, ended("t-part2", status="cancelled", worker="v", price=None, error={"code": "cancelled"}))],
        ),
        TaskTrace("t-part3"),
    ]
    whole = ended("t", output={}, parts=[part.task for part in parts])
    return TaskTrace("t", [(1.0, plan), (3.0, whole)], parts=parts)


def test_parts_are_listed_with_how_they_ended(capsys: pytest.CaptureFixture[str]) -> None:
    _show(made_of_parts())
    shown = capsys.readouterr().out
    for said in ("t-part1  w", "completed", "cancelled: cancelled", "running", "race of 2: asked for", "trace PART"):
        assert said in shown


def test_parts_are_traces_of_their_own_as_json() -> None:
    found = trace_object(made_of_parts())
    assert [part["task"] for part in found["parts"]] == ["t-part1", "t-part2", "t-part3"]
    assert [part["final"] and part["final"]["status"] for part in found["parts"]] == ["completed", "cancelled", None]
    assert [one["event"] for one in found["timeline"]] == ["submitted", "race of 2: asked for", "completed"]


def test_nothing_happens_before_the_submit_by_clocks_that_differ() -> None:
    table = Table("w")
    table.begin()
    held = transcript_of(table.bid("w", 10)).model_copy(update={"window_ms": 500.0})
    found = trace_object(TaskTrace("k", transcripts=[(1.0, held)]))
    first, second, *_ = found["timeline"]
    assert first == {"ms": 0.0, "event": "submitted"}
    assert second == {"ms": 0.0, "event": f"asked {held.asked} for bids"}


def test_an_offer_that_was_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    taken: Transcript = transcript_of(Table("w", "v", offers={"w": 10, "v": 20}).begin())
    _show(TaskTrace("k", transcripts=[(1.0, taken)]))
    shown = capsys.readouterr().out
    assert "standing offers for attempt 1" in shown
    assert "spot: a test" in shown
    assert "of 2 standing offers; paid what it offers: 10" in shown
    assert "took one of 2 standing offers" in shown
