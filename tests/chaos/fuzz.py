"""Garbage at every subject while valid tasks run: `python -m tests.chaos.fuzz [--count N] [--seed N]`.

Ends with 1 if a process died, or a valid task did not end as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

import modelnet
from modelnet.client import Client
from tests.chaos import work
from tests.chaos.check import StreamCheck
from tests.chaos.fleet import Fleet, Sizes
from tests.chaos.garbage import Names, Shot, Target, drawn, shots

__all__ = ["Fuzz", "Outcome"]

BATCH = 25
"""Most messages made of each that Hypothesis draws; fewer if there are few in all, so every subject has its turn."""

DRAWS = 400

AT_ONCE = 8
"""Valid tasks under way at any time."""

PATIENCE_S = 60.0
LULL = 1000
"""After so many messages, wait until a valid task that is submitted then has ended: nobody falls behind for ever."""

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results" / "fuzz.txt"


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    sent: int = 0
    valid: int = 0
    """Valid tasks that ran beside the garbage."""
    problems: list[str] = field(default_factory=list)
    """Valid tasks that did not end as they should, and processes that died."""
    by_subject: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0


class _Stopped(BaseException):
    """Raised in the drawing thread once the run has ended early; Hypothesis lets it through."""


class Fuzz:
    """One network, much garbage, and a few people who go on working."""

    def __init__(self, folder: Path, *, count: int, seed: int, sizes: Sizes, always_with_reply: bool = False) -> None:
        """`always_with_reply`: every message names a subject for an answer, as all do that expect one."""
        self._fleet = Fleet(folder, sizes)
        self._count, self._seed = count, seed
        self._chance = random.Random(seed)
        self._names = Names([])
        self._always_with_reply = always_with_reply
        self._outcome = Outcome()
        self._batch = max(1, min(BATCH, count // DRAWS))
        self._over = False

    async def run(self) -> Outcome:
        """Send it all; every process that it started has ended when it returns."""
        began = time.monotonic()
        try:
            await self._fleet.start()
            pids = {party.name: party.pid for party in self._fleet.parties}
            self._names.workers = [party.name for party in self._fleet.of("worker")]
            async with modelnet.connect(f"nats://127.0.0.1:{self._fleet.nats.port}") as net:
                self._names.tenant = net.settings.tenant
                await self._valid(net)
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(self._work(net))
                    await asyncio.to_thread(self._draw, asyncio.get_running_loop(), net)
                    self._over = True
                await self._valid(net)
            for party in self._fleet.parties:
                if party.pid != pids[party.name]:
                    self._outcome.problems.append(f"{party.name} died: see {self._fleet.folder / party.name}.log")
        finally:
            self._over = True
            await self._fleet.stop()
        self._outcome.took_s = time.monotonic() - began
        return self._outcome

    # ------------------------------------------------------------------ valid tasks

    async def _work(self, net: Client) -> None:
        while not self._over:
            await self._valid(net)

    async def _valid(self, net: Client) -> None:
        """One task as anybody would publish it; what is wrong with its end is kept."""
        job, check = work.draw(self._chance), StreamCheck()
        self._outcome.valid += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                task = await net.submit(job.capability, job.input, priority=job.priority, deadline_s=PATIENCE_S)
                self._names.tasks.append(task.id)
                async for event in task.stream():
                    check.see(event, task.text)
        except (modelnet.ModelnetError, TimeoutError) as error:
            self._outcome.problems.append(f"{job.kind}: {error!r}")
            return
        self._names.tasks.remove(task.id)
        final = check.final
        assert final is not None
        self._names.negotiators = [*self._names.negotiators[-3:], final.negotiator]
        if final.status != "completed" or final.output != job.answer:
            self._outcome.problems.append(f"{job.kind} {task.id}: {final.status} {final.error}")
        self._outcome.problems += [f"{job.kind} {task.id}: {problem}" for problem in check.problems]

    # ------------------------------------------------------------------ garbage

    def _draw(self, loop: asyncio.AbstractEventLoop, net: Client) -> None:
        """In a thread: let Hypothesis draw, and hand each batch to the loop."""
        rounds = 0

        def send(drawn: tuple[Target, Any, int]) -> None:
            if self._over:
                raise _Stopped
            left = self._count - self._outcome.sent
            batch = list(shots(*drawn, self._names, min(self._batch, left)))
            asyncio.run_coroutine_threadsafe(self._fire(net, drawn[0], batch), loop).result()

        while self._outcome.sent < self._count:
            run = hypothesis.settings(
                max_examples=max((self._count - self._outcome.sent) // self._batch, 1),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(hypothesis.given(drawn())(send))
            hypothesis.seed(self._seed + rounds)(run)()
            rounds += 1

    async def _fire(self, net: Client, target: Target, batch: list[Shot]) -> None:
        inbox = net.bus.new_inbox()
        before = self._outcome.sent
        for shot in batch:
            reply = shot.wants_reply or self._always_with_reply
            await net.bus.publish(shot.subject, shot.body, reply=inbox if reply else "")
        self._outcome.sent += len(batch)
        self._outcome.by_subject[target.subject] += len(batch)
        if before // LULL != self._outcome.sent // LULL:
            await self._valid(net)


def main() -> int:
    """Run it and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument(
        "--write", action="store_true", help=f"write the output to {RESULTS.parent.name}/{RESULTS.name}"
    )
    parser.add_argument("--always-with-reply", action="store_true", help="every message names a subject for an answer")
    args = parser.parse_args()
    head = (
        f"tests/chaos/fuzz.py, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}: seed {args.seed}"
    )
    print(head, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="modelnet-fuzz-"))
    sizes = Sizes(negotiators=2, workers=3)
    fuzz = Fuzz(folder, count=args.count, seed=args.seed, sizes=sizes, always_with_reply=args.always_with_reply)
    outcome = asyncio.run(fuzz.run())
    lines = [
        f"{outcome.sent} messages that nobody should send, to {len(outcome.by_subject)} kinds of subjects",
        f"{outcome.valid} valid tasks beside them, {len(outcome.problems)} problems",
        *outcome.problems[:20],
        "FAILED" if outcome.problems else f"passed in {outcome.took_s:.0f} s",
    ]
    print("\n".join(lines), flush=True)
    if args.write:
        RESULTS.write_text("\n".join([head, "", *lines]) + "\n")
    if outcome.problems:
        print(f"logs and streams: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
