"""The campaign's own counting: what is lost, hung, run or accepted twice is counted, and recovery is what it says."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.messages import Final, Timings
from tests.chaos.campaign import Plan
from tests.chaos.faults import Fault
from tests.chaos.recovery import Followed, percentile, recoveries
from tests.chaos.report import failures, table
from tests.chaos.tally import Tally, count

KEY = ("t", "task")


def final(status: str = "completed", worker: str = "w") -> Final:
    return Final.model_validate(
        {
            "task": KEY[1],
            "tenant": KEY[0],
            "capability": "chaos.echo",
            "status": status,
            "worker": worker,
            "attempt": 1,
            "negotiator": "n",
            "timings": Timings(queued_ms=0, negotiation_ms=0, running_ms=0, total_ms=0),
        }
    )


def record(what: str, **fields: Any) -> dict[str, Any]:
    return {"what": what, "tenant": KEY[0], "task": KEY[1], **fields}


ENDED = record("ended", resets=0, problems=[], wrong=False, final=["completed", "w", 1, None, "n"])
ACCEPTED = record("accepted")


def test_a_task_that_ended_once_is_all_right() -> None:
    tally = count([ACCEPTED, ENDED], ["begin t task 1 w", "end t task 1 w"], {KEY: [final()]}, set())
    assert (tally.accepted, tally.completed, tally.executed_twice) == (1, 1, 0)
    assert not any(tally.must_be_zero.values())


@pytest.mark.parametrize(
    ("records", "finals", "queued", "name"),
    [
        ([ACCEPTED], {}, set(), "lost"),
        ([ACCEPTED, record("hung")], {}, {KEY}, "hung"),
        ([ACCEPTED, record("hung")], {KEY: [final()]}, set(), "hung"),
        ([], {}, {KEY}, "hung"),
        ([ACCEPTED, ENDED], {KEY: [final(), final()]}, set(), "accepted twice"),
        ([ACCEPTED, ENDED], {KEY: [final(worker="other")]}, set(), "accepted twice"),
        ([ACCEPTED, ENDED | {"problems": ["gap"]}], {KEY: [final()]}, set(), "streams with a gap or repeat"),
        ([ACCEPTED, ENDED | {"wrong": True}], {KEY: [final()]}, set(), "wrong outputs"),
    ],
)
def test_what_must_not_be_is_counted(
    records: list[dict[str, Any]], finals: dict[tuple[str, str], list[Final]], queued: set[tuple[str, str]], name: str
) -> None:
    tally = count(records, [], finals, queued)
    assert {key: number for key, number in tally.must_be_zero.items() if number} == {name: 1}
    plan = Plan(seed=1, tasks=1, faults=0)
    assert failures(tally, plan) == [f"{name}: 1"]
    assert "must be 0" in table(tally, plan)


def test_a_task_run_by_two_workers_is_executed_twice() -> None:
    begun = ["begin t task 1 a", "begin t task 2 b", "end t task 2 b", "begin t other 1 a"]
    assert count([], begun, {}, set()).executed_twice == 1


def test_failures_are_told_by_their_codes() -> None:
    tally = count([], [], {KEY: [final("expired")]}, set())
    assert dict(tally.failed) == {"expired": 1}


def followed(name: str, submitted: float, ended: float, nominal: float = 1.0) -> Followed:
    return Followed(("t", name), "story", nominal, submitted, ended)


def test_recovery_is_what_a_fault_cost_beyond_what_was_left_to_do() -> None:
    """Undisturbed, a story of 1 s takes 1.2 s; struck half a second after its submit it had 0.7 s to go."""
    calm = [followed(f"calm-{n}", 10.0 + n, 11.2 + n) for n in range(5)]
    struck, twice = followed("struck", 100.0, 105.0), followed("twice", 100.0, 109.0)
    faults = [
        Fault("worker_killed", 0, "w", 100.5, 103.0, {("t", "struck"): 100.5, ("t", "twice"): 100.5}),
        Fault("negotiator_killed", 1, "n", 101.0, 103.0, {("t", "twice"): 101.0}),
        Fault("redis_killed", 2, "", 100.0, 200.0),
    ]
    found = recoveries([*calm, struck, twice], faults)
    assert found.several == 1
    assert found.by_kind["worker_killed"] == [pytest.approx(3.8)]
    assert found.slowest["worker_killed"][1:] == (("t", "struck"), 0)


def test_who_restarts_the_server_touches_everybody() -> None:
    calm = [followed(f"calm-{n}", 10.0 + n, 11.2 + n) for n in range(5)]
    faults = [Fault("nats_killed", 0, "", 100.0, 101.0)]
    found = recoveries([*calm, followed("before", 99.5, 103.0), followed("meanwhile", 100.5, 103.0)], faults)
    assert found.by_kind["nats_killed"] == [pytest.approx(2.3), pytest.approx(1.3)]


def test_a_missed_target_fails_the_campaign() -> None:
    tally = Tally(accepted=1)
    tally.recovery.by_kind = {"worker_killed": [1.0] * 98 + [6.0] * 2, "negotiator_killed_take_cfp": [11.0]}
    assert failures(tally, Plan(seed=1, tasks=1, faults=0)) == ["worker deaths: recovery p99 is 6.00 s, the limit 5 s"]


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(100)], 0.99) == 99.0
