"""The short form of the campaign: the same processes, faults and counting as `make chaos`, in under a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, Plan
from tests.chaos.fleet import Sizes
from tests.chaos.fuzz import Fuzz
from tests.chaos.report import details, failures, table

KINDS = (
    "worker_killed",
    "worker_frozen",
    "worker_silent",
    "worker_lies_mute",
    "worker_lies_forgetful",
    "negotiator_killed",
    "negotiator_killed_close_award",
    "negotiator_killed_token_final",
    "client_cut",
    "link_throttled",
    "link_doubled",
    "clock_jumped",
    "redis_killed",
    "redis_frozen",
    "ledger_killed",
    "ledger_cut",
)


@pytest.mark.timeout(240)
async def test_nothing_is_lost_nothing_hangs_and_money_is_where_the_finals_say(tmp_path: Path) -> None:
    sizes = Sizes(negotiators=2, workers=4, clients=2, beat_s=0.3, ack_wait_s=4.0, ledgers=2)
    plan = Plan(seed=5, minutes=0.6, tasks=600, faults=len(KINDS), sizes=sizes, deadline_s=40.0, kinds=KINDS)
    tally = await Campaign(plan, tmp_path).run()
    wrong = failures(tally, plan)
    assert not wrong, "\n".join([*wrong, table(tally, plan), details(tally)])
    assert set(tally.faults) == set(KINDS)
    assert tally.money is not None
    assert tally.money.paid["completed"] > 400
    assert tally.money.paid["cancelled"] > 0
    assert tally.money.deposits > 10


@pytest.mark.timeout(170)
async def test_garbage_kills_nobody_and_costs_nobody_an_answer(tmp_path: Path) -> None:
    sizes = Sizes(negotiators=1, workers=2)
    outcome = await Fuzz(tmp_path, count=2000, seed=3, sizes=sizes, always_with_reply=True).run()
    assert not outcome.problems
    assert outcome.sent == 2000
    assert outcome.valid > 20
