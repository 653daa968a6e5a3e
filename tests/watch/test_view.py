"""The view: what is heard is shown, bounded, and what changed since a version can be told."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelnet.messages import (
    Awarded,
    Beat,
    CapabilityCard,
    ErrorInfo,
    Offer,
    Planned,
    RunningAttempt,
    ScoredBid,
    Transcript,
    Waiting,
    WorkerCard,
)
from modelnet.watch.counters import Counters, Rates
from modelnet.watch.history import BINS
from modelnet.watch.table import Table
from modelnet.watch.view import ADMITTED_S, AUCTIONS, TASKS, WORKERS, View
from tests.cli.test_stream import final

T0 = 1_000_000.0


def view(lost_after_s: float = 3.0) -> View:
    """A view that has heard nothing."""
    return View(lost_after_s=lost_after_s, now=T0)


def card(worker: str = "w", **changes: Any) -> WorkerCard:
    """A worker's card."""
    served = CapabilityCard(pattern="text.>", contract="sha256:" + "0" * 64, price=5, quality=0.9)
    return WorkerCard.model_validate(
        {"worker": worker, "capabilities": (served,), "slots": 2, "instance": "i", **changes}
    )


def beat(worker: str = "w", running: int = 0, **changes: Any) -> Beat:
    """A worker's beat."""
    hand = tuple(RunningAttempt(tenant="d", task=f"t{n}", attempt=1) for n in range(running))
    return Beat.model_validate({"worker": worker, "instance": "i", "slots": 2, "running": hand, **changes})


def transcript(task: str = "t", *, bids: int = 2, **changes: Any) -> Transcript:
    """An auction that w0 won."""
    scored = tuple(
        ScoredBid(
            worker=f"w{n}",
            owner="o",
            price=5 + n,
            p50_ms=10,
            p90_ms=20,
            quality=0.9,
            value=100.0,
            score=95.0 - n,
            eligible=True,
        )
        for n in range(bids)
    )
    fields = {
        "auction": f"a-{task}",
        "task": task,
        "tenant": "d",
        "capability": "text.upper",
        "negotiator": "n",
        "attempt": 1,
        "closed_by": "all_answered",
        "asked": bids,
        "window_ms": 2.0,
        "remaining_ms": 1000.0,
        "budget": 100,
        "value": 100,
        "value_of_time": 0.1,
        "min_quality": 0.0,
        "bids": scored,
        "winner": "w0" if bids else None,
        "price": 6 if bids else None,
        **changes,
    }
    return Transcript.model_validate(fields)


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The only row."""
    (row,) = rows
    return row


def test_a_worker_is_shown_with_what_is_known_of_it() -> None:
    seen = view()
    seen.card(card(labels={"zone": "b"}), T0)
    seen.beat(beat(running=3), T0)
    seen.offer(Offer(worker="w", capability="text.>", price=7, p50_ms=12.34, p90_ms=50, free=1))
    seen.record("w", "text.upper", 0.81234, 0.9, 12.0)
    seen.transcript(transcript(winner="w"), T0)
    seen.entry("d", "t", final(worker="w", price=6), T0)
    frame = seen.snapshot()
    row, pulse = only(frame["workers"]["put"]), only(frame["pulses"]["put"])
    assert (row["id"], row["state"], row["labels"]) == ("w", "live", {"zone": "b"})
    served = only(row["capabilities"])
    assert (served["price"], served["p50_ms"], served["quality"]) == (7, 12.0, 0.812)
    assert pulse == {"id": "w", "running": 2, "queued": 1, "free": 0, "won": 1, "earned": 6}


def test_silence_is_loss_and_a_beat_brings_it_back() -> None:
    seen = view()
    seen.card(card(), T0)
    seen.tick(T0 + 2)
    assert only(seen.snapshot()["workers"]["put"])["state"] == "live"
    seen.tick(T0 + 4)
    frame = seen.snapshot()
    assert only(frame["workers"]["put"])["state"] == "lost"
    assert (frame["head"]["workers"], frame["head"]["lost"]) == (0, 1)
    seen.beat(beat(), T0 + 5)
    assert only(seen.snapshot()["workers"]["put"])["state"] == "live"
    seen.beat(beat(leaving=True), T0 + 6)
    seen.tick(T0 + 30)
    assert seen.snapshot()["workers"]["put"] == []


def test_who_has_left_comes_back_as_another_process_alone() -> None:
    seen = view()
    seen.card(card(), T0)
    seen.beat(beat(leaving=True), T0)
    seen.beat(beat(), T0)
    assert only(seen.snapshot()["workers"]["put"])["state"] == "left"
    assert seen.unknown(beat(instance="another"))
    seen.card(card(instance="another"), T0)
    seen.beat(beat(instance="another"), T0)
    seen.tick(T0 + 1)
    assert only(seen.snapshot()["workers"]["put"])["state"] == "live"


def test_nobody_is_lost_while_the_watcher_is_deaf() -> None:
    seen = view()
    seen.card(card(), T0)
    seen.excuse(10.0)
    seen.tick(T0 + 12)
    assert only(seen.snapshot()["workers"]["put"])["state"] == "live"


def test_a_tasks_row_follows_its_journal() -> None:
    seen = view()
    seen.entry("d", "t", Waiting(task="t", reason="no_worker", negotiator="n"), T0)
    assert (only(seen.snapshot()["tasks"]["put"])["status"], seen.unsettled(T0 + 1, 5)) == ("waiting", [("d", "t")])
    seen.transcript(transcript(), T0)
    seen.entry("d", "t", Awarded(task="t", attempt=1, worker="w", price=6, negotiator="n"), T0)
    assert only(seen.snapshot()["tasks"]["put"])["status"] == "running"
    seen.entry("d", "t", final(status="failed", error=ErrorInfo(code="boom", message="m"), attempts=2), T0 + 1)
    seen.entry("d", "t", Waiting(task="t", reason="busy", negotiator="n"), T0 + 1)  # late
    row = only(seen.snapshot()["tasks"]["put"])
    assert (row["status"], row["note"], row["attempt"], row["total_ms"]) == ("failed", "boom: m", 2, 3)
    assert seen.unsettled(T0 + 9, 5) == []


def test_parts_know_their_parent() -> None:
    seen = view()
    seen.entry("d", "t", Planned(task="t", strategy="race", width=2, why="race of 2", negotiator="n"), T0)
    seen.entry("d", "t-part2", Awarded(task="t-part2", attempt=1, worker="w", price=6, negotiator="n"), T0)
    assert [row["parent"] for row in seen.snapshot()["tasks"]["put"]] == [None, "t"]


def test_an_auction_says_who_bid_what_and_why_it_ended_so() -> None:
    seen = view()
    seen.transcript(transcript(bids=12), T0)
    row = only(seen.snapshot()["auctions"]["put"])
    assert (row["winner"], row["price"], row["bid_count"], len(row["bids"])) == ("w0", 6, 12, 8)
    assert "runner-up w1" in row["why"]
    bin = only(seen.snapshot()["history"]["bins"]["text.upper"])
    assert (bin["n"], bin["price"], bin["bids"]) == (1, 6.0, 12)


def test_above_a_rate_rows_are_sampled_and_said_to_be() -> None:
    seen = view()
    for n in range(1000):
        seen.transcript(transcript(f"t{n}"), T0 + n / 1000)
        seen.entry("d", f"t{n}", final(task=f"t{n}"), T0 + n / 1000)
    frame = seen.snapshot()
    assert len(frame["tasks"]["put"]) <= 3 * ADMITTED_S
    assert {row["status"] for row in frame["tasks"]["put"]} == {"completed"}  # whose row was begun is followed
    assert frame["head"]["sampled"]["rows"]
    assert sum(bin["n"] for bin in frame["history"]["bins"]["text.upper"]) == 1000


def test_counts_are_the_streams_own_and_the_share_heard_is_told() -> None:
    seen = view()
    seen.counters(Counters(0, 0, 0, 0, 0, 0), T0)
    for n in range(50):
        seen.transcript(transcript(f"t{n}"), T0)
    seen.counters(Counters(tasks=200, open=3, auctions=200, entries=400, events=9, dead_letters=1), T0 + 2)
    head = seen.snapshot()["head"]
    assert (head["tasks_s"], head["auctions_s"], head["open"], head["dead_letters"]) == (100.0, 100.0, 3, 1)
    assert head["sampled"]["auctions"] == 0.25


def test_counters_that_go_back_are_a_new_networks() -> None:
    rates = Rates()
    rates.read(Counters(100, 0, 100, 0, 0, 0), T0)
    rates.read(Counters(3, 0, 3, 0, 0, 0), T0 + 1)
    assert rates.per_second("tasks") is None
    rates.read(Counters(13, 0, 3, 0, 0, 0), T0 + 2)
    assert rates.per_second("tasks") == 10.0


def test_everything_is_bounded() -> None:
    seen, huge = view(), "x" * 100_000
    wordy = card(software=huge, labels={f"{k}{huge}": huge for k in range(20)})
    for n in range(WORKERS + 50):
        seen.card(wordy.model_copy(update={"worker": f"w{n}"}), T0)
        seen.beat(beat(f"w{n}"), T0)
    for n in range(3 * TASKS):
        at = T0 + n
        seen.transcript(transcript(f"t{n}", capability=f"c{n}", strategy="s" * 512), at)
        error = ErrorInfo(code="e", message="m" * 4096)
        seen.entry("d", f"t{n}", final(task=f"t{n}", status="failed", error=error, capability=f"c{n}"), at)
    frame = seen.snapshot()
    counts = [len(frame[name]["put"]) for name in ("workers", "pulses", "tasks", "auctions")]
    assert counts == [WORKERS, WORKERS, TASKS, AUCTIONS]
    assert len(frame["history"]["bins"]) <= 64
    assert max(len(bins) for bins in frame["history"]["bins"].values()) <= BINS
    assert len(json.dumps(frame)) < 6_000_000


def test_what_would_act_on_a_terminal_is_no_part_of_a_row() -> None:
    seen = view()
    seen.card(card(software="\x1b[2J<script>\u202e"), T0)
    assert only(seen.snapshot()["workers"]["put"])["software"] == " [2J<script> "


def test_a_frame_has_what_changed_and_no_more() -> None:
    seen = view()
    seen.card(card("a"), T0)
    seen.card(card("b"), T0)
    first = seen.snapshot()
    assert first["whole"]
    seen.tick(T0 + 1)
    seen.tick(T0 + 1)
    nothing = seen.frame(seen.frame(first["version"])["version"])
    assert (nothing["whole"], nothing["workers"], nothing["tasks"]) == (
        False,
        {"put": [], "gone": []},
        {"put": [], "gone": []},
    )
    seen.beat(beat("b", draining=True), T0 + 2)
    seen.tick(T0 + 2)
    changed = seen.frame(nothing["version"])
    assert only(changed["workers"]["put"])["id"] == "b"


def test_what_comes_after_a_frame_of_the_same_version_is_in_the_next() -> None:
    seen = view()
    first = seen.snapshot()
    seen.card(card("a"), T0)
    seen.tick(T0)
    assert only(seen.frame(first["version"])["workers"]["put"])["id"] == "a"


def test_a_version_from_before_a_restart_gets_the_whole() -> None:
    seen = view()
    assert seen.frame(999)["whole"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["put", "drop", "sync"]), st.integers(0, 3))))
def test_a_viewer_that_applies_changes_has_the_table(steps: list[tuple[str, str, int]]) -> None:
    table, mine, seen = Table(4), dict[str, dict[str, Any]](), 0
    for version, (key, step, value) in enumerate(steps, 1):
        if step == "put":
            table.put(key, {"id": key, "value": value}, version)
        elif step == "drop":
            table.drop(key, version)
        else:
            changes = table.since(seen)
            assert changes is not None
            for gone in changes.gone:
                mine.pop(gone, None)
            mine |= {row["id"]: dict(row) for row in changes.put}
            seen = version
            assert mine == {row["id"]: row for row in table.rows()}
