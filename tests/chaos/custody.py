"""Which tasks a party has in hand, told from the frames on its link: who is touched when a fault strikes it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.chaos.frames import Frame
from tests.chaos.proxy import Direction

__all__ = ["Custody", "NegotiatorCustody", "TaskKey", "WorkerCustody"]

TaskKey = tuple[str, str]
"""Tenant and task."""

_ENDS = (b"+ACK", b"-NAK", b"+TERM")


class Custody:
    """The tasks in a party's hands; `on_take` hears of each that comes into them."""

    def __init__(self) -> None:
        self._in_hand: dict[str, TaskKey] = {}
        self.on_take: Callable[[TaskKey], None] = lambda _: None

    @property
    def tasks(self) -> set[TaskKey]:
        """What is in hand now."""
        return set(self._in_hand.values())

    def clear(self) -> None:
        """The process is gone."""
        self._in_hand.clear()

    def see(self, direction: Direction, frame: Frame) -> None:
        """A frame on the party's link."""

    def _take(self, handle: str, task: TaskKey) -> None:
        self._in_hand[handle] = task
        self.on_take(task)

    def _lay_down(self, handle: str) -> None:
        self._in_hand.pop(handle, None)


class NegotiatorCustody(Custody):
    """A negotiator has a task from its delivery until it acknowledges it or gives it back."""

    def see(self, direction: Direction, frame: Frame) -> None:
        """Deliveries come down, acknowledgements go up."""
        if direction == "down" and frame.subject.startswith("task.") and frame.reply:
            parts = frame.subject.split(".")
            self._take(frame.reply, (parts[3], parts[4]))
        elif direction == "up" and frame.subject.startswith("$JS.ACK.TASKS.") and frame.body.startswith(_ENDS):
            self._lay_down(frame.subject)


class WorkerCustody(Custody):
    """A worker has a task from its award until it says that the attempt is done or is told to stop."""

    def see(self, direction: Direction, frame: Frame) -> None:
        """Awards and cancels come down, Done goes up."""
        if direction == "up":
            if frame.subject.startswith("done."):
                _, _, task, _, attempt = frame.subject.split(".")
                self._lay_down(f"{task}.{attempt}")
        elif frame.subject.startswith("worker."):
            order = frame.subject.rpartition(".")[2]
            if order in ("award", "cancel"):
                try:
                    told = json.loads(frame.body)
                    handle = f"{told['task']}.{told['attempt']}"
                except (ValueError, TypeError, KeyError):
                    return  # the fuzz speaks here too
                if order == "award":
                    self._take(handle, (str(told.get("tenant")), str(told["task"])))
                else:
                    self._lay_down(handle)
