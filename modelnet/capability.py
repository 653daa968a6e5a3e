"""A capability as a worker declares it: the handler, and what is promised and asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from modelnet import messages as m
from modelnet.attempt import BadOutput
from modelnet.contracts import check, compile_schema, sketch
from modelnet.errors import Reject
from modelnet.estimates import RunTimes

__all__ = ["Able", "Estimate", "Handler", "Price", "Served"]

log = structlog.get_logger("worker")

Handler = Callable[..., Any]
Price = int | Callable[[dict[str, Any]], int]
Able = Callable[[dict[str, Any]], bool]
Estimate = Callable[[m.Features], tuple[float, float] | None]


class Served:
    """A declared capability."""

    def __init__(
        self,
        card: m.CapabilityCard,
        contract: m.Contract,
        handler: Handler,
        *,
        price: Price,
        expected_ms: float,
        estimate: Estimate | None,
        deposit: int = 0,
        able: Able | None = None,
    ) -> None:
        self.card, self.contract, self.handler = card, contract, handler
        self.times = RunTimes(expected_ms)
        self.deposit = deposit
        """What its owner puts up for each task, in micro-credits."""
        self._price, self._estimate, self._able = price, estimate, able
        self._input, self._output = compile_schema(contract.input), compile_schema(contract.output)

    def can(self, features: m.Features) -> bool:
        """Whether an input of these features can be done at all, as far as they tell."""
        return features.shape is None or self._is_able(sketch(features.shape))

    def _is_able(self, value: dict[str, Any]) -> bool:
        if self._able is None:
            return True
        try:
            return self._able(value)
        except Exception as error:
            log.warning("able_failed", capability=self.card.pattern, error=repr(error))
            return True

    def quote(self, features: m.Features) -> int | None:
        """The price for an input of these features; None if they do not tell."""
        if isinstance(self._price, int):
            return self._price
        if features.shape is None:
            return None
        try:
            return max(int(self._price(sketch(features.shape))), 0)
        except Exception as error:
            log.warning("price_failed", capability=self.card.pattern, error=repr(error))
            return None

    def expect(self, features: m.Features) -> tuple[float, float]:
        """(p50, p90) of the time to complete, in ms."""
        told = self._estimate(features) if self._estimate else None
        return told or self.times.quantiles()

    def takes(self, award: m.Award) -> bool:
        """Whether an award can be worked on: its input keeps the contract, and what it continues can be continued."""
        if award.resume is not None and not self.card.continues:
            return False
        if award.input_ref is not None:
            return True
        return check(self._input, award.input) is None and self._is_able(award.input)

    def require_input(self, value: dict[str, Any]) -> None:
        """Raises `Reject` for an input that breaks the contract: another worker may keep another one."""
        violation = check(self._input, value)
        if violation is not None:
            raise Reject(f"the input breaks the contract: {violation}", code="contract_violation", retryable=True)

    def require_output(self, output: dict[str, Any]) -> None:
        """Raises `Reject` for an output that breaks the contract."""
        violation = check(self._output, output)
        if violation is not None:
            raise BadOutput(f"the output breaks the contract: {violation}")
