"""The blocking client, from a plain thread and from inside a running loop."""

from __future__ import annotations

import pytest

import modelnet
from modelnet.errors import ConnectionFailed, TaskFailed, UnknownTask


def test_it_submits_streams_and_fetches(network: dict[str, str]) -> None:
    with modelnet.sync.connect(network["MODELNET_URL"]) as net:
        task = net.submit("test.stream", {}, budget=10, deadline_s=5)
        kinds = [event.kind for event in task.stream()]
        assert kinds[0] == "awarded"
        assert kinds[-1] == "final"
        assert task.text == "one two three"
        assert task.result().output == {"text": "one two three"}
        assert net.run("text.upper", {"text": "a"}) == {"text": "A"}
        assert "acme-upper" in [worker.card.worker for worker in net.workers()]


async def test_it_works_inside_a_running_loop_as_notebooks_have(network: dict[str, str]) -> None:
    with modelnet.sync.connect(network["MODELNET_URL"]) as net:
        assert net.run("text.upper", {"text": "a"}) == {"text": "A"}


def test_a_stream_can_be_left_and_a_task_cancelled(network: dict[str, str]) -> None:
    with modelnet.sync.connect(network["MODELNET_URL"]) as net:
        task = net.submit("test.never", {})
        for event in task.stream():
            if event.kind == "delta":
                break
        with pytest.raises(TimeoutError):
            task.result(timeout_s=0.1)
        assert task.cancel()
        assert task.final(timeout_s=10).status == "cancelled"


def test_errors_are_those_of_the_client(network: dict[str, str]) -> None:
    with pytest.raises(ConnectionFailed):
        modelnet.sync.connect("nats://127.0.0.1:1")
    net = modelnet.sync.connect(network["MODELNET_URL"])
    with pytest.raises(TaskFailed) as failed:
        net.run("text.nosuch", {})
    assert failed.value.wire_code == "unknown_capability"
    with pytest.raises(UnknownTask):
        net.task("nosuch").final()
    net.close()
    net.close()
    with pytest.raises(ConnectionFailed):
        net.workers()
