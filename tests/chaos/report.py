"""A campaign's table, and whether the campaign passed."""

from __future__ import annotations

from tests.chaos.campaign import Plan
from tests.chaos.recovery import percentile
from tests.chaos.tally import Tally

__all__ = ["TARGETS", "failures", "table"]

TARGETS = {"worker deaths": (("worker_killed",), 5.0), "negotiator deaths": (("negotiator_killed",), 12.0)}
"""Kinds of faults by their beginning, and the recovery in seconds that 99 of 100 tasks may not exceed."""


def failures(tally: Tally, plan: Plan) -> list[str]:
    """What keeps the campaign from having passed."""
    found = [f"{name}: {number}" for name, number in tally.must_be_zero.items() if number]
    for name, (kinds, limit_s) in () if plan.paid else TARGETS.items():
        times = tally.recovery.of(*kinds)
        if times and (p99 := percentile(times, 0.99)) > limit_s:
            found.append(f"{name}: recovery p99 is {p99:.2f} s, the limit {limit_s:g} s")
    struck = sum(tally.faults.values())
    if struck + tally.missed_points < plan.faults:
        found.append(f"only {struck} of {plan.faults} faults struck")
    if tally.accepted < 0.95 * plan.tasks:
        found.append(f"only {tally.accepted} of {plan.tasks} tasks were accepted")
    return found


def table(tally: Tally, plan: Plan) -> str:
    """What is printed."""
    failed = ", ".join(f"{name} {number}" for name, number in sorted(tally.failed.items())) or "none"
    rows = [
        ("tasks accepted", tally.accepted, ""),
        ("completed", tally.completed, ""),
        ("ended otherwise, honestly", sum(tally.failed.values()), failed),
        *((name, number, "must be 0") for name, number in tally.must_be_zero.items()),
        *_money(tally),
        ("executed twice", tally.executed_twice, "begun more than once; one output accepted"),
        ("streams followed", tally.streams, f"{tally.reset_streams} of them reset"),
        ("readers told to begin again", tally.reader_restarts, ""),
        ("submits refused", sum(tally.refused.values()), _counted(tally.refused)),
        ("faults", sum(tally.faults.values()), f"and {tally.missed_points} whose moment did not come"),
    ]
    lines = [f"{name:<36}{number:>8}  {note}".rstrip() for name, number, note in rows]
    lines += ["", f"{'recovery in seconds':<36}{'faults':>8}{'tasks':>8}{'p50':>8}{'p99':>8}{'worst':>8}"]
    for kind in sorted(tally.faults):
        lines.append(_recovery(kind, tally.faults[kind], tally.recovery.by_kind.get(kind, [])))
    for name, (kinds, limit_s) in TARGETS.items():
        struck = sum(number for kind, number in tally.faults.items() if kind.startswith(kinds))
        limit = "" if plan.paid else f"  limit of p99 {limit_s:g}"
        lines.append(_recovery(name, struck, tally.recovery.of(*kinds)) + limit)
    lines.append(f"{tally.recovery.several} tasks that more than one fault touched are in no line of these.")
    return "\n".join(lines)


def details(tally: Tally, most: int = 10) -> str:
    """The first of everything that went wrong, to go and look at."""
    lines = []
    for name in ("lost", "hung", "left_over", "accepted_twice", "wrong", "deaths"):
        lines += [f"{name}: {found}" for found in getattr(tally, name)[:most]]
    if (money := tally.money) is not None:
        for name in ("imbalances", "overdrawn", "left_over", "misbooked"):
            lines += [f"money, {name}: {found}" for found in getattr(money, name)[:most]]
    for key, problems in list(tally.bad_streams.items())[:most]:
        lines.append(f"stream {key}: {problems}; touched by {tally.recovery.by_task.get(key, [])}")
    lines += [
        f"slowest of {kind}: {seconds:.2f} s, task {key}, fault {number}"
        for kind, (seconds, key, number) in sorted(tally.recovery.slowest.items())
    ]
    return "\n".join(lines)


def _money(tally: Tally) -> list[tuple[str, int, str]]:
    """Rows of a campaign with accounts."""
    if (money := tally.money) is None:
        return []
    return [
        ("tasks paid for", sum(money.paid.values()), _counted(money.paid)),
        ("micro-credits paid", money.moved, f"of {money.granted} granted; equal to the sum of the Finals' prices"),
        ("attempts with a deposit", money.deposits, f"{money.forfeited} micro-credits of deposits went to tenants"),
        ("looks at the books under way", money.looks, ""),
    ]


def _recovery(name: str, faults: int, times: list[float]) -> str:
    head = f"{name:<36}{faults:>8}{len(times):>8}"
    if not times:
        return head
    return head + f"{percentile(times, 0.5):>8.2f}{percentile(times, 0.99):>8.2f}{max(times):>8.2f}"


def _counted(counter: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counter.items()))
