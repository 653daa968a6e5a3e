"""The network as somebody sees it who watches: workers, auctions, tasks, rates, the market's last minutes. Pure.

Hears messages, holds plain rows of bounded number and size, and says what changed since a version. Nothing in it holds
an input or an output. Times are seconds since the epoch and are handed in.

Where there is too much to show, some of it is shown: rows of tasks and auctions are begun at most `ADMITTED_S` times a
second, and those begun are followed to their end. The counters are the streams' own and always exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modelnet.messages import (
    Beat,
    Final,
    JournalEntry,
    Offer,
    Planned,
    Transcript,
    WorkerCard,
    matches,
    part_id,
)

from .counters import Counters, Rates
from .history import BIN_S, History
from .rows import auction_row, cut, entry_fields, rounded, served_row
from .table import Changes, Row, Table

__all__ = ["ADMITTED_S", "View", "task_key"]

ADMITTED_S = 20.0
"""Tasks whose rows are begun in a second, at most; in a burst twice as many."""

WORKERS = 2000
TASKS = 300
AUCTIONS = 60
ACCOUNTS = 500

_CAPABILITIES = 16
_REMEMBERED_S = 20.0
"""A worker that is lost or has left is shown for so long."""

_SAMPLED_S = 10.0
"""So long after a task that was not shown it is said that some are not."""

_ENDED = ("completed", "failed", "expired", "cancelled")


def task_key(tenant: str, task: str) -> str:
    """The key of a task's row."""
    return f"{tenant}/{task}"


class View:
    """What a watcher has heard. `version` counts its ticks: what was changed since one is what is newer than it."""

    def __init__(self, *, lost_after_s: float, now: float) -> None:
        """`lost_after_s`: how long a worker may be silent before it counts as lost."""
        self.version = 2  # 0 is a viewer that has seen nothing, and what has ended is one less
        self.began = now
        self._lost_after_s = lost_after_s
        self._workers = Table(WORKERS, expendable=lambda row: row["state"] in ("lost", "left"))
        self._pulses = Table(WORKERS)
        self._tasks = Table(TASKS, expendable=lambda row: row["status"] in _ENDED)
        self._auctions = Table(AUCTIONS)
        self._history = History()
        self._rates = Rates()
        self._seen: dict[str, float] = {}
        self._gone_at: dict[str, float] = {}
        self._instances: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._heard = {"auctions": 0, "entries": 0}
        self._heard_then: list[tuple[float, dict[str, int]]] = []
        self._credit, self._credit_at = 2 * ADMITTED_S, now
        self._now, self._missed_rows, self._missed_at = now, 0, float("-inf")
        self._notes: dict[str, str] = {}
        self._ledger: Row | None = None
        self._ledger_changed = 0
        self._frames: dict[int, Row] = {}

    # ------------------------------------------------------------------ workers

    def card(self, card: WorkerCard, now: float) -> None:
        """The card of a worker that is heard."""
        served = [served_row(one) for one in card.capabilities[:_CAPABILITIES]]
        had = self._workers.get(card.worker)
        if had is not None and self._instances.get(card.worker) == card.instance:
            known = {one["pattern"]: one for one in had["capabilities"]}
            served = [{**known.get(one["pattern"], {}), **one} for one in served]
        self._instances[card.worker] = card.instance
        fields = {
            "id": card.worker,
            "owner": card.owner,
            "slots": card.slots,
            "software": cut(card.software, 80),
            "labels": {cut(key, 40): cut(value, 40) for key, value in list(card.labels.items())[:8]},
            "capabilities": served,
            "more_capabilities": max(len(card.capabilities) - _CAPABILITIES, 0),
        }
        if had is None or had["state"] == "left":
            fields |= {"state": "live", "since": now}
            self._gone_at.pop(card.worker, None)
        self._workers.put(card.worker, fields, self.version)
        self._seen[card.worker] = now
        if len(self._instances) > len(self._workers):  # the table was full
            for worker in [worker for worker in self._instances if worker not in self._workers]:
                self._forget(worker)

    def unknown(self, beat: Beat) -> bool:
        """Whether the card of a beat's worker must be looked up: it is new, or another process has its id."""
        return self._instances.get(beat.worker) != beat.instance

    def beat(self, beat: Beat, now: float) -> None:
        """A worker's beat."""
        row = self._workers.get(beat.worker)
        if row is None or row["state"] == "left":  # it said its last: what comes after that was on its way
            return
        state = "left" if beat.leaving else "draining" if beat.draining else "live"
        self._state(beat.worker, state, now)
        self._seen[beat.worker] = now
        running = len(beat.running) - beat.queued
        self._pulse(beat.worker, running=running, queued=beat.queued, free=beat.free)

    def offer(self, offer: Offer) -> None:
        """A worker's standing offer."""
        row = self._workers.get(offer.worker)
        if row is None:
            return
        told = {"p50_ms": rounded(offer.p50_ms), "p90_ms": rounded(offer.p90_ms)}
        if offer.price is not None:
            told["price"] = offer.price
        self._served(row, offer.capability, told)

    def record(self, worker: str, capability: str, quality: float, mean: float, cases: float) -> None:
        """What the reputation book knows of a worker: bound and mean of its quality, and outcomes behind them."""
        row = self._workers.get(worker)
        if row is None:
            return
        known = {"quality": round(quality, 3), "mean": round(mean, 3), "cases": round(cases, 1)}
        best = max(
            (one["pattern"] for one in row["capabilities"] if matches(one["pattern"], capability)),
            key=len,
            default=None,
        )
        if best is not None:
            self._served(row, best, known)

    def excuse(self, pause_s: float) -> None:
        """The watcher itself was deaf for a while: nobody's silence in that time counts."""
        for worker in self._seen:
            self._seen[worker] += pause_s

    @property
    def heard_of(self) -> list[str]:
        """Workers that are shown."""
        return list(self._workers)

    def _served(self, row: Row, pattern: str, told: Mapping[str, Any]) -> None:
        changed = [{**one, **told} if one["pattern"] == pattern else one for one in row["capabilities"]]
        self._workers.put(row["id"], {"capabilities": changed}, self.version)

    def _state(self, worker: str, state: str, now: float) -> None:
        row = self._workers.get(worker)
        if row is None or row["state"] == state:
            return
        self._workers.put(worker, {"state": state, "since": now}, self.version)
        if state in ("lost", "left"):
            self._gone_at[worker] = now
            self._pulse(worker, running=0, queued=0, free=0)
        else:
            self._gone_at.pop(worker, None)

    def _pulse(self, worker: str, **fields: int) -> None:
        had = self._pulses.get(worker) or {"id": worker, "running": 0, "queued": 0, "free": 0, "won": 0, "earned": 0}
        self._pulses.put(worker, {**had, **fields}, self.version)

    def _forget(self, worker: str) -> None:
        self._workers.drop(worker, self.version)
        self._pulses.drop(worker, self.version)
        self._seen.pop(worker, None)
        self._gone_at.pop(worker, None)
        self._instances.pop(worker, None)

    # ------------------------------------------------------------------ tasks

    def past(self, transcript: Transcript, at: float) -> None:
        """An auction that was held before this watcher came: a point of the market's history."""
        self._history.auction(transcript, at, self.version)

    def transcript(self, transcript: Transcript, at: float) -> None:
        """An auction that was held."""
        self._heard["auctions"] += 1
        self._history.auction(transcript, at, self.version)
        winner = transcript.winner
        if winner is not None and (had := self._pulses.get(winner)) is not None:
            self._pulse(winner, won=had["won"] + 1)
        self.show(transcript, at)

    def show(self, transcript: Transcript, at: float) -> None:
        """Show an auction among the last ones, if there is room for its task."""
        key = task_key(transcript.tenant, transcript.task)
        facts = {"capability": transcript.capability, "bids": len(transcript.bids)}
        if (parent := self._parents.get(key)) is not None:
            whole = task_key(transcript.tenant, parent)
            if whole in self._tasks:
                self._tasks.put(whole, {"capability": transcript.capability}, self.version)
        if self._row(key, transcript.tenant, transcript.task, at, facts):
            self._auctions.put(transcript.auction, auction_row(transcript, at), self.version)

    def entry(self, tenant: str, task: str, entry: JournalEntry, at: float) -> None:
        """A journal entry that was accepted."""
        self._heard["entries"] += 1
        if isinstance(entry, Final):
            self._history.ended(entry, at, self.version)
            if entry.worker and entry.price and (had := self._pulses.get(entry.worker)) is not None:
                self._pulse(entry.worker, earned=had["earned"] + entry.price)
        self._row(task_key(tenant, task), tenant, task, at, entry_fields(entry, at))
        if isinstance(entry, Planned) and task_key(tenant, task) in self._tasks:
            for number in range(1, entry.width + 1):
                self._parents[task_key(tenant, part_id(task, number))] = task
            while len(self._parents) > 4 * TASKS:
                del self._parents[next(iter(self._parents))]

    def unsettled(self, before: float, most: int) -> list[tuple[str, str]]:
        """Tenant and task of rows without an end, of which nothing was heard since then: the oldest first."""
        found = [row for row in self._tasks.rows() if row["status"] not in _ENDED and row["heard"] < before]
        return [(row["tenant"], row["task"]) for row in sorted(found, key=lambda row: float(row["heard"]))[:most]]

    def settle(self, tenant: str, task: str, entry: JournalEntry | None, now: float) -> None:
        """What the journal says of an unsettled row; None: nothing new."""
        told = entry_fields(entry, now) if entry is not None else {}
        key = task_key(tenant, task)
        if key in self._tasks:
            self._tasks.put(key, {**told, "heard": now}, self.version)

    def _row(self, key: str, tenant: str, task: str, at: float, told: Mapping[str, Any]) -> bool:
        """Tell a task's row something; whether there is one."""
        row = self._tasks.get(key)
        if row is None:
            if not self._admit(at):
                self._missed_rows, self._missed_at = self._missed_rows + 1, at
                return False
            row = {
                "key": key,
                "task": task,
                "tenant": tenant,
                "capability": "",
                "status": "auctioning",
                "worker": None,
                "price": None,
                "attempt": 0,
                "at": at,
                "total_ms": None,
                "note": "",
                "bids": 0,
                "parent": self._parents.get(key),
            }
        elif row["status"] in _ENDED and told.get("status") not in (None, *_ENDED):
            told = {}  # heard in another order than it was written
        self._tasks.put(key, {**row, **told, "heard": at}, self.version)
        return True

    def _admit(self, now: float) -> bool:
        self._credit = min(self._credit + max(now - self._credit_at, 0.0) * ADMITTED_S, 2 * ADMITTED_S)
        self._credit_at = max(self._credit_at, now)
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    # ------------------------------------------------------------------ all else

    def counters(self, counters: Counters, now: float) -> None:
        """What the streams' own counters say."""
        self._rates.read(counters, now)
        self._heard_then.append((now, dict(self._heard)))
        del self._heard_then[:-6]

    def accounts(self, accounts: Iterable[Row], minted: int) -> None:
        """The ledger's accounts."""
        ledger = {"accounts": list(accounts)[:ACCOUNTS], "minted": minted}
        if ledger != self._ledger:
            self._ledger, self._ledger_changed = ledger, self.version

    def note(self, what: str, text: str | None) -> None:
        """That something is away (`bus`, `ledger`, `reputation`, …) and why; None: it is there."""
        if text is None:
            self._notes.pop(what, None)
        else:
            self._notes[what] = cut(text, 300)

    def tick(self, now: float) -> None:
        """Time has passed: who is lost is told, who was lost long ago is forgotten. Begins a new version."""
        self._now = now
        self.version += 1
        self._frames.clear()
        for worker in [worker for worker, seen in self._seen.items() if now - seen > self._lost_after_s]:
            row = self._workers.get(worker)
            if row is not None and row["state"] in ("live", "draining"):
                self._state(worker, "lost", now)
        for worker in [worker for worker, at in self._gone_at.items() if now - at > _REMEMBERED_S]:
            self._forget(worker)

    # ------------------------------------------------------------------ what is seen

    def snapshot(self) -> Row:
        """All of it as it is now, as plain JSON values."""
        return self._frame(0)

    def frame(self, since: int) -> Row:
        """What changed since a version, as plain JSON values, and `head`, which is always whole.

        `version` is what to ask with next time. With `whole` it is everything, and what was known before is void. Made
        once a version, for however many ask.
        """
        found = self._frames.get(since)
        if found is None:
            found = self._frames[since] = self._frame(since)
        return found

    def _frame(self, since: int) -> Row:
        tables = {"workers": self._workers, "pulses": self._pulses, "auctions": self._auctions, "tasks": self._tasks}
        changes = {name: table.since(since) for name, table in tables.items()} if 0 < since <= self.version else {}
        whole = not changes or None in changes.values()
        if whole:
            since = 0
            changes = {name: Changes(table.rows(), []) for name, table in tables.items()}
        plain = {name: _plain(changed) for name, changed in changes.items() if changed is not None}
        return {
            "version": self.version - 1,
            "whole": whole,
            "head": self.head(),
            **plain,
            "history": {"bin_s": BIN_S, "bins": self._history.since(since)},
            "ledger": self._ledger if self._ledger_changed > since else None,
        }

    def head(self) -> Row:
        """Rates, totals, what is sampled, and who is away."""
        live = [row for row in self._workers.rows() if row["state"] in ("live", "draining")]
        pulses = [self._pulses.get(row["id"]) or {} for row in live]
        last = self._rates.last
        return {
            "workers": len(live),
            "lost": sum(row["state"] == "lost" for row in self._workers.rows()),
            "slots": sum(row["slots"] for row in live),
            "running": sum(pulse.get("running", 0) for pulse in pulses),
            "queued": sum(pulse.get("queued", 0) for pulse in pulses),
            "tasks_s": _tenth(self._rates.per_second("tasks")),
            "auctions_s": _tenth(self._rates.per_second("auctions")),
            "events_s": _tenth(self._rates.per_second("events")),
            "open": last.open if last else None,
            "auctions": last.auctions if last else None,
            "dead_letters": last.dead_letters if last else None,
            "sampled": {
                "auctions": self._share("auctions"),
                "rows": self._now - self._missed_at < _SAMPLED_S,
                "missed": self._missed_rows,
            },
            "notes": dict(self._notes),
        }

    def _share(self, kind: str) -> float:
        """Which part of the messages of a kind was heard in the last seconds: 1.0 for all."""
        grown, _ = self._rates.grown(kind)
        if not grown or len(self._heard_then) < 2:
            return 1.0
        heard = self._heard_then[-1][1][kind] - self._heard_then[0][1][kind]
        share = heard / grown
        return 1.0 if share > 0.95 else round(share, 2)


def _plain(changes: Changes) -> Row:
    return {"put": list(changes.put), "gone": changes.gone}


def _tenth(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 1)
