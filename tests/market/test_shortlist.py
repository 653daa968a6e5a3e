"""In a large market not everybody is asked: the best by their standing offers are, and a few of the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from modelnet.market import Directory, State
from modelnet.market.commands import AskForBids, Hold
from modelnet.market.exploration import BOUND_ASKED, EXPLORED
from modelnet.messages import Beat, CapabilityCard, Contract, Offer, RunningAttempt, Selector, Task, WorkerCard
from tests.market.table import Table, one

NOW = 10.0
CONTRACT = Contract(capability="a.b")
BEST = BOUND_ASKED - EXPLORED
NONE: frozenset[str] = frozenset()


def name(n: int) -> str:
    return f"w{n:02}"


def offer(n: int, *, free: int = 2, price: int | None = None) -> Offer:
    """The lower its number, the cheaper a worker is."""
    price = 10 * n if price is None else price
    return Offer(worker=name(n), capability="a.b", price=price, p50_ms=100, p90_ms=200, free=free)


def market(count: int) -> Directory:
    directory = Directory(lost_after_s=3.0, now=0.0)
    offered = CapabilityCard(pattern="a.b", contract=CONTRACT.digest)
    for n in range(count):
        card = WorkerCard(worker=name(n), capabilities=(offered,), slots=2, instance="i", labels={"odd": str(n % 2)})
        directory.learn_card(card, NOW)
        directory.hear_offer(offer(n), 0.0)
    return directory


def invited(directory: Directory, auction: str = "x", *, caller: str | None = None, **fields: Any) -> list[str]:
    task = Task(capability="a.b", input={}, **fields)
    asked = directory.invite(task, auction, NONE, NOW, caller=caller)
    names = [candidate.worker for candidate in asked.candidates]
    assert len(names) == len(set(names)) <= BOUND_ASKED or asked.everybody
    return names


def test_in_a_small_market_all_are_asked() -> None:
    directory = market(BOUND_ASKED)
    assert len(invited(directory)) == BOUND_ASKED
    assert directory.invite(Task(capability="a.b", input={}), "x", NONE, NOW).everybody


def test_a_large_market_asks_the_best_and_a_few_others() -> None:
    directory, asked = market(60), Counter[str]()
    for n in range(400):
        asked.update(invited(directory, f"auction{n}"))
    assert sum(asked.values()) == 400 * BOUND_ASKED
    assert [asked[name(n)] for n in range(BEST)] == [400] * BEST
    assert len(asked) == 60
    assert max(asked[name(n)] for n in range(BEST, 60)) < 100
    assert invited(directory, "one") == invited(directory, "one")
    assert not directory.invite(Task(capability="a.b", input={}), "x", NONE, NOW).everybody


def test_who_becomes_cheap_is_asked() -> None:
    directory = market(60)
    directory.hear_offer(offer(59, price=0), 0.0)
    assert all(name(59) in invited(directory, f"auction{n}") for n in range(50))


@pytest.mark.parametrize("how", ["refusal", "offer", "beat"])
def test_who_is_full_is_left_out_until_it_has_room(how: str) -> None:
    directory = market(60)
    invited(directory)
    running = tuple(RunningAttempt(tenant="t", task=f"k{n}", attempt=1) for n in range(2))
    for n in range(BEST):
        if how == "refusal":
            directory.hear_refusal(name(n))
        elif how == "offer":
            directory.hear_offer(offer(n, free=0), 0.0)
        else:
            directory.hear(Beat(worker=name(n), instance="i", slots=2, running=running), NOW)
    assert set(invited(directory)) == {name(n) for n in range(BEST, 60)}
    directory.hear_offer(offer(0), 0.0)
    directory.hear(Beat(worker=name(1), instance="i", slots=2, running=running[:1]), NOW)
    assert {name(0), name(1)} <= set(invited(directory))


def test_where_all_are_full_as_many_are_asked_anyway() -> None:
    directory = market(60)
    invited(directory)
    for n in range(60):
        directory.hear_refusal(name(n))
    assert len(invited(directory)) == BOUND_ASKED


def test_the_worker_whose_slot_became_free_is_asked() -> None:
    directory = market(60)
    assert all(name(59) in invited(directory, f"auction{n}", caller=name(59)) for n in range(50))
    only_odd = Selector(labels={"odd": "1"})
    names = invited(directory, caller=name(59), require=only_odd)
    assert name(59) in names
    assert all(int(worker[1:]) % 2 for worker in names)


def test_a_choosy_task_has_a_shortlist_of_those_it_wants() -> None:
    directory = market(100)
    wanted = Selector(labels={"odd": "1"})
    names = invited(directory, require=wanted)
    assert len(names) == BOUND_ASKED
    assert {name(n) for n in range(1, 2 * BEST, 2)} <= set(names)
    assert invited(directory, require=Selector(worker=name(99))) == [name(99)]


def test_who_is_gone_is_not_asked_and_who_comes_is() -> None:
    directory = market(60)
    invited(directory)
    directory.forget(name(0))
    assert name(0) not in invited(directory)
    offered = CapabilityCard(pattern="a.>", contract=CONTRACT.digest)
    directory.learn_card(WorkerCard(worker="new", capabilities=(offered,), instance="i"), NOW)
    assert any("new" in invited(directory, f"auction{n}") for n in range(200)), "it has offered nothing yet"
    directory.hear_offer(Offer(worker="new", capability="a.>", price=0, p50_ms=1, p90_ms=2, free=1), 0.0)
    assert "new" in invited(directory)
    directory.hear_offer(Offer(worker="stranger", capability="a.b", price=0, p50_ms=1, p90_ms=2, free=1), 0.0)
    assert "stranger" not in invited(directory)


def test_who_does_not_know_them_yet_asks_all() -> None:
    directory = market(60)
    asked = directory.invite(Task(capability="a.b", input={}), "x", NONE, 1.0)
    assert asked.everybody
    assert (len(asked.candidates), asked.settled) == (60, False)


# ---------------------------------------------------------------------- in a negotiation


def test_the_few_are_asked_by_name() -> None:
    table = Table("w", "v")
    assert one(table.begin(), AskForBids).to == ()
    table = Table("w", "v")
    table.everybody = False
    assert one(table.begin(), AskForBids).to == ("w", "v")


def test_where_the_few_are_full_others_are_asked_a_few_times() -> None:
    table = Table("w")
    table.everybody = False
    table.begin()
    assert one(table.refuse("w"), AskForBids).to == ("w",)
    one(table.refuse("w"), AskForBids)
    assert one(table.refuse("w"), Hold).reason == "busy"
    assert table.state is State.WAITING
    table.wake()
    one(table.refuse("w"), AskForBids)
