"""The kit on implementations that keep the protocol, in two languages, and on some that do not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from modelnet.bus import subjects
from modelnet.conformance import REQUIREMENTS, ClientSuite, Report, WorkerSuite
from modelnet.conformance.client import _covers
from modelnet.conformance.desk import Terms
from modelnet.errors import ModelnetError, UsageError
from modelnet.settings import Settings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-c", "from modelnet.cli import main; main()"]
BREAKS = {"W6", "W19", "W22", "W24", "W31"}
TERMS = Terms(
    "text.shout",
    {"text": "hello you there out in the world"},
    {"text": "one two three four five six", "pause_ms": 400},
)
OWN = Settings(url="", log_level="error", log_format="json")

Runs = dict[str, "asyncio.Task[Report]"]


def worker_suite(command: Sequence[str]) -> WorkerSuite:
    """The suite of a worker that does `TERMS`."""
    return WorkerSuite(TERMS, command=command, config=OWN)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runs(request: pytest.FixtureRequest) -> AsyncIterator[Runs]:
    """All suites at once: most of their time is spent waiting for something to happen, or not to."""
    naive = [sys.executable, str(ROOT / "tests/conformance/naive_client.py")]
    suites: dict[str, WorkerSuite | ClientSuite] = {
        "python worker": worker_suite([*CLI, "work", str(ROOT / "examples/shout.py")]),
        "broken worker": worker_suite([*CLI, "work", str(ROOT / "tests/conformance/broken_worker.py")]),
        "python client": ClientSuite(CLI, config=OWN),
        "naive client": ClientSuite(naive, config=OWN, patience_s=2.0),
    }
    with contextlib.suppress(pytest.skip.Exception):  # without a Node its tests say so
        folder, node = request.getfixturevalue("node_examples"), shutil.which("node") or "node"
        suites["javascript worker"] = worker_suite([node, str(folder / "worker.mjs")])
        suites["javascript client"] = ClientSuite([node, str(folder / "client.mjs")], config=OWN)
    tasks = {name: asyncio.create_task(suite.run()) for name, suite in suites.items()}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


def broken(report: Report) -> dict[str, str]:
    """What was found broken, and why."""
    return {one.requirement: one.why for one in report.findings() if one.result == "failed"}


def unchecked(report: Report) -> dict[str, str]:
    """What was not checked, and why."""
    return {one.requirement: one.why for one in report.findings() if one.result == "not_checked"}


async def test_the_python_client_keeps_all(runs: Runs) -> None:
    report = await runs["python client"]
    assert broken(report) == {}
    assert unchecked(report) == {}


async def test_a_naive_client_breaks_what_it_does_not_care_for(runs: Runs) -> None:
    report = await runs["naive client"]
    assert set(broken(report)) == {"C3", "C4", "C5", "C6", "C9"}
    assert set(report.passed) == {"C1", "C2", "C7", "C10"}
    assert set(unchecked(report)) == {"C8"}


async def test_the_python_worker_keeps_all(runs: Runs) -> None:
    report = await runs["python worker"]
    assert broken(report) == {}
    assert unchecked(report) == {}


async def test_a_broken_worker_fails_exactly_what_it_breaks(runs: Runs) -> None:
    report = await runs["broken worker"]
    assert set(broken(report)) == BREAKS
    assert unchecked(report) == {}


@pytest.mark.parametrize("role", ["worker", "client"])
async def test_javascript_keeps_all(node_examples: Path, runs: Runs, role: str) -> None:
    report = await runs[f"javascript {role}"]
    assert broken(report) == {}
    assert unchecked(report) == {}


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [
        ("result.t.task01.task01.>", True),
        ("result.t.task01.task01.*", True),
        ("result.t.task01.>", True),
        ("result.*.task01.>", True),
        (">", True),
        ("result.t.task01.*", False),
        ("result.t.task02.>", False),
        ("result.t.task01.task0.>", False),
        ("result.t.task01.task01.status.>", False),
        ("_INBOX.x.*", False),
    ],
)
async def test_a_client_may_subscribe_to_more_than_its_task(pattern: str, covers: bool) -> None:
    assert _covers(pattern, subjects.accepted("t", "task01", "status")) is covers


async def test_a_worker_that_does_not_start_is_said_to_have_ended() -> None:
    with pytest.raises(ModelnetError, match=r"ended with 3: .*no model here"):
        await worker_suite([sys.executable, "-c", "import sys; print('no model here'); sys.exit(3)"]).run()
    with pytest.raises(UsageError, match="cannot be started"):
        await worker_suite(["no-such-program-anywhere"]).run()


async def test_what_failed_once_has_failed_and_what_was_never_tried_is_not_checked() -> None:
    report = Report("client")
    report.expect("C4", True, "")
    report.expect("C4", False, "the second time")
    report.expect("C4", True, "")
    report.skip(["C4", "C5"], "no server")
    found = {one.requirement: (one.result, one.why) for one in report.findings()}
    assert found["C4"] == ("failed", "the second time")
    assert found["C5"] == ("not_checked", "no server")
    assert found["C6"][0] == "not_checked"
    assert set(found) == {name for name in REQUIREMENTS if name.startswith("C")}


async def test_the_numbers_are_those_of_the_document() -> None:
    text = (ROOT / "docs/protocol.md").read_text()
    assert re.findall(r"^- \*\*([WC]\d+)\*\* ", text, re.MULTILINE) == list(REQUIREMENTS)
