"""`modelnet dlq`: what lies in the dead-letter stream is shown, tried again, and dropped."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.conftest import Run


def listed(modelnet: Run) -> list[dict[str, Any]]:
    done = modelnet("dlq", "list", "--json")
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def bury(modelnet: Run, text: str) -> dict[str, Any]:
    """Have a task fail at every worker there is; its letter."""
    known = {letter["number"] for letter in listed(modelnet)}
    assert modelnet("submit", "test.raise", "--input", json.dumps({"text": text})).returncode == 1
    (letter,) = [letter for letter in listed(modelnet) if letter["number"] not in known]
    return letter


def test_a_letter_is_listed_shown_and_dropped(modelnet: Run) -> None:
    letter = bury(modelnet, "grüße")
    number = str(letter["number"])
    assert "test.raise" in letter["subject"]
    table = modelnet("dlq", "list")
    assert letter["reason"] in table.stdout
    assert "dead letter" in table.stderr
    shown = modelnet("dlq", "show", number)
    assert "grüße" in shown.stdout
    assert letter["reason"] in shown.stdout
    whole = json.loads(modelnet("dlq", "show", number, "--json").stdout)
    assert json.loads(whole["body"])["input"] == {"text": "grüße"}
    assert whole["cut"] is False
    refused = modelnet("dlq", "drop", number)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert modelnet("dlq", "drop", number, "--yes").returncode == 0
    for command in (["show"], ["retry"], ["drop", "--yes"]):
        gone = modelnet("dlq", *command, number)
        assert gone.returncode == 1
        assert "[unknown_letter]" in gone.stderr


def test_a_letter_is_tried_again_under_an_id_of_its_own(modelnet: Run) -> None:
    letter = bury(modelnet, "again")
    retried = modelnet("dlq", "retry", str(letter["number"]), "--json")
    assert retried.returncode == 0
    task = json.loads(retried.stdout)["task"]
    assert task not in letter["subject"]
    assert modelnet("result", task).returncode == 1, "it fails again, and is buried again"
    assert modelnet("dlq", "drop", "--all", "--yes").returncode == 0
    assert listed(modelnet) == []
    assert "0 dead letters" in modelnet("dlq", "list").stderr


def test_letters_must_be_named(modelnet: Run) -> None:
    for args in (["retry"], ["drop", "--yes"], ["retry", "1", "--all"]):
        wrong = modelnet("dlq", *args)
        assert wrong.returncode == 2
        assert "--all" in wrong.stderr
