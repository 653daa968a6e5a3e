"""The points of a task's life at which a negotiator can be killed, each told by one frame on its link."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.frames import Frame
from tests.chaos.proxy import Direction, Verdict

__all__ = ["POINTS", "Point", "kill_at"]


@dataclass(frozen=True, slots=True)
class Point:
    """A moment between two messages: the frame that tells it, and whether that frame is the last or the first lost."""

    direction: Direction
    is_it: Callable[[Frame], bool]
    passes: bool
    """Whether the frame still arrives. What follows it never does."""


def _is_award(frame: Frame) -> bool:
    return frame.subject.startswith("worker.") and frame.subject.endswith(".award")


def _is_entry(frame: Frame) -> bool:
    return frame.subject.startswith("journal.") and b'"kind":"awarded"' in frame.body


def _is_final(frame: Frame) -> bool:
    return frame.subject.startswith("journal.") and frame.subject.endswith(".final")


POINTS = {
    "take_cfp": Point("up", lambda frame: frame.subject.startswith("cap."), passes=False),
    "close_award": Point("up", _is_award, passes=False),
    "award_entry": Point("up", _is_entry, passes=False),
    "entry_confirm": Point("up", _is_entry, passes=True),
    "confirm_token": Point("down", lambda frame: b'"kind":"confirm"' in frame.body, passes=False),
    "token_final": Point("down", lambda frame: frame.subject.startswith("done."), passes=False),
    "final_ack": Point("up", _is_final, passes=True),
}
"""Between taking a task and its call for proposals; between the close of the auction and the award; between the award
and its entry in the journal; between that and the confirm; between confirm and the first token; between the last token
and the Final; between the Final and the acknowledgement."""


def kill_at(point: Point, pid: int, killed: Callable[[Frame], None]) -> Callable[[Direction, Frame], Verdict | None]:
    """A watch that kills the process as soon as it sees the point; None for every frame before."""

    def watch(direction: Direction, frame: Frame) -> Verdict | None:
        if direction != point.direction or not point.is_it(frame):
            return None
        os.kill(pid, signal.SIGKILL)
        killed(frame)
        return Verdict.PASS_AND_END if point.passes else Verdict.DROP_AND_END

    return watch
