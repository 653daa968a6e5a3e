"""Every subject of the network, by name. The sender's id stands in each subject that carries authority."""

from __future__ import annotations

from typing import NamedTuple

from modelnet.messages import Task

BUCKETS = 8
"""Tenants are spread over this many queues of each priority class."""

CLASSES = 3

ROLL_CALL = "roll"

LANE_CHARACTERS = 6


def lane(task: str) -> str:
    """The end of a task's id. Whoever gives all tasks the same hears them with one subscription; `*` for all lanes."""
    return task[-LANE_CHARACTERS:]


def task(task: Task) -> str:
    """Where a client publishes a task. The stream inserts the tenant's bucket behind the class."""
    return f"task.{task.priority_class}.{task.tenant}.{task.id}.{task.capability}"


def queued_task(tenant: str, task: str) -> str:
    """A task as the stream stores it, whatever its class, bucket and capability."""
    return f"task.*.*.{tenant}.{task}.>"


def capability(name: str) -> str:
    """Requests for bids for a capability, or a prefix of capabilities."""
    return f"cap.{name}"


def bid_request(worker: str) -> str:
    """Requests for bids to one worker, where there are too many to ask them all."""
    return f"worker.{worker}.cfp"


def bids(negotiator: str, auction: str) -> str:
    """Where the bids of an auction go, each followed by its bidder's id."""
    return f"bid.{negotiator}.{auction}"


def award(worker: str) -> str:
    """Awards to a worker; request and reply."""
    return f"worker.{worker}.award"


def claim(negotiator: str, worker: str) -> str:
    """Where a negotiator tells the others of its awards to a worker; `*` for all negotiators, or all workers."""
    return f"claim.{negotiator}.{worker}"


def negotiator_beat(negotiator: str) -> str:
    """A negotiator's beats, for the others; `*` for all of them."""
    return f"negotiator.{negotiator}"


def cancel_attempt(worker: str) -> str:
    """Cancels an attempt of a worker."""
    return f"worker.{worker}.cancel"


def adopt(worker: str) -> str:
    """Asks a worker whether it still runs an attempt; request and reply."""
    return f"worker.{worker}.adopt"


def query(worker: str) -> str:
    """Asks a worker for a beat; nobody answers for a worker that is gone."""
    return f"worker.{worker}.query"


def drain(worker: str) -> str:
    """Asks a worker to finish and stop."""
    return f"worker.{worker}.drain"


def alive(client: str) -> str:
    """Asks whether a client is still there that wants its tasks cancelled when it is gone."""
    return f"client.{client}.alive"


def beat(worker: str) -> str:
    """A worker's beats."""
    return f"beat.{worker}"


def offer(pattern: str, worker: str) -> str:
    """A worker's standing offer; the prefix wildcard of a pattern is spelled `_all`, since `>` is no literal."""
    return f"offer.{pattern.replace('>', '_all')}.{worker}"


def done(negotiator: str, task: str, worker: str, attempt: int) -> str:
    """Where a worker says that an attempt has ended."""
    return f"done.{negotiator}.{task}.{worker}.{attempt}"


def result(tenant: str, task: str, worker: str, attempt: int | str) -> str:
    """The events of one attempt."""
    return f"result.{tenant}.{lane(task)}.{task}.{worker}.{attempt}"


def journal(tenant: str, task: str, entry: str) -> str:
    """Where an entry of a task's journal is written: `status`, `cancel` or `final`."""
    return f"journal.{tenant}.{lane(task)}.{task}.{entry}"


def journal_of(tenant: str, task: str) -> str:
    """All entries of a task's journal: the subject that the fence compares on."""
    return f"journal.{tenant}.{lane(task)}.{task}.*"


def stream_of(tenant: str, task: str) -> str:
    """All that a reader of a task sees live: events as published, journal entries once they are accepted."""
    return f"result.{tenant}.{lane(task)}.{task}.>"


def streams_on(tenant: str, lane: str) -> str:
    """All that a reader of a lane's tasks sees."""
    return f"result.{tenant}.{lane}.>"


def events_of(tenant: str, task: str) -> str:
    """The events of all attempts at a task, and no journal entries; `*` for every task."""
    return result(tenant, task, "*", "*")


def accepted(tenant: str, task: str, entry: str) -> str:
    """Where the server sends a journal entry once it is stored: `status`, `cancel` or `final`."""
    return f"result.{tenant}.{lane(task)}.{task}.{entry}"


def news_of(tenant: str, task: str) -> str:
    """A task's journal entries once they are accepted, and no events."""
    return accepted(tenant, task, "*")


def audit(tenant: str, task: str) -> str:
    """The transcripts of a task's auctions."""
    return f"audit.{tenant}.{task}"


def metering(tenant: str) -> str:
    """Where the catalogue keeps whether a tenant is charged; `*` for every tenant."""
    return f"$KV.CATALOGUE.metering.{tenant}"


PREFIX_SECRET = "$KV.CATALOGUE.secret.prefix"
"""Where the catalogue keeps what negotiators key prefix hashes with."""


class ResultAddress(NamedTuple):
    """A subject under `result.`, taken apart. `worker` is empty for a journal entry."""

    tenant: str
    task: str
    worker: str
    attempt: int

    @classmethod
    def parse(cls, subject: str) -> ResultAddress:
        """The parts of `result.<tenant>.<lane>.<task>.<worker>.<attempt>`, or of `….<task>.<entry>`."""
        parts = subject.split(".")
        if len(parts) == 6 and parts[5].isdigit():
            return cls(parts[1], parts[3], parts[4], int(parts[5]))
        return cls(parts[1], parts[3], "", 0)
