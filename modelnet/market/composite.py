"""A task that several workers answer: it is made of parts, each a task of its own that is auctioned, run, verified and
paid like any other. Pure.

    race       part 1, and once that is awarded part 2 to another worker: the first good answer is the answer
    panel      parts to workers of different owners: the answer of the majority is the answer
    cascade    part 1 to the cheapest worker; the next only if the answer is not good enough

The plan stands in the journal before the first part is published, and a part's id follows from its task's and its
number: a negotiator that takes the task over has the same parts, and hears of all that has happened to them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelnet.messages import (
    ErrorInfo,
    Final,
    Planned,
    Reference,
    Selector,
    Strategy,
    Task,
    Timings,
    part_id,
)
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
        return json.dumps(value), "literal"  # Python's True equals 1
    if isinstance(value, int | float):
        try:
            return float(f"{value:.9g}")
        except OverflowError:  # JSON's integers have no bound
            return value
    if isinstance(value, dict):
        return "object", *sorted((key, normalized(item)) for key, item in value.items())
    return "array", *(normalized(item) for item in value)


@dataclass(slots=True)
class _Part:
    """One part, as far as is known."""

    task: Task
    role: Literal["answer", "check"]
    worker: str = ""
    owner: str = ""
    final: Final | None = None

    @property
    def alone(self) -> str | None:
        """The only worker that may have it, if it is a rung of a cascade."""
        worker = self.task.require.worker
        return worker if isinstance(worker, str) else None

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
        present: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`plan`: what was chosen now; one that stands in the journal goes before. `present`: whether a worker is
        there that may answer."""
        super().__init__(task, negotiator=negotiator, now=now, age_s=age_s)
        self.state = State.ASSEMBLING
        self._plan = plan
        self._present = present
        self._planned = False
        """Whether another negotiator has planned it: parts may have been published."""
        self._began_at: float | None = None
        self._parts: list[_Part] = []
        self._last_error = ErrorInfo(code="failed", message="")
        self._catch_up(journal)

    # ------------------------------------------------------------------ beginning

    def _start(self, now: float, *, queue: bool) -> list[Command]:
        self._began_at = now
        if self._planned:
            return self._next_answer(now)
        entry = Planned(
            task=self.task.id,
            strategy=self._plan.kind,
            width=self._plan.width,
            workers=self._plan.workers,
            why=self._plan.why,
            negotiator=self._negotiator,
        )
        return [*self._writer.write(entry)]

    def on_stored(self, sequence: int, now: float) -> list[Command]:
        """The outstanding entry was stored. Only a plan that stands has parts: no other negotiator's are in its way."""
        planned = isinstance(self._writer.outstanding, Planned)
        commands = super().on_stored(sequence, now)
        return [*commands, *self._next_answer(now)] if planned and not self.over else commands

    def _take_over(self, entry: Entry) -> None:
        if isinstance(entry, Planned):
            self._plan, self._planned = Plan(entry.strategy, entry.why, entry.width, entry.workers), True

    @property
    def _answers(self) -> list[_Part]:
        return [part for part in self._parts if part.role == "answer"]

    def _next_answer(self, now: float) -> list[Command]:
        """Have one more worker answer."""
        if self._plan.kind == "cascade":
            return self._next_rung(now)
        task, asked = self.task, self._answers
        exclude, min_quality = task.exclude, task.min_quality
        if self._plan.kind == "panel":
            exclude, min_quality = _also(exclude, "owner", (part.owner for part in asked)), 0.0
        else:
            exclude = _also(exclude, "worker", (part.worker for part in asked))
        return self._answer(now, task.budget // self._plan.width, task.require, exclude, min_quality, self._left_s(now))

    def _left_s(self, now: float) -> float:
        return max(self._deadline - now, 1e-3)

    def _answer(
        self, now: float, budget: int, require: Selector, exclude: Selector, min_quality: float, deadline_s: float
    ) -> list[Command]:
        changes = {
            "input": self.task.input,
            "budget": budget,
            "value": self.task.budget if self.task.value is None else self.task.value,
            "min_quality": min_quality,
            "deadline_s": deadline_s,
            "require": require,
            "exclude": exclude,
        }
        return self._publish("answer", changes)

    def _check(self, rung: _Part, now: float) -> list[Command]:
        """Have a rung's answer checked, by another worker than its own."""
        assert rung.answer is not None
        whole, answer = self.task, rung.answer
        stored = {"input": whole.input_ref, "output": answer.output_ref}
        changes = {
            "capability": whole.strategy.check,
            "contract": None,
            "input": {"capability": whole.capability, "input": whole.input, "output": answer.output},
            "input_ref": None,
            "budget": max(whole.budget - self._spent, 0),
            "value": None,
            "min_quality": 0.0,
            "deadline_s": self._left_s(now),
            "require": Selector(),
            "exclude": Selector(worker=rung.worker),
        }
        return self._publish("check", changes, {name: ref for name, ref in stored.items() if ref is not None})

    def _publish(
        self,
        role: Literal["answer", "check"],
        changes: Mapping[str, Any],
        stored: Mapping[str, Reference] | None = None,
    ) -> list[Command]:
        whole, number = self.task, len(self._parts) + 1
        own = {"id": part_id(whole.id, number), "parent": whole.id, "strategy": Strategy(), "client": None}
        task = whole.model_copy(update={**changes, **own})
        self._parts.append(_Part(task, role))
        return [StartPart(number, task, stored or {}, perhaps_known=self._planned)]

    # ------------------------------------------------------------------ what happens to parts

    def on_part_awarded(self, number: int, worker: str, owner: str, now: float) -> list[Command]:
        """A worker has it; another, if the first one failed."""
        part = self._parts[number - 1]
        if self.over or part.final is not None:
            return []
        part.worker, part.owner = worker, owner
        more = number == len(self._parts) < self._plan.width and self._plan.kind != "cascade"
        return self._next_answer(now) if more else []

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

    def on_part_refused(self, number: int, error: ErrorInfo, now: float) -> list[Command]:
        """A part cannot be published, for a reason that will not pass."""
        if self.over:
            return []
        return [*self._stop_work(), *self._finish("failed", now, error)]

    def on_worker_lost(self, worker: str, now: float) -> list[Command]:
        """A worker's beats are missing: a rung of a cascade that only it may answer is over."""
        if self.over or self._plan.kind != "cascade":
            return []
        return [CancelPart(rung.task.id) for rung in self._answers if rung.final is None and rung.alone == worker]

    def _all_ended(self, now: float) -> list[Command] | None:
        """What to do if something is still to come: wait, or ask one more. None if nothing is."""
        if self._answers[-1].final is not None and len(self._answers) < self._plan.width:
            return self._next_answer(now)
        return [] if any(part.final is None for part in self._answers) else None

    def _fail(self, now: float) -> list[Command]:
        """No part is left that could still answer."""
        error = self._last_error
        return self._finish("expired" if error.code == "expired" else "failed", now, error)

    def _race(self, part: _Part, now: float) -> list[Command]:
        if part.answer is not None:
            return self._complete(part, now)
        going = self._all_ended(now)
        return self._fail(now) if going is None else going

    def _vote(self, now: float) -> list[Command]:
        # One for each owner: a part whose first worker failed may have gone to another part's owner.
        answered = [part for part in self._answers if part.answer is not None]
        votes = [part for at, part in enumerate(answered) if part.owner not in {one.owner for one in answered[:at]}]
        tally = Counter(part.vote for part in votes)
        best, count = tally.most_common(1)[0] if tally else (None, 0)
        decided = 2 * count > self._plan.width
        going = None if decided else self._all_ended(now)
        if going is not None:
            return going
        if not decided and (count < 2 or 2 * count <= len(votes)):
            if votes:
                message = f"of {len(votes)} answers at most {count} are alike: there is no majority"
                self._last_error = ErrorInfo(code="no_majority", message=message)
            return self._fail(now)
        learned = [self._learn(part, "panel", part.vote == best) for part in votes]
        return [*learned, *self._complete(next(part for part in votes if part.vote == best), now)]

    def _climb(self, part: _Part, now: float) -> list[Command]:
        """A rung of a cascade has answered, or its check has."""
        if part.role == "check":
            rung = self._answers[-1]
            verdict = (part.answer.output or {}).get("passed") if part.answer is not None else None
            if not isinstance(verdict, bool):
                said = self._last_error.message if part.answer is None else "it names no verdict"
                error = ErrorInfo(code="check_failed", message=f"{part.task.capability} could not tell: {said}"[:4096])
                return self._finish("failed", now, error)
            learned = self._learn(rung, "checker", verdict)
            if verdict:
                return [learned, *self._complete(rung, now)]
            message = f"{rung.worker}'s answer did not pass {part.task.capability}"
            self._last_error = ErrorInfo(code="not_verified", message=message)
            return [learned, *self._next_rung(now)]
        if part.answer is None:
            return self._next_rung(now)
        if self.task.strategy.check is not None:
            return self._check(part, now)
        confidence = (part.answer.output or {}).get("confidence")
        unsure = isinstance(confidence, int | float) and confidence < self.task.strategy.confidence
        return self._next_rung(now) if unsure else self._complete(part, now)

    def _next_rung(self, now: float) -> list[Command]:
        task, workers, at = self.task, self._plan.workers, len(self._answers)
        if at < len(workers):
            # A share of the time for each that may still be asked: one that is busy for ever keeps it from nobody.
            # Whether its answer is good enough is checked, not guessed.
            budget, deadline_s = max(task.budget - self._spent, 0), self._left_s(now) / (len(workers) - at)
            require = task.require.model_copy(update={"worker": workers[at]})
            commands = self._answer(now, budget, require, task.exclude, 0.0, deadline_s)
            if not self._present(workers[at]):  # still a part, so that whoever takes the task over counts the same
                commands.append(CancelPart(self._answers[-1].task.id))
            return commands
        if task.strategy.check is None:  # all are unsure: the dearest is the best there is
            answered = [part for part in self._answers if part.answer is not None]
            if answered:
                return self._complete(answered[-1], now)
        return self._fail(now)

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
        running = [CancelPart(part.task.id) for part in self._parts if part.final is None]
        return [*running, *self._perhaps_running()]

    def _clear_up(self, final: Final) -> list[Command]:
        return [*self._perhaps_running()]

    def _perhaps_running(self) -> list[CancelPart]:
        """Parts that another negotiator may have published, and this one has not begun to follow."""
        if not self._planned:
            return []
        most = self._plan.width * (1 if self.task.strategy.check is None else 2)
        return [CancelPart(part_id(self.task.id, number)) for number in range(len(self._parts) + 1, most + 1)]

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
    names = tuple(dict.fromkeys([*known, *(name for name in more if name)]))  # one that nobody had has none
    return selector.model_copy(update={name: names}) if names else selector
