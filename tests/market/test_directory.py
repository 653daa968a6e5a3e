"""The directory: who lives, what they can do, and who could take a task."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet.market import Candidate, Directory, Offered, Outcome, TrackRecords
from modelnet.market.directory import OFFER_FRESH_S
from modelnet.market.reputation import UNCLAIMED_QUALITY
from modelnet.messages import (
    Beat,
    CapabilityCard,
    Contract,
    Offer,
    RunningAttempt,
    Selector,
    Task,
    WorkerCard,
    digest_of,
)

DIGEST = digest_of("a contract")
OTHER = digest_of("another")
NONE: frozenset[str] = frozenset()


def card(worker: str, *patterns: str, **given: Any) -> WorkerCard:
    each: dict[str, Any] = {key: given.pop(key) for key in ("contract", "model", "quality") if key in given}
    facts: dict[str, Any] = {"contract": DIGEST, **each}
    capabilities = tuple(CapabilityCard(pattern=pattern, **facts) for pattern in patterns)
    return WorkerCard(**{"worker": worker, "capabilities": capabilities, "instance": "i1", **given})


def beat(worker: str, *, instance: str = "i1", **given: Any) -> Beat:
    return Beat(**{"worker": worker, "instance": instance, "slots": 2, **given})


def task(capability: str = "text.generate", **given: Any) -> Task:
    return Task(capability=capability, input={}, **given)


def found(directory: Directory, wanted: Task, excluded: frozenset[str] = NONE) -> list[str]:
    return sorted(candidate.worker for candidate in directory.candidates(wanted, excluded))


@pytest.fixture
def directory() -> Directory:
    directory = Directory(lost_after_s=3.0, now=0.0)
    directory.learn_card(card("w", "text.generate", model="llama", owner="me", labels={"zone": "eu"}), 0.0)
    directory.learn_card(card("v", "text.>", model="qwen"), 0.0)
    directory.learn_card(card("u", "math.sum"), 0.0)
    return directory


def test_one_of_several_names_will_do(directory: Directory) -> None:
    for selector, workers in (
        (Selector(worker=("w", "x")), ["w"]),
        (Selector(worker=("w", "v")), ["v", "w"]),
        (Selector(owner=("me", "you"), model=("llama", "qwen")), ["w"]),
        (Selector(model=()), []),
    ):
        assert found(directory, task(require=selector)) == (workers if selector else ["v", "w"])
    assert found(directory, task(exclude=Selector(worker=("w", "v")))) == []
    assert found(directory, task(exclude=Selector(owner=("me", "you")))) == ["v"]


def test_only_fresh_offers_with_a_price_and_a_free_slot_stand(directory: Directory) -> None:
    wanted = task()

    def standing(now: float) -> list[tuple[str, int | None]]:
        offers = directory.standing(wanted, directory.candidates(wanted, NONE), now)
        return [(candidate.worker, offer.bid.price) for candidate, offer in offers]

    def offer(worker: str, capability: str, price: int | None = 5, free: int = 1) -> Offer:
        return Offer(worker=worker, capability=capability, price=price, p50_ms=1, p90_ms=2, free=free)

    assert standing(1.0) == []
    directory.hear_offer(offer("w", "text.generate"), 1.0)
    directory.hear_offer(offer("v", "text.>", price=None), 1.0)
    directory.hear_offer(offer("u", "text.generate"), 1.0)  # not on its card
    directory.hear_offer(offer("x", "text.generate"), 1.0)  # nobody knows it
    assert standing(1.0) == [("w", 5)]
    assert standing(1.0 + OFFER_FRESH_S) == [("w", 5)]
    assert standing(1.1 + OFFER_FRESH_S) == []
    directory.hear_offer(offer("w", "text.generate", free=0), 4.0)
    assert standing(4.0) == []
    directory.hear_offer(offer("v", "text.>", price=3, free=99), 4.0)
    assert standing(4.0) == [("v", 3)]
    assert directory.free("text.generate") == (2, 2)  # as of the last beats


def test_a_standing_offer_is_scored_by_what_is_known_of_its_worker_now() -> None:
    records = TrackRecords()
    directory = Directory(lost_after_s=3.0, now=0.0, records=records)
    directory.learn_card(card("w", "a.b"), 0.0)
    wanted = task(capability="a.b")

    def offer(p50_ms: float) -> None:
        directory.hear_offer(Offer(worker="w", capability="a.b", price=1, p50_ms=p50_ms, p90_ms=200, free=9), 1.0)

    def seen() -> Offered:
        ((_, offered),) = directory.standing(wanted, directory.candidates(wanted, NONE), 1.0)
        return offered

    offer(100)
    first = seen()
    assert seen() is first, "nothing has changed"
    assert first.times_ms == (100, 200)
    for number in range(50):
        records.learn(Outcome("w", "a.b", f"k{number}", 1, "contract", True, 10, 10, (100, 200), 300.0), 1.0)
    learned = seen()
    assert learned.times_ms is not None
    assert learned.times_ms[0] == pytest.approx(300, rel=0.1)
    assert learned.quality > first.quality
    directory.hear(beat("w", running=(RunningAttempt(tenant="t", task="k", attempt=1),)), 1.0)
    loaded = seen()
    assert loaded.times_ms != learned.times_ms, "of another class of load"
    offer(50)
    assert seen().bid.p50_ms == 50
    directory.learn_card(card("v", "a.b"), 1.0)
    assert found(directory, wanted) == ["v", "w"]
    directory.forget("w")
    assert found(directory, wanted) == ["v"]


def test_offers_are_believed_for_two_beats_however_rare() -> None:
    directory = Directory(lost_after_s=9.0, now=0.0)
    directory.learn_card(card("w", "text.generate"), 0.0)
    directory.hear_offer(Offer(worker="w", capability="text.generate", price=1, p50_ms=1, p90_ms=2, free=1), 0.0)
    ages = (2.6, 6.0, 6.1)
    assert [bool(directory.standing(task(), directory.candidates(task(), NONE), age)) for age in ages] == [1, 1, 0]


def test_it_is_settled_after_two_beats(directory: Directory) -> None:
    assert [directory.settled(now) for now in (0.0, 1.9, 2.0, 9.0)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("capability", "workers"),
    [
        ("text.generate", ["v", "w"]),
        ("text.generate.medical", ["v"]),  # a more special one than w serves
        ("text", []),
        ("math.sum", ["u"]),
        ("mathematics.sum", []),
    ],
)
def test_who_serves_a_capability(directory: Directory, capability: str, workers: list[str]) -> None:
    assert found(directory, task(capability)) == workers
    assert [w for w in "uvw" if directory.serves(w, capability)] == workers


def test_the_most_exact_of_a_workers_capabilities_counts() -> None:
    directory = Directory(lost_after_s=3.0, now=0.0)
    capabilities = tuple(
        CapabilityCard(pattern=pattern, contract=digest_of(pattern), quality=quality)
        for pattern, quality in ((">", 0.1), ("a.>", 0.2), ("a.b.>", 0.3), ("a.b.c", 0.9))
    )
    directory.learn_card(WorkerCard(worker="w", capabilities=capabilities, instance="i"), 0.0)
    for name, pattern in (("z", ">"), ("a.z", "a.>"), ("a.b.z", "a.b.>"), ("a.b.c", "a.b.c"), ("a.b.c.d", "a.b.>")):
        (candidate,) = directory.candidates(task(name), NONE)
        assert candidate.contract == digest_of(pattern)


def test_the_silent_are_lost(directory: Directory) -> None:
    directory.hear(beat("w"), 2.0)
    assert sorted(directory.lost(3.1)) == ["u", "v"]
    assert directory.lost(3.1) == []
    assert [card.worker for card in directory.live()] == ["w"]
    assert not directory.serves("v", "text.generate")
    assert directory.unknown(beat("v"))
    assert directory.lost(5.1) == ["w"]


def test_a_worker_that_leaves_is_forgotten(directory: Directory) -> None:
    directory.forget("w")
    directory.forget("w")
    directory.forget("never-heard-of")
    assert found(directory, task()) == ["v"]


def test_another_process_under_the_same_id_must_be_met_first(directory: Directory) -> None:
    assert not directory.unknown(beat("w"))
    assert directory.unknown(beat("w", instance="i2"))
    directory.hear(beat("w", instance="i2"), 2.9)  # of one that is not known: keeps nobody alive
    assert "w" in directory.lost(3.1)
    directory.learn_card(card("w", "math.sum", instance="i2"), 3.2)
    assert not directory.unknown(beat("w", instance="i2"))
    assert directory.unknown(beat("w", instance="i1"))
    assert directory.serves("w", "math.sum")
    assert not directory.serves("w", "text.generate")


def test_a_draining_worker_is_no_candidate(directory: Directory) -> None:
    directory.hear(beat("w", draining=True), 1.0)
    assert found(directory, task()) == ["v"]
    assert directory.serves("w", "text.generate")
    directory.hear(beat("w"), 2.0)
    assert found(directory, task()) == ["v", "w"]


def test_a_busy_worker_is_a_candidate(directory: Directory) -> None:
    running = tuple(RunningAttempt(tenant="t", task=f"k{n}", attempt=1) for n in range(5))
    directory.hear(beat("w", running=running), 1.0)
    assert found(directory, task()) == ["v", "w"]


def test_the_excluded_are_left_out(directory: Directory) -> None:
    assert found(directory, task(), frozenset("w")) == ["v"]


@pytest.mark.parametrize(
    ("selectors", "workers"),
    [
        ({"require": Selector(worker="w")}, ["w"]),
        ({"require": Selector(owner="me", model="llama", labels={"zone": "eu"})}, ["w"]),
        ({"require": Selector(owner="me", model="qwen")}, []),
        ({"require": Selector(labels={"zone": "us"})}, []),
        ({"exclude": Selector(model="qwen")}, ["w"]),
        ({"exclude": Selector(owner="me", model="qwen")}, []),  # either rules out
        ({"exclude": Selector(labels={"zone": "eu"})}, ["v"]),
        ({"require": Selector(model="llama"), "exclude": Selector(worker="w")}, []),
        ({"contract": DIGEST}, ["v", "w"]),
        ({"contract": OTHER}, []),
    ],
)
def test_require_exclude_and_contract(directory: Directory, selectors: dict[str, Any], workers: list[str]) -> None:
    assert found(directory, task(**selectors)) == workers


def test_a_contract_that_the_input_violates_rules_out(directory: Directory) -> None:
    directory.learn_card(card("x", "text.generate", contract=OTHER), 0.0)
    accepted = directory.candidates(task(), NONE, lambda digest: digest == OTHER)
    assert [candidate.worker for candidate in accepted] == ["x"]


def test_claims_of_quality_count_but_are_not_believed_whole() -> None:
    def known(claim: float | None) -> Candidate:
        directory = Directory(lost_after_s=3.0, now=0.0)
        directory.learn_card(card("w", "a.b", quality=claim), 0.0)
        (candidate,) = directory.candidates(task(capability="a.b"), NONE)
        return candidate

    assert known(None).mean_quality == pytest.approx(UNCLAIMED_QUALITY)
    claimed = [known(claim / 10).mean_quality or 0.0 for claim in range(11)]
    assert claimed == sorted(claimed)
    assert claimed[0] > 0
    assert claimed[10] < 1
    assert known(1.0).quality < claimed[10]  # it is reckoned with less, as long as nothing proves the claim


def test_outcomes_outweigh_the_claim() -> None:
    records = TrackRecords()
    directory = Directory(lost_after_s=3.0, now=0.0, records=records)
    directory.learn_card(card("w", "a.b", quality=1.0), 0.0)
    for n in range(40):
        records.learn(Outcome("w", "a.b", f"k{n}", 1, "checker", n % 2 == 0, 10), 0.0)
    (candidate,) = directory.candidates(task(capability="a.b"), NONE)
    assert candidate.cases == pytest.approx(40)
    assert candidate.mean_quality == pytest.approx(0.5, abs=0.05)
    assert candidate.quality < (candidate.mean_quality or 0.0)


def test_contracts_outlive_their_workers() -> None:
    directory = Directory(lost_after_s=3.0, now=0.0)
    assert not directory.knows("a.b")
    old, new = (Contract(capability="a.>", input={"title": title}) for title in ("old", "new"))
    directory.learn_contracts([old, new])
    assert directory.knows("a.b")
    assert not directory.knows("b")
    assert directory.capabilities() == ["a.>"]
    assert directory.contract(old.digest) == old
    assert directory.contract(OTHER) is None
    assert {c.digest for c in directory.contracts_for("a.b")} == {old.digest, new.digest}
    directory.learn_card(card("w", "a.b", contract=new.digest), 0.0)
    assert [c.digest for c in directory.contracts_for("a.b")] == [new.digest]
    directory.forget("w")
    assert {c.digest for c in directory.contracts_for("a.b")} == {old.digest, new.digest}
    third = Contract(capability="a.>", input={"title": "third"})
    directory.learn_contracts([third])
    assert third in directory.contracts_for("a.b")


def test_a_contract_is_that_of_each_capability_that_keeps_it() -> None:
    directory = Directory(lost_after_s=3.0, now=0.0)
    general, special = (Contract(capability=name, input={"title": "same"}) for name in ("a", "a.b"))
    assert general.digest == special.digest
    directory.learn_contracts([general, special])
    directory.learn_contracts([general, special])
    assert directory.capabilities() == ["a", "a.b"]
    for capability in ("a", "a.b"):
        assert directory.knows(capability)
        assert [one.digest for one in directory.contracts_for(capability)] == [general.digest]
