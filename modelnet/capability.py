"""A capability as a worker declares it: the handler, and what is promised and asked for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from modelnet import messages as m
from modelnet.attempt import BadOutput
from modelnet.bus.services import Statistics
from modelnet.contracts import check, compile_schema, sketch
from modelnet.errors import Reject
from modelnet.estimates import Accuracy, Forecast, RunTimes

__all__ = ["Able", "Delay", "Estimate", "Handler", "Made", "Price", "Quote", "Served"]

log = structlog.get_logger("worker")

Handler = Callable[..., Any]
Price = int | Callable[[dict[str, Any]], int]
Quote = Callable[[m.Features], int]
Able = Callable[[dict[str, Any]], bool]
Estimate = Callable[[m.Features], Forecast | tuple[float, float] | None]
Delay = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Made:
    """What a bid was made of."""

    features: m.Features
    forecast: Forecast


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
        ready: Able | None = None,
        quote: Quote | None = None,
        delay: Delay | None = None,
    ) -> None:
        self.card, self.contract, self.handler = card, contract, handler
        self.times = RunTimes(expected_ms)
        self.accuracy, self.first_accuracy = Accuracy(), Accuracy()
        """Of what its bids said of the whole time, and of that to the first text."""
        self._last: m.Features | None = None
        self.deposit = deposit
        """What its owner puts up for each task, in micro-credits."""
        self.statistics = Statistics()
        self._price, self._quote, self._estimate = price, quote, estimate
        self._able, self._ready, self._delay = able, ready, delay
        self._input, self._output = compile_schema(contract.input), compile_schema(contract.output)

    def can(self, features: m.Features) -> bool:
        """Whether an input of these features can be done at all, as far as they tell."""
        return features.shape is None or self._holds(self._able, lambda: sketch(features.shape))

    def is_ready(self, features: m.Features) -> bool:
        """Whether an input of these features can be begun now."""
        return self._holds(self._ready, lambda: sketch(features.shape) if features.shape is not None else {})

    def is_ready_for(self, award: m.Award) -> bool:
        """Whether an award can be begun now."""
        return self._holds(self._ready, lambda: award.input)

    def _holds(self, asked: Able | None, value: Callable[[], dict[str, Any]]) -> bool:
        """`value` is made only if something is asked of it."""
        if asked is None:
            return True
        try:
            return asked(value())
        except Exception as error:
            log.warning("able_failed", capability=self.card.pattern, error=repr(error))
            return True

    def quote(self, features: m.Features) -> int | None:
        """The price for an input of these features; None if they do not tell."""
        if self._quote is None and isinstance(self._price, int):
            return self._price
        try:
            if self._quote is not None:
                return max(int(self._quote(features)), 0)
            if features.shape is None or isinstance(self._price, int):
                return None
            return max(int(self._price(sketch(features.shape))), 0)
        except Exception as error:
            log.warning("price_failed", capability=self.card.pattern, error=repr(error))
            return None

    def expect(self, features: m.Features) -> Forecast:
        """How long a task of these features will take once it begins."""
        told = self._estimate(features) if self._estimate else None
        if not isinstance(told, Forecast):
            told = Forecast(*(self.times.quantiles() if told is None else told))
        return self._delayed(told)

    def _delayed(self, told: Forecast) -> Forecast:
        delay_s = self._delay() if self._delay else 0.0
        return told.after(delay_s * 1e3) if delay_s > 0 else told

    def typical(self) -> Forecast:
        """How long a task takes that nothing is known of: as one like the last would now, without what it had in a
        cache."""
        if self._last is None:
            return self._delayed(Forecast(*self.times.quantiles()))
        return self.expect(self._last.model_copy(update={"prefix": b""}))

    def learn(self, bid: Made | None, run_ms: float, first_ms: float | None) -> None:
        """A task was done: how long it took, and what was bid for it."""
        self.times.learn(run_ms)
        if bid is None:
            return
        self._last = bid.features
        said = bid.forecast
        self.accuracy.note(said.p50_ms, said.p90_ms, run_ms)
        if first_ms is not None and said.first_ms is not None:
            self.first_accuracy.note(said.first_ms, said.first_p90_ms or said.first_ms, first_ms)

    def takes(self, award: m.Award) -> bool:
        """Whether an award can be worked on: its input keeps the contract, and what it continues can be continued."""
        if award.resume is not None and not self.card.continues:
            return False
        if award.input_ref is not None:
            return True
        return check(self._input, award.input) is None and self._holds(self._able, lambda: award.input)

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
