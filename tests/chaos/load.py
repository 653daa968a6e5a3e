"""A client process of the campaign: publishes a steady mix of tasks and follows each to its end, checking its stream.

    python -m tests.chaos.load --tasks 1000 --rate 20 --seed 1 --out records.jsonl

`MODELNET_URL` and `MODELNET_TENANT` as for any client. What happened goes to the file, a JSON object a line: `accepted`
when the task stream has acknowledged a task, `ended` when its reader saw the Final, `hung` when it did not in time.
It publishes on beyond its tasks until SIGUSR1 says that the faults are over: one that waits for a moment in the life of
a task needs tasks. SIGTERM ends the publishing at once; the process ends when every task has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats.errors
import uvloop

import modelnet
from modelnet.errors import ConnectionFailed
from modelnet.messages import Final, new_id
from tests.chaos import work
from tests.chaos.check import StreamCheck

MOST_AT_ONCE = 600
"""Tasks without an end at which publishing waits."""

GRACE_S = 20.0
"""How long after its deadline a task's Final may reach its reader."""

RETRY_S = 0.5
VLLM_SHARE = 0.03


class Load:
    """Publishes, follows, and writes down."""

    def __init__(self, net: modelnet.Client, args: argparse.Namespace) -> None:
        self._net, self._args = net, args
        self._chance = random.Random(args.seed)
        self._tenant = net.settings.tenant
        self._out = os.open(args.out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._open = asyncio.Semaphore(MOST_AT_ONCE)
        self._model_tasks = json.loads(args.model_tasks.read_text()) if args.model_tasks else []
        self.stop = asyncio.Event()
        self.enough = asyncio.Event()

    def _write(self, what: str, **fields: Any) -> None:
        os.write(self._out, (json.dumps({"what": what, "tenant": self._tenant, **fields}) + "\n").encode())

    async def run(self) -> None:
        """Publish until the count is reached and there is `enough`, or until `stop`; then wait for every end."""
        clock = asyncio.get_running_loop().time
        due, published = clock(), 0
        async with asyncio.TaskGroup() as group:
            while published < self._args.tasks or not self.enough.is_set():
                published += 1
                await self._open.acquire()
                due = max(due + 1 / self._args.rate, clock() - 2.0)  # after a halt it catches up a little, not all
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), max(due - clock(), 0.0))
                if self.stop.is_set():
                    break
                group.create_task(self._one(self._draw()))

    def _draw(self) -> work.Job:
        if self._model_tasks and self._chance.random() < VLLM_SHARE:
            capability, input, answer = self._chance.choice(self._model_tasks)
            return work.Job("vllm", capability, input, answer, 0.0, 5, False, False)
        return work.draw(self._chance)

    async def _one(self, job: work.Job) -> None:
        try:
            submitted = time.monotonic()
            task = await self._submit(job)
            if task is None:
                return
            told = {"task": task.id, "kind": job.kind, "nominal_ms": job.nominal_ms, "submitted_at": submitted}
            self._write("accepted", accepted_at=time.monotonic(), **told)
            check = StreamCheck()
            try:
                async with asyncio.timeout(self._args.deadline_s + GRACE_S):
                    await self._follow(task, job, check)
            except TimeoutError:
                self._write("hung", problems=check.problems, **told)
                return
            ended, final = time.monotonic(), check.final
            assert final is not None
            if job.late_reader:
                check.problems += await self._read_again(task, job, check)
            self._write(
                "ended",
                **told,
                ended_at=ended,
                status=final.status,
                code=final.error.code if final.error else None,
                attempts=final.attempts,
                resets=check.resets,
                wrong=final.status == "completed" and final.output != job.answer,
                final=_identity(final),
                problems=check.problems,
            )
        finally:
            self._open.release()

    async def _submit(self, job: work.Job) -> modelnet.TaskHandle | None:
        """Publish it; a task with an id of its own again until it is accepted, any other once."""
        id = new_id() if job.own_id else None
        while True:
            try:
                return await self._net.submit(
                    job.capability, job.input, id=id, priority=job.priority, deadline_s=self._args.deadline_s
                )
            except modelnet.ModelnetError as error:
                self._write("refused", code=error.wire_code, kind=job.kind)
                if id is None or self.stop.is_set():
                    return None
                await asyncio.sleep(RETRY_S)

    async def _follow(self, task: modelnet.TaskHandle, job: work.Job, check: StreamCheck) -> None:
        """Read the stream to its end; a reader that is told of a lost connection begins again."""
        cancels = job.kind == "cancel"
        while check.final is None:
            try:
                async for event in task.stream():
                    check.see(event, task.text)
                    if cancels and len(check.text) >= job.cancel_after:
                        cancels = False
                        for _ in range(2):  # twice is harmless
                            with contextlib.suppress(modelnet.ModelnetError, nats.errors.Error, TimeoutError):
                                await task.cancel()
            except ConnectionFailed:
                self._write("reader_restarted", task=task.id)
                check.begin_again()
                await asyncio.sleep(RETRY_S)

    async def _read_again(self, task: modelnet.TaskHandle, job: work.Job, first: StreamCheck) -> list[str]:
        """A late reader: what it finds wrong, and where it was shown something else than the first."""
        late = StreamCheck()
        again = self._net.task(task.id, tenant=self._tenant)
        try:
            async with asyncio.timeout(GRACE_S):
                await self._follow(again, replace(job, kind="late"), late)
        except TimeoutError:
            return ["late: no end"]
        problems = [f"late: {problem}" for problem in late.problems]
        if late.final != first.final:
            problems.append("late: another Final")
        if late.text != first.text and first.final is not None and first.final.status == "completed":
            problems.append("late: another text")
        return problems


def _identity(final: Final) -> list[Any]:
    """What tells one Final of a task from another."""
    return [final.status, final.worker, final.attempt, final.digest, final.negotiator]


async def main() -> None:
    """Connect and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="tasks a second")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline-s", type=float, default=60.0)
    parser.add_argument("--model-tasks", type=Path, help="JSON list of [capability, input, answer] for a vLLM worker")
    args = parser.parse_args()
    async with modelnet.connect() as net:
        load = Load(net, args)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, load.enough.set)
        print("load_started", flush=True)
        await load.run()


if __name__ == "__main__":
    uvloop.run(main())
