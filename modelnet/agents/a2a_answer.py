"""What an A2A agent has answered so far: its messages, tasks and updates folded into one answer. Pure."""

from __future__ import annotations

from typing import Any

from a2a.types.a2a_pb2 import Artifact, Part, StreamResponse, Task, TaskState, TaskStatus

from modelnet.agents.a2a_view import ENDED, from_value
from modelnet.attempt import Progress

__all__ = ["Answer"]

_INTERRUPTED = frozenset({TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED})


class Answer:
    """An answer that grows. Feed it what the agent says; each call returns what that adds for whoever follows."""

    def __init__(self) -> None:
        self.task: str | None = None
        """Id of the agent's task, once it has one."""
        self.context = ""
        self.status = TaskStatus()
        self._artifacts: dict[str, list[Part]] = {}
        self._message: list[Part] | None = None
        self._streamed = ""

    @property
    def done(self) -> bool:
        """Whether nothing more can come."""
        return self._message is not None or self.status.state in ENDED | _INTERRUPTED

    @property
    def state(self) -> TaskState:
        """How the agent's task stands; a message is an answer that is complete."""
        return TaskState.TASK_STATE_COMPLETED if self._message is not None else self.status.state

    @property
    def said(self) -> str:
        """What the status says in words."""
        return _text(self.status.message.parts)

    @property
    def parts(self) -> list[Part]:
        """All parts, artifact by artifact. An agent that has none may say it all in its last status."""
        if self._message is not None:
            return self._message
        found = [part for parts in self._artifacts.values() for part in parts]
        return found or list(self.status.message.parts)

    @property
    def text(self) -> str:
        """The text parts of all of it."""
        return _text(self.parts)

    @property
    def data(self) -> list[Any]:
        """Its data parts."""
        return [from_value(part.data) for part in self.parts if part.WhichOneof("content") == "data"]

    def read(self, response: StreamResponse) -> list[str | Progress]:
        """Text and progress that this adds."""
        match response.WhichOneof("payload"):
            case "message":
                self._message, self.context = list(response.message.parts), response.message.context_id
                return self._news()
            case "task":
                return self.resume(response.task)
            case "artifact_update":
                update = response.artifact_update
                self.task, self.context = update.task_id, update.context_id
                self._take(update.artifact, append=update.append)
                return self._news()
            case "status_update":
                change = response.status_update
                self.task, self.context, self.status = change.task_id, change.context_id, change.status
                fraction = from_value(change.metadata).get("fraction")
                known = fraction if isinstance(fraction, int | float) and 0 <= fraction <= 1 else None
                if not self.done and (self.said or known is not None):
                    return [Progress(known, self.said or None)]
        return []

    def resume(self, task: Task) -> list[str | Progress]:
        """All of the task as it stands: what was missed is in it."""
        self.task, self.context, self.status = task.id, task.context_id, task.status
        self._artifacts = {}
        for artifact in task.artifacts:
            self._take(artifact, append=False)
        return self._news()

    def _take(self, artifact: Artifact, *, append: bool) -> None:
        if append:
            self._artifacts.setdefault(artifact.artifact_id, []).extend(artifact.parts)
        else:
            self._artifacts[artifact.artifact_id] = list(artifact.parts)

    def _news(self) -> list[str | Progress]:
        """Text behind what was streamed. What the agent took back stays streamed; the output has it right."""
        if not self._artifacts and self._message is None:
            return []
        text = self.text
        if not text.startswith(self._streamed) or text == self._streamed:
            return []
        new, self._streamed = text[len(self._streamed) :], text
        return [new]


def _text(parts: Any) -> str:
    return "".join(part.text for part in parts if part.WhichOneof("content") == "text")
