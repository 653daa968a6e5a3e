"""A task's stream as an A2A client sees it: its events become status and artifact updates, and all of it so far a Task.
Pure, but for the time of day.

The text that is streamed and the output are one artifact, `output`: text parts, then a data part if there is more. Of
several answers to one question the first is streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from a2a.types.a2a_pb2 import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf import json_format, struct_pb2

from modelnet.messages import Awarded, Delta, Final, Planned, Progress, Reset, Waiting
from modelnet.reader import Position, StreamEvent

__all__ = ["ARTIFACT", "ENDED", "Update", "View", "from_value", "position_of", "state_of", "to_struct", "to_value"]

ARTIFACT = "output"
"""Id of the one artifact."""

ENDED = frozenset(
    {
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_REJECTED,
    }
)

Update = TaskStatusUpdateEvent | TaskArtifactUpdateEvent

_LARGEST_EXACT = 2**53


class View:
    """One client's view of a task. Feed it the task's events in order."""

    def __init__(self, task: str, context: str) -> None:
        self._task, self._context = task, context
        self._status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        self._parts: list[tuple[int, str]] = []
        """Text so far, by number of the event."""
        self._final: Final | None = None

    @property
    def ended(self) -> bool:
        """Whether the Final was seen."""
        return self._final is not None

    def task(self, *, artifacts: bool = True) -> Task:
        """The task as it stands."""
        task = Task(id=self._task, context_id=self._context, status=self._status)
        if artifacts and (parts := self._output_parts() if self._final else self._text_parts()):
            task.artifacts.append(Artifact(artifact_id=ARTIFACT, parts=parts))
        return task

    def rewind(self, place: Position) -> None:
        """Be as it was at a place, which is before the end: what comes behind it the client has not seen."""
        self._parts = [(number, text) for number, text in self._parts if number <= place.number]
        if self._final is not None:
            self._final, self._status = None, TaskStatus(state=TaskState.TASK_STATE_WORKING)

    def read(self, event: StreamEvent, at: float | None = None) -> list[Update]:
        """What the client is told of an event. `at`: when it was stored, seconds since the epoch; else now."""
        told: dict[str, object]
        match event:
            case Awarded():
                told = {"worker": event.worker, "attempt": event.attempt, "price": event.price}
                return [self._turn(TaskState.TASK_STATE_WORKING, told, at, event=event)]
            case Planned():
                told = {"strategy": event.strategy, "width": event.width}
                return [self._turn(TaskState.TASK_STATE_WORKING, told, at, event.why)]
            case Waiting():
                return [self._turn(self._status.state, {"reason": event.reason}, at, f"waiting: {event.reason}")]
            case Progress():
                told = {"fraction": event.fraction}
                return [self._turn(TaskState.TASK_STATE_WORKING, told, at, event.note or "", event=event)]
            case Delta() if event.index == 0 and event.text:
                self._parts.append((event.number, event.text))
                return [self._chunk([Part(text=event.text)], append=len(self._parts) > 1, event=event)]
            case Reset():
                self._parts = [(number, text) for number, text in self._parts if number <= event.to]
                return [self._chunk([Part(text=self._text)], append=False, event=event)]
            case Final():
                return self._end(event, at)
        return []

    @property
    def _text(self) -> str:
        return "".join(text for _, text in self._parts)

    def _text_parts(self) -> list[Part]:
        return [Part(text=self._text)] if self._parts else []

    def _output_parts(self) -> list[Part]:
        """The whole output."""
        output = (self._final.output or {}) if self._final is not None and self._final.status == "completed" else None
        return self._text_parts() if output is None else _parts_of(output)

    def _end(self, final: Final, at: float | None) -> list[Update]:
        updates: list[Update] = []
        if final.status == "completed":
            parts, append = _parts_of(final.output or {}), False
            if self._parts and parts[0].WhichOneof("content") == "text" and parts[0].text == self._text:
                parts, append = parts[1:] or [Part(text="")], True  # it was said; an artifact update needs a part
            updates.append(self._chunk(parts, append=append, last=True))
        self._final = final
        message = final.error.message or final.error.code if final.error is not None else ""
        told: dict[str, object] = {"worker": final.worker, "price": final.price, "attempts": final.attempts}
        if final.error is not None:
            told["code"] = final.error.code
        return [*updates, self._turn(state_of(final), told, at, message)]

    def _turn(
        self, state: TaskState, told: Mapping[str, object], at: float | None, message: str = "", *, event: Any = None
    ) -> TaskStatusUpdateEvent:
        self._status = TaskStatus(state=state)
        moment = datetime.fromtimestamp(at, UTC) if at is not None else datetime.now(UTC)
        self._status.timestamp.FromMilliseconds(int(moment.timestamp() * 1e3))
        if message:
            said = Message(
                message_id=f"{self._task}-{self._status.timestamp.ToNanoseconds()}",
                role=Role.ROLE_AGENT,
                task_id=self._task,
                context_id=self._context,
                parts=[Part(text=message)],
            )
            self._status.message.CopyFrom(said)
        return TaskStatusUpdateEvent(
            task_id=self._task, context_id=self._context, status=self._status, metadata=_metadata(event, told)
        )

    def _chunk(
        self, parts: list[Part], *, append: bool, last: bool = False, event: Any = None
    ) -> TaskArtifactUpdateEvent:
        return TaskArtifactUpdateEvent(
            task_id=self._task,
            context_id=self._context,
            artifact=Artifact(artifact_id=ARTIFACT, parts=parts),
            append=append,
            last_chunk=last,
            metadata=_metadata(event, {}),
        )


def state_of(final: Final) -> TaskState:
    """How a task ended. What failed before any worker had it was rejected."""
    match final.status:
        case "completed":
            return TaskState.TASK_STATE_COMPLETED
        case "cancelled":
            return TaskState.TASK_STATE_CANCELED
        case "failed" if final.attempts == 0:
            return TaskState.TASK_STATE_REJECTED
    return TaskState.TASK_STATE_FAILED


def position_of(text: str) -> Position | None:
    """The place that an update's metadata named as `position`, or None if it is none."""
    attempt, dot, number = text.strip().partition(".")
    if not dot or not (attempt.isascii() and attempt.isdigit() and number.isascii() and number.isdigit()):
        return None
    return Position(int(attempt[:18]), int(number[:18]))


def _metadata(event: Awarded | Delta | Progress | Reset | None, told: Mapping[str, object]) -> struct_pb2.Struct | None:
    given = {key: value for key, value in told.items() if value is not None}
    match event:
        case Awarded():
            given["position"] = f"{event.attempt}.{event.from_number}"
        case Reset():
            given["position"] = f"{event.attempt}.{event.to}"
        case Delta() | Progress():
            given["position"] = f"{event.attempt}.{event.number}"
    return to_struct(given) if given else None


def _parts_of(output: dict[str, Any]) -> list[Part]:
    """An output: its text, and all of it as data if it is not text alone."""
    text = output.get("text")
    parts = [Part(text=text)] if isinstance(text, str) else []
    if set(output) != {"text"} or not parts:
        parts.append(Part(data=to_value(output)))
    return parts


def to_struct(value: Mapping[str, Any]) -> struct_pb2.Struct:
    """A JSON object as protobuf has it."""
    return json_format.ParseDict(dict(value), struct_pb2.Struct())


def to_value(value: Any) -> struct_pb2.Value:
    """Any JSON value as protobuf has it."""
    return json_format.ParseDict(value, struct_pb2.Value())


def from_value(value: Any) -> Any:
    """A JSON value out of protobuf, which knows no integers: whole numbers become integers again."""
    return _whole(json_format.MessageToDict(value))


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
