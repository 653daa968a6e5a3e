"""Who has which task, told from frames; and the frames at which a negotiator is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.custody import Custody, NegotiatorCustody, WorkerCustody
from tests.chaos.frames import Frame
from tests.chaos.launch import set_clock
from tests.chaos.points import POINTS, kill_at
from tests.chaos.proxy import Direction, Verdict


def frame(subject: str, body: bytes = b"", reply: str = "") -> Frame:
    return Frame("PUB", subject, reply, body, b"")


def award(attempt: int = 1) -> bytes:
    return json.dumps({"tenant": "t", "task": "one", "attempt": attempt}).encode()


def test_a_negotiator_has_a_task_from_delivery_to_acknowledgement() -> None:
    custody, taken = NegotiatorCustody(), list[tuple[str, str]]()
    custody.on_take = taken.append
    reply = "$JS.ACK.TASKS.negotiators-1-3.1.7.7.1.0"
    custody.see("down", frame("task.1.3.t.one.chaos.echo", b"{}", reply))
    custody.see("up", frame(reply, b"+WPI"))
    assert custody.tasks == {("t", "one")}
    custody.see("up", frame(reply, b"+ACK"))
    assert custody.tasks == set()
    assert taken == [("t", "one")]


@pytest.mark.parametrize(
    ("direction", "end"),
    [("up", frame("done.n.one.w.1", b"{}")), ("down", frame("worker.w.cancel", award()))],
)
def test_a_worker_has_a_task_from_award_to_done_or_cancel(direction: Direction, end: Frame) -> None:
    custody = WorkerCustody()
    custody.see("down", frame("worker.w.award", award()))
    custody.see("down", frame("worker.w.award", b"\xffgarbage"))
    custody.see("down", frame("worker.w.award", b"[]"))
    assert custody.tasks == {("t", "one")}
    custody.see(direction, end)
    assert custody.tasks == set()


def test_who_is_gone_has_nothing() -> None:
    custody: Custody = WorkerCustody()
    custody.see("down", frame("worker.w.award", award()))
    custody.clear()
    assert custody.tasks == set()


SEEN: dict[str, Frame] = {
    "take_cfp": frame("cap.chaos.echo"),
    "close_award": frame("worker.w.award"),
    "award_entry": frame("journal.t.one.one.status", b'{"kind":"awarded"}'),
    "entry_confirm": frame("journal.t.one.one.status", b'{"kind":"awarded"}'),
    "confirm_token": frame("_INBOX.x.a.1", b'{"kind":"confirm","worker":"w"}'),
    "token_final": frame("done.n.one.w.1"),
    "final_ack": frame("journal.t.one.one.final"),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_process_is_killed_at_its_point_and_not_before(name: str) -> None:
    point, other = POINTS[name], frame("journal.t.one.one.status", b'{"kind":"waiting"}')
    opposite: Direction = "down" if point.direction == "up" else "up"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        seen = list[Frame]()
        watch = kill_at(point, child.pid, seen.append)
        assert watch(point.direction, other) is None
        assert watch(opposite, SEEN[name]) is None
        assert child.poll() is None
        verdict = watch(point.direction, SEEN[name])
        assert verdict is (Verdict.PASS_AND_END if point.passes else Verdict.DROP_AND_END)
        assert seen == [SEEN[name]]
        assert child.wait() == -signal.SIGKILL


def test_the_clock_of_one_process_jumps(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    set_clock(file, 3600.0)
    program = (
        "import time; from pathlib import Path; from tests.chaos.launch import bend_clock, set_clock; "
        f"file = Path({str(file)!r}); before = time.monotonic(); bend_clock(file); ahead = time.time(); "
        "set_clock(file, 0.0); print(ahead - time.time(), time.monotonic() - before)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    jumped, elapsed = map(float, out.stdout.split())
    assert jumped == pytest.approx(3600.0, abs=1.0)
    assert elapsed < 60.0
    assert abs(time.time() - time.time_ns() / 1e9) < 1.0
