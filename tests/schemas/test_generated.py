"""`schemas/`, generated: in line with the models, complete, and what FastStream serves for the real processes."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from faststream import FastStream
from hypothesis import given, settings

from modelnet import Worker
from modelnet import messages as m
from modelnet.bus import subjects
from modelnet.bus.channels import CHANNELS, Channel
from modelnet.schemas import DIALECT, FOLDER, asyncapi, drift, main, message_classes, normalised, write
from tests.messages.samples import documents
from workers.ledger import app as ledger_app
from workers.negotiator import app as negotiator_app


def members(message: Any) -> tuple[type[m.Message], ...]:
    return typing.get_args(message) or (message,)


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


def worker_app() -> FastStream:
    worker = Worker("documented")

    @worker.capability("text.upper")
    async def upper(ctx: Any, input: dict[str, Any]) -> dict[str, Any]:
        return {"text": input["text"].upper()}

    return worker.app


APPS = {"negotiator": negotiator_app, "ledger": ledger_app, "worker": worker_app()}

channels = pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
apps = pytest.mark.parametrize("role", sorted(APPS))
schemas = pytest.mark.parametrize("message", message_classes(), ids=lambda c: c.__name__)


def test_nothing_has_drifted() -> None:
    assert drift() == [], "run: python -m modelnet.schemas"


def test_drift_is_named_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert drift(tmp_path) == []
    (tmp_path / "messages/Bid.json").write_text("{}")
    (tmp_path / "messages/Task.json").unlink()
    (tmp_path / "messages/Rumour.json").write_text("{}")
    (tmp_path / "asyncapi.json").unlink()
    assert sorted(drift(tmp_path)) == [
        "asyncapi.json: missing",
        "messages/Bid.json: differs",
        "messages/Rumour.json: no such message",
        "messages/Task.json: missing",
    ]
    write(tmp_path)
    assert drift(tmp_path) == []
    assert main(["--check"]) == 0
    assert main(["--chekc"]) == 2
    assert "usage" in capsys.readouterr().err


@schemas
def test_a_schema_stands_by_itself(message: type[m.Message]) -> None:
    schema = load(f"messages/{message.__name__}.json")
    assert schema["$schema"] == DIALECT
    assert schema["title"] == message.__name__
    assert schema["description"]
    assert schema["properties"]["version"]["type"] == "integer"
    assert schema.get("additionalProperties", True) is True  # a newer peer may say more
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.validator_for(schema)


@schemas
def test_what_is_written_satisfies_its_schema(message: type[m.Message]) -> None:
    schema = load(f"messages/{message.__name__}.json")
    validator = jsonschema_rs.validator_for(schema)

    @settings(max_examples=30)
    @given(documents(schema))
    def check(document: dict[str, Any]) -> None:
        validator.validate(json.loads(message.decode(json.dumps(document)).encode()))

    check()


@channels
def test_every_message_of_a_channel_has_a_schema(channel: Channel) -> None:
    for message in members(channel.message):
        assert (FOLDER / f"messages/{message.__name__}.json").exists()


@channels
def test_every_channel_is_documented(channel: Channel) -> None:
    document = load("asyncapi.json")
    found = document["channels"][channel.name]
    assert found["address"] == channel.address
    assert found["description"] == channel.description
    (message,) = found["messages"].values()
    payload = resolved(document, message)["payload"]
    assert [c["title"] for c in payload.get("anyOf", [payload])] == [c.__name__ for c in members(channel.message)]
    assert set(found.get("parameters", {})) == set(parameters(channel.address))


def test_the_document_is_what_asyncapi_demands() -> None:
    document = load("asyncapi.json")
    assert document["asyncapi"] == "3.0.0"
    assert "servers" not in document
    assert set(document["channels"]) == {channel.name for channel in CHANNELS}
    for kind in document["components"].values():
        assert all(re.fullmatch(r"[\w.-]+", name) for name in kind)
    resolved(document, document["channels"])  # no reference leads nowhere
    assert asyncapi() == document


@apps
def test_what_faststream_serves_occurs_in_the_whole(role: str) -> None:
    whole, served = load("asyncapi.json"), normalised(json.loads(APPS[role].schema.to_specification().to_json()))
    assert served["info"]["title"] == f"modelnet {role}"
    payloads = {channel["address"]: payload(whole, channel) for channel in whole["channels"].values()}
    assert served["channels"]
    for channel in served["channels"].values():
        assert payload(served, channel) == payloads[channel["address"]], channel["address"]


@apps
def test_what_faststream_serves_is_all_that_the_role_says_and_hears(role: str) -> None:
    served = json.loads(APPS[role].schema.to_specification().to_json())
    directions: dict[str, set[str]] = {"receive": set(), "send": set()}
    for operation in served["operations"].values():
        name = operation["channel"]["$ref"].rsplit("/", 1)[1]
        directions[operation["action"]].add(served["channels"][name]["address"])
    assert directions["receive"] == {c.address for c in CHANNELS if role in c.receivers}
    assert directions["send"] == {c.address for c in CHANNELS if role in c.senders}


def test_what_the_negotiator_subscribes_to_is_documented() -> None:
    heard = {channel.address for channel in CHANNELS if "negotiator" in channel.receivers}
    assert negotiator_app.broker is not None
    subscribers: list[Any] = list(negotiator_app.broker.subscribers)
    for subject in [subscriber.subject.broker_address for subscriber in subscribers]:
        assert any(address.startswith(subject.rstrip("*>")) for address in heard), subject


TASK = m.Task(id="k", tenant="t", capability="a.b", input={}, priority=9)

SUBJECTS = {
    "task": subjects.task(TASK),
    "bidRequest": subjects.capability("a.b"),
    "bid": f"{subjects.bids('n', 'x')}.w",
    "shortlistRequest": subjects.bid_request("w"),
    "award": subjects.award("w"),
    "claim": subjects.claim("n", "w"),
    "negotiatorBeat": subjects.negotiator_beat("n"),
    "cancel": subjects.cancel_attempt("w"),
    "adopt": subjects.adopt("w"),
    "query": subjects.query("w"),
    "alive": subjects.alive("c"),
    "drain": subjects.drain("w"),
    "rollCall": subjects.ROLL_CALL,
    "beat": subjects.beat("w"),
    "offer": subjects.offer("a.>", "w"),
    "result": subjects.result("t", "k", "w", 1),
    "done": subjects.done("n", "k", "w", 1),
    "status": subjects.journal("t", "k", "status"),
    "cancelAsked": subjects.journal("t", "k", "cancel"),
    "final": subjects.journal("t", "k", "final"),
    "accepted": subjects.accepted("t", "k", "final"),
    "audit": subjects.audit("t", "k"),
    "metering": subjects.metering("t"),
    "prefixSecret": subjects.PREFIX_SECRET,
    "deadLetter": "dlq.task",
}

VALUES = {
    "class": "2",
    "tenant": "t",
    "lane": "k",
    "task": "k",
    "worker": "w",
    "client": "c",
    "negotiator": "n",
    "auction": "x",
    "attempt": "1",
    "kind": "task",
    "entry": "final",
}


@channels
def test_the_subjects_that_are_built_are_the_documented_ones(channel: Channel) -> None:
    if channel.name == "awardReply":
        return  # the inbox of whoever asks
    capability = "a._all" if channel.name == "offer" else "a.b"
    assert SUBJECTS[channel.name] == channel.address.format_map({**VALUES, "capability": capability})


def test_a_result_address_is_taken_apart_as_it_was_built() -> None:
    assert subjects.ResultAddress.parse(SUBJECTS["result"]) == ("t", "k", "w", 1)
    assert subjects.ResultAddress.parse(SUBJECTS["accepted"]) == ("t", "k", "", 0)


@pytest.mark.parametrize("priority", range(10))
def test_a_task_goes_to_the_queue_of_its_class(priority: int) -> None:
    task = TASK.model_copy(update={"priority": priority})
    assert subjects.task(task).split(".")[1] == str(task.priority_class)
    assert int(subjects.task(task).split(".")[1]) < subjects.CLASSES


def parameters(address: str) -> list[str]:
    return [part[1:-1] for part in address.split(".") if part.startswith("{")]


def payload(document: dict[str, Any], channel: dict[str, Any]) -> Any:
    (message,) = channel["messages"].values()
    found = resolved(document, message)["payload"]
    found.pop("title", None)
    return found


def resolved(document: dict[str, Any], node: Any) -> Any:
    """The node with every reference replaced by what it names."""
    if isinstance(node, list):
        return [resolved(document, item) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"$ref"}:
        found: Any = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return resolved(document, found)
    return {key: resolved(document, item) for key, item in node.items()}
