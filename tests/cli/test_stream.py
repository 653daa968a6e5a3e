"""What a person sees of a stream, on a terminal and in a pipe."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelnet.cli.stream import event_object, follow
from modelnet.messages import Awarded, Delta, Final, Planned, Progress, Reset, Timings, Waiting
from modelnet.reader import StreamEvent

MARK: dict[str, Any] = {"task": "t", "attempt": 1, "worker": "w"}


def delta(number: int, text: str) -> Delta:
    """Some text."""
    return Delta(**MARK, number=number, text=text)


def final(**changes: Any) -> Final:
    """The end of some task."""
    timings = Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=3)
    fields = {"task": "t", "tenant": "d", "capability": "c", "negotiator": "n", "timings": timings, **changes}
    return Final.model_validate({"status": "completed", "worker": "w", "price": 2, "bids": 1, **fields})


class Stored:
    """A task whose stream is known."""

    def __init__(self, *events: StreamEvent) -> None:
        self._events = events

    async def stream(self) -> AsyncIterator[StreamEvent]:
        """The events."""
        for event in self._events:
            yield event


def show(*events: StreamEvent) -> int:
    """Show a stream as a person sees it; the exit code."""
    return asyncio.run(follow(Stored(*events).stream(), as_json=False))


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both streams a terminal of 40 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")


def test_text_that_is_the_output_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(delta(1, "one "), delta(2, "two"), final(output={"text": "one two"})) == 0
    shown = capsys.readouterr()
    assert shown.out == "one two\n"
    assert shown.err == "completed by w, price 2, 3.0 ms, 1 bid  (t)\n"


@pytest.mark.parametrize("output", [{"value": 1}, {"text": "other"}, {}])
def test_an_output_that_is_not_the_text_is_shown_too(
    output: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show(delta(1, "said"), final(output=output))
    assert capsys.readouterr().out == f"said\n{json.dumps(output)}\n"


def test_an_output_without_text_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show(final(output={"value": "2021-03-03"}))
    assert capsys.readouterr().out == '{"value": "2021-03-03"}\n'


def test_a_failure_is_an_error_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(final(status="failed", worker=None, price=None, error={"code": "over_budget", "message": "dear"})) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: dear [over_budget]")


def test_a_reset_is_told_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show(delta(1, "void"), Reset(task="t", attempt=2, worker="v", number=1, to=0), delta(1, "new"), final(output={}))
    shown = capsys.readouterr()
    assert shown.out == "void\nnew\n{}\n"
    assert "v answers anew (attempt 2)" in shown.err


def test_a_reset_wipes_what_was_shown_from_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    void = "x" * 50 + "\nlast"  # two rows of 40 columns and one more: the cursor stands in the third
    show(delta(1, void), Reset(task="t", attempt=2, worker="v", number=1, to=0), final(output={}))
    assert f"{void}\r\x1b[2A\x1b[J" in capsys.readouterr().out


def test_news_pass_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    awarded = Awarded(task="t", attempt=1, worker="w", price=2, negotiator="n")
    show(awarded, Progress(**MARK, number=1, fraction=0.5, note="half"), final(output={}))
    err = capsys.readouterr().err
    assert "w is at work\x1b[0m\r\x1b[K" in err
    assert "50% half\x1b[0m\r\x1b[K" in err


def test_why_a_task_waits_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    show(Waiting(task="t", reason="no_worker", negotiator="n"), final(output={}))
    assert "no worker of this capability" in capsys.readouterr().err


def test_every_event_has_the_documented_fields_first() -> None:
    fields = ["kind", "task", "attempt", "worker", "number"]
    found = event_object(delta(1, "x"))
    assert list(found)[:5] == fields
    assert found["text"] == "x"
    waiting = event_object(Waiting(task="t", reason="busy", negotiator="n"))
    assert [waiting[name] for name in fields] == ["waiting", "t", None, None, None]
    ended = event_object(final(output={"a": 1}))
    wanted = ["kind", "task", "status", "output", "worker", "price", "attempts", "usage", "error"]
    assert list(ended)[:9] == wanted


def test_a_plan_passes_and_parts_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Planned(task="t", strategy="race", width=2, why="race of 2: asked for", negotiator="n")
    show(plan, final(output={}, parts=["t-part1", "t-part2"], attempts=2))
    shown = capsys.readouterr().err
    assert "race of 2" not in shown
    assert "1 bid, 2 parts" in shown
    show(final(output={}, parts=["t-part1"]))
    assert "1 part " in capsys.readouterr().err
    on_a_terminal(monkeypatch)
    show(plan, final(output={}))
    assert "race of 2: asked for" in capsys.readouterr().err
    assert event_object(plan)["strategy"] == "race"
