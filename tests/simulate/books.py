"""The ledger of a simulated network: one tenant's account, away for a while now and then, and who settles late."""

from __future__ import annotations

import random
from collections.abc import Sequence

from modelnet.messages import Awarded, ErrorInfo, Final, JournalEntry

__all__ = ["BUDGET", "Books"]

BUDGET = 1_000
"""What every simulated task may cost."""


class Books:
    """As modelnet/store/ledger.lua. Finals reach it when the history is over, in any order and twice."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.credits = self.balance = chance.choice([BUDGET, 2 * BUDGET, 100 * BUDGET])
        self.held: dict[str, int] = {}
        self.owner = self.owner_credits = chance.choice([0, 300, 100 * BUDGET])
        """What all workers' owner has to put up."""
        self.deposits: dict[tuple[str, str, str], int] = {}
        """By task, auction and worker."""
        self.away_until_s = 0.0
        self.outages = self.refusals = 0

    def hold(self, task: str, amount: int) -> ErrorInfo | None:
        """Set money aside, once a task."""
        if task in self.held:
            return None
        if amount > self.balance:
            self.refusals += 1
            return ErrorInfo(code="no_funds", message="the account is empty")
        self.balance -= amount
        self.held[task] = amount
        return None

    def deposit(self, task: str, auction: str, worker: str, amount: int) -> bool:
        """Set what the owner puts up aside, once an auction and worker."""
        if (task, auction, worker) not in self.deposits:
            if task not in self.held or amount > self.owner:
                return False
            self.owner -= amount
            self.deposits[task, auction, worker] = amount
        return True

    def check(self, entries: Sequence[JournalEntry]) -> None:
        """What was awarded was held, and settling it moves each price once."""
        finals = {entry.task: entry for entry in entries if isinstance(entry, Final)}
        for entry in entries:
            if isinstance(entry, Awarded):
                assert entry.held == self.held.get(entry.task) == BUDGET, f"{entry.task} was awarded without money"
        assert self.balance == self.credits - sum(self.held.values()), "held twice"
        told = [*finals.values(), *finals.values()]
        self._chance.shuffle(told)
        paid = dict[str, int]()
        for final in told:
            if final.held is None or final.task not in self.held:
                assert final.status != "completed" or final.task in paid, "an answer that nobody pays for"
                continue
            price = max(final.price or 0, 0)
            self._end_deposits(final)
            assert price <= self.held[final.task]
            paid[final.task] = price
            self.owner += price
            self.balance += self.held.pop(final.task) - price
        assert not self.held, f"nobody ends the holds of {sorted(self.held)}"
        assert not self.deposits, f"nobody ends the deposits {sorted(self.deposits)}"
        assert self.balance + self.owner == self.credits + self.owner_credits

    def _end_deposits(self, final: Final) -> None:
        lost = {(one.auction, one.worker): -min(one.price, 0) for one in final.settlements}
        for one in final.settlements:
            assert self.deposits[final.task, one.auction, one.worker] == one.deposit, "settled without a deposit"
        for name in [name for name in self.deposits if name[0] == final.task]:
            gone, amount = lost.get(name[1:], 0), self.deposits.pop(name)
            assert 0 <= gone <= amount
            self.balance += gone
            self.owner += amount - gone
