"""Task: what a publisher wants done, for how much and until when."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import Capability, Digest, Identifier, Message, Micro, Part, new_id
from .reference import Reference

__all__ = ["DEFAULT_BUDGET", "DEFAULT_DEADLINE_S", "MAX_DEADLINE_S", "Selector", "Strategy", "StrategyKind", "Task"]

StrategyKind = Literal["auto", "auction", "spot", "race", "panel", "cascade"]

DEFAULT_BUDGET = 1_000
DEFAULT_DEADLINE_S = 300.0
MAX_DEADLINE_S = 86_400.0


OneOf = str | tuple[str, ...] | None


class Selector(Part):
    """Properties of a worker. Required: all named must hold; excluded: any that holds rules the worker out."""

    model: OneOf = Field(default=None, description="Name of the model that answers, or one of these.")
    worker: OneOf = Field(default=None, description="Id of the worker, or one of these.")
    owner: OneOf = Field(default=None, description="Who owns the worker, or one of these.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the worker, each by exact value.")

    def __bool__(self) -> bool:
        return bool(self.model or self.worker or self.owner or self.labels)

    def holds(self, worker: str, owner: str, model: str | None, labels: dict[str, str]) -> list[bool]:
        """One truth value for each property that this selector names."""
        named: list[tuple[OneOf, str | None]] = [(self.model, model), (self.worker, worker), (self.owner, owner)]
        named += [(value, labels.get(key)) for key, value in self.labels.items()]
        return [
            has in wanted if isinstance(wanted, tuple) else has == wanted for wanted, has in named if wanted is not None
        ]


class Strategy(Part):
    """How workers are chosen, and how many work on the task.

    `auction`: sealed bids, the best wins. `spot`: the best standing offer, without asking; an auction if none is taken.
    `race`: two start, the first good answer wins. `panel`: workers of different owners answer, the majority wins.
    `cascade`: the cheapest first, the next only if its answer is not good enough. `auto`: the network chooses, and says
    why in the trace.
    """

    kind: StrategyKind = "auction"
    width: int | None = Field(
        default=None, ge=1, le=9, description="Most workers: 2 in a race, 3 in a panel or a cascade if null."
    )
    check: Capability | None = Field(
        default=None,
        description="A cascade's checker: it gets {capability, input, output} and answers {passed: true or false}.",
    )
    confidence: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Without a checker a cascade takes an answer whose `confidence` is this, or that has none.",
    )


class Task(Message):
    """A task on the bus. From the moment the stream has acknowledged it, it ends in exactly one Final."""

    id: Identifier = Field(default_factory=new_id, description="Unique per tenant; publishing it twice is harmless.")
    tenant: Identifier = Field(default="default", description="Who pays.")
    capability: Capability = Field(description="What is needed, as exactly as the publisher knows.")
    input: dict[str, Any] = Field(
        default_factory=dict, description="The input, as the capability's contract wants it; empty if it is stored."
    )
    input_ref: Reference | None = Field(default=None, description="Where the input is stored, if it is large.")
    budget: Micro = Field(default=DEFAULT_BUDGET, description="Most that may be paid, in micro-credits.")
    value: Micro | None = Field(
        default=None, description="Worth of a good answer in micro-credits; the budget if null."
    )
    value_of_time: float | None = Field(
        default=None,
        ge=0,
        description="What a second is worth, in micro-credits; by default half of the value is lost by the deadline.",
    )
    min_quality: float = Field(default=0.0, ge=0, le=1, description="Least acceptable expected quality, 0 to 1.")
    deadline_s: float = Field(
        default=DEFAULT_DEADLINE_S, gt=0, le=MAX_DEADLINE_S, description="Seconds from the server's timestamp."
    )
    priority: int = Field(default=5, ge=0, le=9, description="0 (can wait) to 9 (urgent).")
    strategy: Strategy = Field(default_factory=Strategy, description="How workers are chosen, and how many.")
    parent: Identifier | None = Field(default=None, description="The task of the same tenant that this is a part of.")
    require: Selector = Field(default_factory=Selector, description="Properties the worker must have.")
    exclude: Selector = Field(default_factory=Selector, description="Properties the worker must not have.")
    contract: Digest | None = Field(default=None, description="Digest of the contract the worker must have announced.")
    client: Identifier | None = Field(
        default=None, description="Cancel the task once nobody answers on client.<this>.alive any more."
    )

    @property
    def priority_class(self) -> int:
        """0, 1 or 2: the class whose queue the task waits in."""
        return 0 if self.priority <= 3 else 1 if self.priority <= 6 else 2
