"""A task that several workers answer: it is made of parts, each a task of its own that is auctioned, run, verified and
paid like any other. Pure.

    race       part 1, and once that is awarded part 2 to another worker: the first good answer is the answer
    panel      parts to workers of different owners: the answer of the majority is the answer
    cascade    part 1 to the cheapest worker; the next only if the answer is not good enough

The plan stands in the journal, and a part's id follows from its task's: a negotiator that takes the task over publishes
the same parts again, which is harmless, and hears of all that has happened to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from modelnet.messages import ErrorInfo, Final, Planned, Selector, Strategy, Task, Timings, part_id
from modelnet.messages.task import OneOf

from .commands import CancelPart, Command, Learn, StartPart
from .journal_writer import Entry
from .records import Outcome
from .reputation import Source
from .strategy import Plan
from .undertaking import Journal, State, Status, Undertaking

__all__ = ["Composite", "normalized"]


def normalized(value: Any) -> Any:
    """An answer without what makes no difference to it: case and spacing of texts, the way a number is written."""
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return tuple(sorted((key, normalized(item)) for key, item in value.items()))
    return tuple(normalized(item) for item in value)


@dataclass(slots=True)
class _Part:
    """One part, as far as is known."""

    task: Task
    role: Literal["answer", "check"]
    worker: str = ""
    owner: str = ""
    final: Final | None = None

    @property
    def answer(self) -> Final | None:
        """How it ended, if it was completed."""
        return self.final if self.final is not None and self.final.status == "completed" else None

    @property
    def vote(self) -> Any:
        """What its answer counts as; answers that are equal vote alike."""
        assert self.final is not None
        return self.final.digest if self.final.output_ref is not None else normalized(self.final.output)


class Composite(Undertaking):
    """A race, a panel or a cascade."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        *,
        negotiator: str,
        now: float,
        age_s: float,
        journal: Journal = (),
    ) -> None:
        """`plan`: what was chosen now; one that stands in the journal goes before."""
        super().__init__(task, negotiator=negotiator, now=now, age_s=age_s)
        self.state = State.ASSEMBLING
        self._plan = plan
        self._planned = False
        self._began_at: float | None = None
        self._parts: list[_Part] = []
        self._last_error = ErrorInfo(code="failed", message="")
        self._catch_up(journal)

    # ------------------------------------------------------------------ beginning

    def _start(self, now: float, *, queue: bool) -> list[Command]:
        self._began_at = now
        commands: list[Command] = []
        if not self._planned:
            entry = Planned(
                task=self.task.id,
                strategy=self._plan.kind,
                width=self._plan.width,
                workers=self._plan.workers,
                why=self._plan.why,
                negotiator=self._negotiator,
            )
            commands += self._writer.write(entry)
        return [*commands, *self._next_answer(now)]

    def _take_over(self, entry: Entry) -> None:
        if isinstance(entry, Planned):
            self._plan, self._planned = Plan(entry.strategy, entry.why, entry.width, entry.workers), True

    @property
    def _answers(self) -> list[_Part]:
        return [part for part in self._parts if part.role == "answer"]

    def _next_answer(self, now: float) -> list[Command]:
        """Have one more worker answer."""
        task, asked = self.task, self._answers
        require, exclude, min_quality = task.require, task.exclude, task.min_quality
        if self._plan.kind == "cascade":
            require = require.model_copy(update={"worker": self._plan.workers[len(asked)]})
            budget, min_quality = task.budget - self._spent, 0.0  # whether it is good enough is checked, not guessed
        else:
            budget = task.budget // self._plan.width
            if self._plan.kind == "panel":
                exclude, min_quality = _also(exclude, "owner", (part.owner for part in asked)), 0.0
            else:
                exclude = _also(exclude, "worker", (part.worker for part in asked))
        return self._publish("answer", now, task.input, budget, require, exclude, min_quality)

    def _publish(
        self,
        role: Literal["answer", "check"],
        now: float,
        input: dict[str, Any],
        budget: int,
        require: Selector,
        exclude: Selector,
        min_quality: float = 0.0,
    ) -> list[Command]:
        whole, number = self.task, len(self._parts) + 1
        changes: dict[str, Any] = {
            "id": part_id(whole.id, number),
            "parent": whole.id,
            "strategy": Strategy(),
            "input": input,
            "budget": max(budget, 0),
            "value": whole.budget if whole.value is None else whole.value,
            "min_quality": min_quality,
            "deadline_s": max(self._deadline - now, 1e-3),
            "require": require,
            "exclude": exclude,
            "client": None,
        }
        if role == "check":
            changes |= {"capability": whole.strategy.check, "contract": None, "input_ref": None, "value": None}
        task = whole.model_copy(update=changes)
        self._parts.append(_Part(task, role))
        return [StartPart(number, task)]

    # ------------------------------------------------------------------ what happens to parts

    def on_part_awarded(self, number: int, worker: str, owner: str, now: float) -> list[Command]:
        """A worker has it; another, if the first one failed."""
        part = self._parts[number - 1]
        part.worker, part.owner = worker, owner
        more = number == len(self._parts) < self._plan.width and self._plan.kind in ("race", "panel")
        return self._next_answer(now) if more and not self.over else []

    def on_part_ended(self, number: int, final: Final, now: float) -> list[Command]:
        """A part has its Final."""
        part = self._parts[number - 1]
        if self.over or part.final is not None:
            return []
        part.final = final
        part.worker, part.owner = final.worker or part.worker, final.owner or part.owner
        if final.error is not None and final.status != "completed":
            self._last_error = final.error
        if self._plan.kind == "cascade":
            return self._climb(part, now)
        return self._race(part, now) if self._plan.kind == "race" else self._vote(now)

    def _all_ended(self, now: float) -> list[Command] | None:
        """What to do if something is still to come: wait, or ask one more. None if nothing is."""
        if any(part.final is None for part in self._answers):
            return []
        return self._next_answer(now) if len(self._answers) < self._plan.width else None

    def _race(self, part: _Part, now: float) -> list[Command]:
        if part.answer is not None:
            return self._complete(part, now)
        going = self._all_ended(now)
        return self._finish("failed", now, self._last_error) if going is None else going

    def _vote(self, now: float) -> list[Command]:
        votes = [part for part in self._answers if part.answer is not None]
        tally = Counter(part.vote for part in votes)
        best, count = tally.most_common(1)[0] if tally else (None, 0)
        decided = 2 * count > self._plan.width
        going = None if decided else self._all_ended(now)
        if going is not None:
            return going
        if not decided and (count < 2 or 2 * count <= len(votes)):
            return self._finish("failed", now, self._disagreement(len(votes), count))
        learned = [self._learn(part, "panel", part.vote == best) for part in votes]
        return [*self._complete(next(part for part in votes if part.vote == best), now), *learned]

    def _disagreement(self, votes: int, count: int) -> ErrorInfo:
        if not votes:
            return self._last_error
        message = f"of {votes} answers at most {count} are alike: there is no majority"
        return ErrorInfo(code="no_majority", message=message)

    def _climb(self, part: _Part, now: float) -> list[Command]:
        """A rung of a cascade has answered, or its check has."""
        if part.role == "check":
            rung = self._answers[-1]
            verdict = (part.answer.output or {}).get("passed") if part.answer is not None else None
            if not isinstance(verdict, bool):
                said = self._last_error.message if part.answer is None else "it names no verdict"
                error = ErrorInfo(code="check_failed", message=f"{part.task.capability} could not tell: {said}"[:4096])
                return self._finish("failed", now, error)
            learned = [self._learn(rung, "checker", verdict)]
            if verdict:
                return [*self._complete(rung, now), *learned]
            message = f"{rung.worker}'s answer did not pass {part.task.capability}"
            self._last_error = ErrorInfo(code="not_verified", message=message)
            return [*self._next_rung(now), *learned]
        if part.answer is None:
            return self._next_rung(now)
        if self.task.strategy.check is not None:
            answer = part.answer
            input = {"capability": self.task.capability, "input": self.task.input, "output": answer.output}
            return self._publish("check", now, input, self.task.budget - self._spent, Selector(), Selector())
        confidence = (part.answer.output or {}).get("confidence")
        unsure = isinstance(confidence, int | float) and confidence < self.task.strategy.confidence
        return self._next_rung(now) if unsure else self._complete(part, now)

    def _next_rung(self, now: float) -> list[Command]:
        if len(self._answers) < len(self._plan.workers):
            return self._next_answer(now)
        if self.task.strategy.check is None:  # all are unsure: the dearest is the best there is
            answered = [part for part in self._answers if part.answer is not None]
            if answered:
                return self._complete(answered[-1], now)
        return self._finish("failed", now, self._last_error)

    def _learn(self, part: _Part, source: Source, passed: bool) -> Command:
        """What the others' answers, or a check, say of a worker."""
        final = part.final
        assert final is not None
        outcome = Outcome(
            worker=part.worker,
            capability=self.task.capability,
            task=final.task,
            attempt=final.attempt or 1,
            source=source,
            passed=passed,
            price=final.price or 0,
            tenant=self.task.tenant,
        )
        return Learn(outcome)

    # ------------------------------------------------------------------ the end

    @property
    def _spent(self) -> int:
        """Micro-credits that parts have cost so far."""
        return sum(part.final.price or 0 for part in self._parts if part.final is not None)

    def _waited_for(self) -> str:
        open_parts = [str(number) for number, part in enumerate(self._parts, 1) if part.final is None]
        return f"part {', '.join(open_parts)} had not ended" if open_parts else ""

    def _stop_work(self) -> list[Command]:
        return [CancelPart(part.task.id) for part in self._parts if part.final is None]

    def _let_go(self) -> list[Command]:
        return []  # the parts are the other's now

    def _complete(self, part: _Part, now: float) -> list[Command]:
        return [*self._stop_work(), *self._end("completed", now, None, part)]

    def _finish(self, status: Status, now: float, error: ErrorInfo | None) -> list[Command]:
        return self._end(status, now, error, None)

    def _end(self, status: Status, now: float, error: ErrorInfo | None, part: _Part | None) -> list[Command]:
        self.state = State.FINISHING
        won = part.final if part is not None else None
        began = now if self._began_at is None else self._began_at
        ended = [one.final for one in self._parts if one.final is not None]
        self._final = final = Final.model_construct(
            task=self.task.id,
            tenant=self.task.tenant,
            capability=self.task.capability,
            status=status,
            output=won.output if won else None,
            output_ref=won.output_ref if won else None,
            digest=won.digest if won else None,
            worker=won.worker if won else None,
            owner=won.owner if won else None,
            price=self._spent if ended else None,
            attempts=sum(1 for one in self._parts if one.worker),
            bids=sum(one.bids for one in ended),
            parts=tuple(one.task.id for one in self._parts),
            usage=won.usage if won else None,
            error=error,
            negotiator=self._negotiator,
            timings=Timings.model_construct(
                queued_ms=max(began - self._submitted_at, 0.0) * 1e3,
                negotiation_ms=won.timings.negotiation_ms if won else 0.0,
                running_ms=max(now - began, 0.0) * 1e3,
                total_ms=max(now - self._submitted_at, 0.0) * 1e3,
            ),
        )
        self._writer.keep(lambda _: False)
        return [*self._writer.write(final)]


def _also(selector: Selector, name: Literal["worker", "owner"], more: Iterator[str]) -> Selector:
    """The selector with more names among those that it holds for."""
    had: OneOf = getattr(selector, name)
    known = () if had is None else (had,) if isinstance(had, str) else had
    names = tuple(dict.fromkeys([*known, *more]))
    return selector.model_copy(update={name: names}) if names else selector
