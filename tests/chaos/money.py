"""Money in a campaign: accounts before the load, a look at the books while faults strike, and at the end whether each
account has what the Finals say, to the micro-credit."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

import modelnet
from modelnet.bus.metering import announce_metering
from modelnet.errors import LedgerAway
from modelnet.messages import Final
from modelnet.store.ledger import MARGIN_S, Books, Ledger
from tests.chaos.custody import TaskKey
from tests.chaos.fleet import Fleet

__all__ = ["Bank", "Money", "expected_balances", "misbooked"]

RICH, TIGHT, OWNER = 1_000_000_000, 100_000, 3_000
"""Granted to each tenant but the last, to the last of several, and to each owner of workers. A task's budget is 1,000:
a tight tenant has room for a hundred at once, and for fewer with what it has paid."""

DEPOSIT = 150
"""What each worker without a history puts up, at most, for one task."""

SWEEP_S = 30.0
LOOK_S = 0.5


@dataclass(slots=True)
class Money:
    """What the books came to. Those in `must_be_zero` decide whether the campaign passed."""

    granted: int = 0
    looks: int = 0
    """How often the books were read while faults struck."""
    imbalances: list[str] = field(default_factory=list)
    overdrawn: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    """Accounts with holds or deposits after the sweep."""
    misbooked: list[str] = field(default_factory=list)
    """Tasks that were not settled as their Final says, and accounts that do not have what the Finals add up to."""
    paid: Counter[str] = field(default_factory=Counter)
    """Tasks that something was paid for, by the status of their Final."""
    moved: int = 0
    """Micro-credits from tenants to owners."""
    deposits: int = 0
    """Attempts that were settled by what they were worth."""
    forfeited: int = 0
    """Micro-credits from owners' deposits to tenants."""

    @property
    def must_be_zero(self) -> dict[str, int]:
        """By name, what may not be above zero."""
        return {
            "looks at books that do not balance": len(self.imbalances),
            "accounts overdrawn": len(self.overdrawn),
            "accounts with holds left over": len(self.left_over),
            "settled otherwise than the Final says": len(self.misbooked),
        }

    def look(self, books: Books) -> None:
        """What must hold at every moment."""
        self.looks += 1
        if books.imbalance or books.minted != self.granted:
            self.imbalances.append(f"{books.imbalance} more than the {books.minted} granted")
        self.overdrawn += [one.name for one in books.accounts if one.balance < 0 or one.held < 0]


class Bank:
    """One campaign's accounts, on a connection to Redis that no fault is in the way of but its death."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._url = f"redis://127.0.0.1:{fleet.redis.port}/0"
        self._granted = dict[str, int]()
        self.money = Money()

    async def open(self) -> None:
        """Give every tenant and owner credits, and let owners' workers put some up."""
        clients = [f"client-{number}" for number in range(self._fleet.sizes.clients)]
        self._granted = dict.fromkeys(clients, RICH) | dict.fromkeys(set(self._fleet.owners.values()), OWNER)
        if len(clients) > 1:
            self._granted[clients[-1]] = TIGHT
        self.money.granted = sum(self._granted.values())
        async with Ledger(self._url) as ledger, modelnet.connect(f"nats://127.0.0.1:{self._fleet.nats.port}") as net:
            for name, amount in self._granted.items():
                await ledger.grant(name, amount, "first")
            for worker, owner in self._fleet.owners.items():
                await ledger.allow_deposits(owner, worker, DEPOSIT)
            for client in clients:
                await announce_metering(net.bus, client, metered=True)

    async def watch(self) -> None:
        """Look at the books until cancelled, whenever Redis is there."""
        async with Ledger(self._url) as ledger:
            while True:
                with contextlib.suppress(LedgerAway):
                    self.money.look(await ledger.books())
                await asyncio.sleep(LOOK_S)

    async def close(self, finals: Mapping[TaskKey, list[Final]], deadline_s: float) -> Money:
        """Wait until every hold has ended, by its Final or by the sweep, and see whether all is where it belongs."""
        money = self.money
        async with Ledger(self._url) as ledger:
            for _ in range(int((deadline_s + MARGIN_S + 2 * SWEEP_S) / LOOK_S)):
                books = await ledger.books()
                if not any(one.held or one.holds for one in books.accounts):
                    break
                await asyncio.sleep(LOOK_S)
        money.look(books)
        money.left_over = [one.name for one in books.accounts if one.held or one.holds]
        ended = [stored[0] for stored in finals.values()]
        async with Redis.from_url(self._url, decode_responses=True, protocol=2) as redis:
            booked = dict[TaskKey, dict[str, str]]()
            for final in ended:
                key = f"modelnet:{{ledger}}:hold:{final.tenant}:{final.task}"
                entry: Any = await redis.hgetall(key)
                booked[final.tenant, final.task] = entry
        money.misbooked = misbooked(ended, booked)
        expected = expected_balances(self._granted, ended)
        has = {one.name: one.balance for one in books.accounts}
        for name in sorted(expected.keys() | has.keys()):
            if expected.get(name, 0) != has.get(name, 0):
                money.misbooked.append(f"{name} has {has.get(name, 0)}, the Finals say {expected.get(name, 0)}")
        for final in (final for final in ended if final.held is not None):
            if final.price:
                money.paid[final.status] += 1
            money.moved += max(final.price or 0, 0)
            money.deposits += len(final.settlements)
            money.forfeited += sum(-one.price for one in final.settlements if one.price < 0)
        return money


def misbooked(finals: Iterable[Final], booked: Mapping[TaskKey, Mapping[str, str]]) -> list[str]:
    """The tasks whose hold did not end as their Final says. `booked`: what the ledger has of each."""
    found = []
    for final in finals:
        entry, price = booked.get((final.tenant, final.task), {}), max(final.price or 0, 0)
        if final.held is None:
            if entry:
                found.append(f"{final.task} is free, and the ledger has {dict(entry)}")
        elif entry.get("state") not in ("settled", "released") or int(entry.get("paid", 0)) != price:
            found.append(f"{final.task}: {final.status} for {final.price}, and the ledger has {dict(entry)}")
    return found


def expected_balances(granted: Mapping[str, int], finals: Iterable[Final]) -> dict[str, int]:
    """What each account has once every Final was settled once."""
    found = Counter(granted)
    for final in finals:
        if final.held is None:
            continue
        price = max(final.price or 0, 0)
        if price and final.owner is not None:
            found[final.tenant] -= price
            found[final.owner] += price
        for one in final.settlements:
            lost = -min(one.price, 0)
            found[one.owner] -= lost
            found[final.tenant] += lost
    return dict(found)
