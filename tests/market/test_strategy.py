"""Which strategy a task gets, and why."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.market import Candidate, Plan, View, choose
from modelnet.messages import Bid, Task, digest_of

CONTRACT = digest_of("contract")


def view(*workers: tuple[str, int | None], p50_ms: float = 1000.0, free: int = 8, slots: int = 8, **given: Any) -> View:
    """Workers, of an owner each unless `owner` is given, with the prices that they offer; None: no offer."""
    quality, owner = given.get("quality", 0.8), given.get("owner")
    candidates = [Candidate(name, owner or f"owner-of-{name}", CONTRACT, quality) for name, _ in workers]
    offers = [
        (
            candidate,
            candidate.offering(
                Bid(
                    auction="a",
                    worker=name,
                    price=price,
                    p50_ms=p50_ms,
                    p90_ms=given.get("p90_ms", p50_ms * 1.5),
                    free=1,
                ),
                0.0,
            ),
        )
        for candidate, (name, price) in zip(candidates, workers, strict=True)
        if price is not None
    ]
    return View(candidates, offers, free, slots)


def task(kind: str, **given: Any) -> Task:
    how: dict[str, Any] = {key: given.pop(key) for key in ("width", "check", "confidence") if key in given}
    fields: dict[str, Any] = {"capability": "a.b", "input": {}, "deadline_s": 60.0, **given}
    return Task(strategy={"kind": kind, **how}, **fields)


THREE = (("w", 30), ("v", 10), ("u", 20))


def test_an_auction_is_the_rule_and_says_nothing() -> None:
    assert choose(task("auction"), view(*THREE)) == Plan("auction")


@pytest.mark.parametrize(
    ("wanted", "plan"),
    [
        (task("spot"), Plan("spot", "spot: asked for")),
        (task("race"), Plan("race", "race of 2: asked for", 2)),
        (task("race", width=3), Plan("race", "race of 3: asked for", 3)),
        (task("race", width=5), Plan("race", "race of 3: asked for; 3 of 5 workers could answer", 3)),
        (task("panel"), Plan("panel", "panel of 3: asked for", 3)),
        (task("cascade"), Plan("cascade", "cascade of 3: asked for", 3, ("v", "u", "w"))),
        (task("cascade", width=1), Plan("cascade", "cascade of 1: asked for", 1, ("v",))),
    ],
)
def test_what_is_asked_for_is_done(wanted: Task, plan: Plan) -> None:
    assert choose(wanted, view(*THREE)) == plan


@pytest.mark.parametrize(
    ("kind", "seen", "why"),
    [
        ("race", view(("w", 1)), "auction: race asked for, but only 1 worker could answer"),
        ("panel", view(*THREE, owner="one"), "auction: panel asked for, but only 1 owner could answer"),
        ("panel", view(), "auction: panel asked for, but only 0 owner could answer"),
        ("cascade", view(), "auction: cascade asked for, but only 0 worker could answer"),
    ],
)
def test_where_nobody_else_is_there_an_auction_is_held(kind: str, seen: View, why: str) -> None:
    assert choose(task(kind), seen) == Plan("auction", why)


def test_a_cascade_of_one_worker_is_a_cascade() -> None:
    """Its answer may have to pass a check."""
    plan = choose(task("cascade", check="c.d"), view(("w", 1)))
    assert (plan.kind, plan.workers) == ("cascade", ("w",))


def test_a_cascade_asks_those_without_an_offer_last() -> None:
    plan = choose(task("cascade", width=4), view(("w", None), ("v", 10), ("u", 0), ("a", None)))
    assert plan.workers == ("u", "v", "a", "w")


@pytest.mark.parametrize(
    ("wanted", "seen", "kind", "why"),
    [
        ({}, view(("w", None)), "auction", "no standing offer"),
        (
            {"min_quality": 0.85, "budget": 90},
            view(*THREE),
            "panel",
            "quality 0.85 is wanted, the best worker is sure of 0.80",
        ),
        ({"min_quality": 0.85, "budget": 89}, view(*THREE), "auction", "answers take 1000 ms"),
        ({"min_quality": 0.85}, view(*THREE[:2]), "auction", "answers take"),
        ({"min_quality": 0.85}, view(*THREE, quality=0.4), "auction", "answers take"),  # together they know less
        ({"check": "c.d"}, view(("w", 40), ("v", 10)), "cascade", "c.d can tell, and prices go from 10 to 40"),
        ({"check": "c.d"}, view(("w", 39), ("v", 10)), "auction", "answers take"),
        ({"check": "c.d"}, view(("w", 0), ("v", 0)), "auction", "answers take"),
        ({"deadline_s": 1.0}, view(*THREE), "race", "the quickest worker is in time with 50%, and slots are free"),
        ({"deadline_s": 1.0, "budget": 59}, view(*THREE), "auction", "answers take"),
        ({"deadline_s": 1.0}, view(*THREE, free=3), "auction", "only 3 of 8 slots are free"),
        ({"deadline_s": 1.0}, view(("w", 1)), "auction", "answers take"),
        ({}, view(*THREE, p50_ms=250.0), "spot", "answers take 250 ms, 8 of 8 slots are free"),
        ({}, view(*THREE, p50_ms=250.0, free=3), "auction", "only 3 of 8 slots are free: who is best must be asked"),
        ({}, view(*THREE, p50_ms=251.0), "auction", "answers take 251 ms: asking costs little of that"),
    ],
)
def test_auto_picks_and_says_why(wanted: dict[str, Any], seen: View, kind: str, why: str) -> None:
    plan = choose(task("auto", **wanted), seen)
    assert plan.kind == kind
    assert why in plan.why
    assert plan.why.startswith(kind)
    assert len(plan.why) <= 512
