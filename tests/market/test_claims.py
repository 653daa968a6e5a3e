"""Awards count against a worker until it has shown that it knows of them."""

from __future__ import annotations

from modelnet.market import Claims, Directory, State
from modelnet.market.commands import Hold, SendAward, TellClaim
from modelnet.messages import CapabilityCard, Claim, Contract, WorkerCard
from tests.market.table import Table, award_to, one, some, transcript

OPENED = 10.0
ONE, TWO = ("t", "k1", 1), ("t", "k2", 1)


def test_an_award_counts_until_it_was_confirmed_before_the_worker_was_asked() -> None:
    claims = Claims(2.0)
    claims.add("w", ONE, 9.0)
    assert claims.since("w", OPENED, 10.1) == 1
    claims.confirm("w", ONE, 10.2)
    assert claims.since("w", OPENED, 10.3) == 1, "the bid may have been made before"
    assert claims.since("w", 10.25, 10.3) == 0, "the worker knew when it was asked"
    assert claims.since("v", OPENED, 10.1) == 0


def test_another_negotiators_award_counts_in_auctions_that_were_open() -> None:
    claims = Claims(2.0)
    claims.hear("w", ONE, 500.0, 10.1)
    assert claims.since("w", OPENED, 10.2) == 1
    assert claims.since("w", 10.15, 10.2) == 0
    assert claims.since("w", OPENED, 10.7) == 0, "by its 90th percentile it is over"


def test_what_is_done_or_declined_counts_no_more() -> None:
    claims = Claims(2.0)
    claims.add("w", ONE, 10.1)
    claims.add("w", TWO, 10.1)
    claims.confirm("w", TWO, 10.2)
    assert claims.since("w", OPENED, 10.3) == 2
    claims.drop("w", ONE)
    assert claims.since("w", OPENED, 10.3) == 1
    claims.drop("w", TWO)
    assert claims.since("w", OPENED, 10.3) == 0
    claims.drop("nobody", ONE)
    claims.confirm("w", ONE, 10.4)
    assert claims.since("w", OPENED, 10.5) == 0


def test_none_counts_for_long_and_none_is_kept_for_long() -> None:
    claims = Claims(2.0)
    for n in range(100):
        claims.add("w", ("t", f"silent{n}", 1), n / 10)
        claims.hear("w", ("t", f"heard{n}", 1), 1e9, n / 10)
    assert claims.since("w", 0.0, 9.95) == 40
    claimed = claims._claimed["w"]
    assert len(claimed.unanswered) + len(claimed.known) < 50
    claims.forget("w")
    assert not claims._claimed


def test_they_leave_room_while_fewer_count_than_are_free() -> None:
    claims = Claims(2.0)
    assert claims.leave_room("w", 1, OPENED, 10.1)
    assert not claims.leave_room("w", 0, OPENED, 10.1)
    claims.add("w", ONE, 10.0)
    claims.add("w", TWO, 10.0)
    assert not claims.leave_room("w", 2, OPENED, 10.1)
    assert claims.leave_room("w", 3, OPENED, 10.1)
    claims.confirm("w", ONE, 10.1)
    assert claims.leave_room("w", 2, 10.2, 10.2), "the worker knew"
    assert not claims.leave_room("w", 1, 10.2, 10.2)
    assert claims.leave_room("w", 1, 10.2, 12.0), "it counts no more"


def test_only_living_workers_have_claims() -> None:
    directory = Directory(lost_after_s=3.0, now=0.0)
    claim = Claim(tenant="t", task="k", attempt=1, p90_ms=1000.0)

    def count() -> int:
        directory.hear_claim("w", claim, 2.0)
        return directory.claims.since("w", 1.0, 2.1)

    assert count() == 0, "nobody of this name"
    offered = CapabilityCard(pattern="a.b", contract=Contract(capability="a.b").digest)
    card = WorkerCard(worker="w", capabilities=(offered,), instance="i1")
    directory.learn_card(card, 2.0)
    assert count() == 1
    directory.learn_card(card.model_copy(update={"instance": "i2"}), 2.0)
    assert directory.claims.since("w", 1.0, 2.1) == 0, "another process: it runs nothing"
    assert count() == 1
    assert directory.lost(9.0) == ["w"]
    assert directory.claims.since("w", 1.0, 2.1) == 0


# ---------------------------------------------------------------------- in a negotiation


def claimed(table: Table, worker: str, task: str = "other") -> None:
    """Another negotiator awards to the worker."""
    table.now += 0.01
    table.claims.hear(worker, ("t", task, 1), 1000.0, table.now)


def test_a_bidder_whose_slot_was_taken_meanwhile_counts_as_one_that_refused() -> None:
    table = Table("w", "v")
    table.begin()
    claimed(table, "w")
    table.bid("w", 10)
    commands = table.bid("v", 20)
    assert award_to(commands) == ("v", 1)
    assert transcript(commands).refusals == {"w": "full"}
    assert [bid.worker for bid in transcript(commands).bids] == ["v"]


def test_a_bidder_with_more_free_slots_is_not_full() -> None:
    table = Table("w", "v")
    table.begin()
    claimed(table, "w")
    table.bid("w", 10, free=2)
    assert award_to(table.bid("v", 20)) == ("w", 1)


def test_what_was_known_before_it_was_asked_does_not_count() -> None:
    table = Table("w", "v")
    claimed(table, "w")
    table.begin()
    table.bid("w", 10)
    assert award_to(table.bid("v", 20)) == ("w", 1)


def test_where_all_are_full_the_task_waits() -> None:
    table = Table("w")
    table.begin()
    claimed(table, "w")
    assert one(table.bid("w"), Hold).reason == "busy"
    assert table.state is State.WAITING
    table.wake()
    assert award_to(table.bid("w")) == ("w", 1)


def test_a_runner_up_that_is_full_by_then_is_passed_over() -> None:
    table = Table("w", "v", "u")
    table.begin()
    for n, worker in enumerate(("w", "v", "u")):
        commands = table.bid(worker, 10 * (n + 1))
    assert award_to(commands) == ("w", 1)
    claimed(table, "v")
    assert one(table.decline(), SendAward).worker == "u"
    claimed(table, "u")
    assert one(table.decline(2), Hold).reason == "busy"


def test_an_award_is_told_behind_it() -> None:
    table = Table("w")
    table.begin()
    commands = table.bid("w")
    told = one(commands, TellClaim)
    assert (told.worker, told.claim.task, told.claim.tenant, told.claim.attempt) == ("w", "k", "t", 1)
    assert told.claim.p90_ms == 20
    assert Claim.decode(told.claim.encode()) == told.claim
    kinds = [type(command) for command in commands]
    assert kinds.index(SendAward) < kinds.index(TellClaim)


def test_its_own_award_counts_until_it_is_declined_or_done() -> None:
    table = Table("w")
    table.begin()
    table.now += 0.01
    table.bid("w")
    assert table.claims.since("w", 100.0, table.now) == 1
    table.confirm()
    assert table.claims.since("w", 100.0, table.now) == 1
    table.done("w")
    assert table.claims.since("w", 100.0, table.now) == 0

    table = Table("w", "v")
    table.begin()
    table.now += 0.01
    table.bid("v", 20)
    table.bid("w", 10)
    table.decline()
    assert table.claims.since("w", 100.0, table.now) == 0
    assert table.claims.since("v", 100.0, table.now) == 1
    assert some(table.confirm(2), Hold) == []
