"""A task's stream as A2A updates, and back: what a client folds together is what the task says."""

from __future__ import annotations

from typing import Any

import pytest
from a2a.types.a2a_pb2 import Part, SendMessageRequest, StreamResponse, TaskState
from a2a.types.a2a_pb2 import Task as A2aTask
from hypothesis import given
from hypothesis import strategies as st

from modelnet.agents.a2a_answer import Answer
from modelnet.agents.a2a_request import asked, context_of, task_id
from modelnet.agents.a2a_view import View, from_value, position_of, state_of, to_value
from modelnet.messages import Awarded, Contract, Delta, ErrorInfo, Final, Output, Progress, Reset, Timings, digest_of
from modelnet.reader import Position, StreamEvent

STAMP: dict[str, Any] = {"task": "t", "worker": "w"}
TIMINGS = Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0)


def delta(text: str, number: int, attempt: int = 1, index: int = 0) -> Delta:
    return Delta(**STAMP, attempt=attempt, number=number, text=text, index=index)


def final(output: dict[str, Any] | None = None, **fields: Any) -> Final:
    given = {"status": "completed", "attempts": 1, "output": output, **fields}
    return Final(task="t", tenant="x", capability="c", worker="w", negotiator="n", timings=TIMINGS, **given)


def awarded(attempt: int, start: int = 0) -> Awarded:
    return Awarded(task="t", attempt=attempt, worker="w", price=1, from_number=start, negotiator="n")


def replayed(events: list[StreamEvent]) -> tuple[View, A2aTask]:
    """A view, and what a client makes of its updates."""
    view = View("t", "ctx")
    responses = [StreamResponse(task=view.task())]
    for event in events:
        for update in view.read(event):
            kind = "status_update" if update.DESCRIPTOR.name == "TaskStatusUpdateEvent" else "artifact_update"
            responses.append(StreamResponse(**{kind: update}))
    task = A2aTask()
    task.CopyFrom(responses[0].task)
    for response in responses[1:]:
        if response.HasField("status_update"):
            task.status.CopyFrom(response.status_update.status)
        elif response.artifact_update.append:
            task.artifacts[0].parts.extend(response.artifact_update.artifact.parts)
        else:
            del task.artifacts[:]
            task.artifacts.append(response.artifact_update.artifact)
    return view, task


def content(task: A2aTask) -> tuple[str, list[Any]]:
    parts = [part for artifact in task.artifacts for part in artifact.parts]
    data = [from_value(part.data) for part in parts if part.WhichOneof("content") == "data"]
    return "".join(part.text for part in parts), data


@given(st.lists(st.text(min_size=1, max_size=5), max_size=6), st.integers(0, 6), st.booleans(), st.booleans())
def test_what_a_client_folds_is_what_the_task_says(words: list[str], kept: int, again: bool, more: bool) -> None:
    """With an attempt that breaks off behind any word, and output that says more than text or does not."""
    events: list[StreamEvent] = [awarded(1)]
    events += [delta(word, number) for number, word in enumerate(words, 1)]
    if again:
        kept = min(kept, len(words))
        events += [awarded(2, kept), Reset(**STAMP, attempt=2, number=kept + 1, to=kept)]
        events += [delta("new ", kept + 1, 2), delta("end", kept + 2, 2)]
        words = [*words[:kept], "new ", "end"]
    text = "".join(words)
    output = {"text": text, **({"more": [1, 2.5]} if more else {})}
    events += [Output(**STAMP, attempt=1, number=99, output=output, digest=digest_of(output)), final(output)]
    view, task = replayed(events)
    assert content(task) == content(view.task()) == (text, [output] if more else [])
    assert task.status == view.task().status
    assert task.status.state == TaskState.TASK_STATE_COMPLETED


def test_output_that_is_not_what_was_streamed_replaces_it() -> None:
    view, task = replayed([awarded(1), delta("abc", 1), final({"text": "xyz"})])
    assert content(task) == content(view.task()) == ("xyz", [])


def test_of_several_answers_the_first_is_streamed() -> None:
    _, task = replayed([awarded(1), delta("one", 1), delta("two", 2, index=1), final({"text": "one"})])
    assert content(task) == ("one", [])


def test_a_task_that_ends_without_an_answer_keeps_its_text_and_says_why() -> None:
    error = ErrorInfo(code="worker_error", message="it broke")
    view, task = replayed([awarded(1), delta("half", 1), final(status="failed", error=error)])
    assert content(task) == content(view.task()) == ("half", [])
    assert task.status.state == TaskState.TASK_STATE_FAILED
    assert task.status.message.parts[0].text == "it broke"


@pytest.mark.parametrize(
    ("status", "attempts", "state"),
    [
        ("completed", 1, TaskState.TASK_STATE_COMPLETED),
        ("cancelled", 0, TaskState.TASK_STATE_CANCELED),
        ("expired", 0, TaskState.TASK_STATE_FAILED),
        ("failed", 2, TaskState.TASK_STATE_FAILED),
        ("failed", 0, TaskState.TASK_STATE_REJECTED),
    ],
)
def test_states(status: str, attempts: int, state: TaskState) -> None:
    assert state_of(final(status=status, attempts=attempts)) == state


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_positions(attempt: int, number: int) -> None:
    assert position_of(f"{attempt}.{number}") == Position(attempt, number)


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "a.b", "1.2.3", "-1.2", "1.²", "1 . 2"])
def test_what_is_no_position(text: str) -> None:
    assert position_of(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e300, 1e300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_json_survives_protobuf(value: Any) -> None:
    assert from_value(to_value(value)) == value


def test_whole_numbers_are_integers_again() -> None:
    assert type(from_value(to_value({"n": 3}))["n"]) is int
    assert type(from_value(to_value({"n": 3.5}))["n"]) is float


def request(said: str = "hi", message_id: str = "m", context_id: str = "") -> SendMessageRequest:
    made = SendMessageRequest()
    made.message.message_id, made.message.context_id = message_id, context_id
    made.message.parts.append(Part(text=said))
    made.message.metadata.update({"skill": "c"})
    return made


def test_a_tasks_id_names_its_context_and_follows_from_what_was_said() -> None:
    context, id = task_id(request(context_id="room-1"), "acme")
    assert (context, context_of(id)) == ("room-1", "room-1")
    assert len(id) <= 64
    assert task_id(request(context_id="room-1"), "acme") == (context, id)
    others = [
        task_id(request("ho", context_id="room-1"), "acme"),
        task_id(request(message_id="n", context_id="room-1"), "acme"),
        task_id(request(context_id="room-2"), "acme"),
        task_id(request(context_id="room-1"), "other"),
    ]
    assert len({id, *(other for _, other in others)}) == 5
    longest = "x" * 41
    assert len(task_id(request(context_id=longest), "acme")[1]) == 64


def test_a_task_of_another_door_is_a_context_of_its_own() -> None:
    assert context_of("01a2116e212d76d0b90e46e267448688") == "01a2116e212d76d0b90e46e267448688"


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"properties": {"prompt": {}, "text": {}}}, "prompt"),
        ({"properties": {"text": {}, "question": {"type": "string"}}, "required": ["question"]}, "text"),
        ({"properties": {"question": {"type": "string"}, "n": {}}, "required": ["question", "n"]}, "question"),
    ],
)
def test_where_text_goes(schema: dict[str, Any], name: str) -> None:
    contract = Contract(capability="c", input=schema)
    assert asked(request("hi"), "t", lambda skill: contract if skill == "c" else None).input == {name: "hi"}


def test_an_answer_that_is_taken_back_is_right_in_the_end() -> None:
    answer = Answer()
    update = StreamResponse()
    update.artifact_update.task_id = "t"
    update.artifact_update.artifact.artifact_id = "a"
    update.artifact_update.artifact.parts.append(Part(text="one "))
    assert answer.read(update) == ["one "]
    update.artifact_update.append = True
    assert answer.read(update) == ["one "]
    update.artifact_update.append = False
    update.artifact_update.artifact.parts[0].text = "two "
    assert answer.read(update) == []  # it cannot be taken back from those who follow
    assert answer.text == "two "
    assert not answer.done


def test_progress_of_an_agent() -> None:
    answer, update = Answer(), StreamResponse()
    update.status_update.task_id = "t"
    update.status_update.status.state = TaskState.TASK_STATE_WORKING
    update.status_update.status.message.parts.append(Part(text="reading"))
    update.status_update.metadata.update({"fraction": 0.5})
    [told] = answer.read(update)
    assert (getattr(told, "fraction", None), getattr(told, "note", None)) == (0.5, "reading")
    assert Progress(**STAMP, attempt=1, number=1, fraction=0.5).fraction == 0.5
