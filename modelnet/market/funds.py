"""One task's money: whether it has been asked for, and whether it is set aside. Pure: `HoldFunds` commands out."""

from __future__ import annotations

from typing import Literal

from .commands import HoldFunds

__all__ = ["Funds"]


class Funds:
    """What must be held in the ledger before the task may be awarded."""

    def __init__(self, amount: int | None) -> None:
        """`amount`: in micro-credits; None for a tenant that is not charged."""
        self._amount = amount
        self._stage: Literal["unasked", "asked", "away", "held"] = "unasked"

    @property
    def ready(self) -> bool:
        """Whether the task may be awarded."""
        return self._amount is None or self._stage == "held"

    @property
    def asked(self) -> bool:
        """Whether the ledger's answer is awaited."""
        return self._stage == "asked"

    @property
    def held(self) -> int | None:
        """What may be held. Also before it was asked for: another negotiator may have, and be gone."""
        return self._amount

    def ask(self, deadline_s: float) -> list[HoldFunds]:
        """Have the money held, unless that was asked for."""
        if self._amount is None or self._stage in ("asked", "held"):
            return []
        self._stage = "asked"
        return [HoldFunds(self._amount, deadline_s)]

    def found(self, held: int | None) -> None:
        """The task was awarded before, with this much held."""
        self._amount, self._stage = held, "held"

    def stand(self) -> None:
        """The ledger holds the money."""
        self._stage = "held"

    def delay(self) -> None:
        """The ledger does not answer."""
        self._stage = "away"
