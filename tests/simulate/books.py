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
            price = final.price or 0
            assert price <= self.held[final.task]
            paid[final.task] = price
            self.balance += self.held.pop(final.task) - price
        assert not self.held, f"nobody ends the holds of {sorted(self.held)}"
        assert self.balance + sum(paid.values()) == self.credits
