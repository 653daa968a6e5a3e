"""A history: tasks, workers and negotiators, and what befalls them until the calm."""

from __future__ import annotations

from collections import Counter
from functools import partial

from modelnet.messages import Awarded, Final, Task
from tests.simulate.parties import Shell, SimulatedWorker
from tests.simulate.world import BEAT_S, CALM_S, DEADLINE_S, World

__all__ = ["History"]

REDELIVER_S = 10.0


class History:
    """One seed's network from its first task to well after the last deadline."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        self.workers: dict[str, SimulatedWorker] = {}
        self.shells: list[Shell] = []
        self.takeovers = self.deaths = self.freezes = self.cuts = self.drains = 0
        self.queued = Counter[str]()
        """What became of awards that had to wait for a slot, on workers that are gone."""
        self.aimed = world.random.random() < 0.2
        """Whether workers fail at work, again and again, as if their tasks did it."""
        world.on_cancelled = self._cancelled
        for n in range(world.random.randint(1, 4)):
            count, backlog = world.random.randint(1, 2), world.random.randint(0, 2)
            self._start_worker(f"w{n}", count, backlog, continues=world.random.random() < 0.6)
        self._start_negotiator()
        for n in range(world.random.randint(1, 4)):
            world.at(world.random.uniform(0.0, 4.0), partial(self._submit, f"k{n}"))
        world.at(BEAT_S, self._beat)

    def play(self) -> None:
        """Until nothing can happen any more."""
        random, world = self.world.random, self.world
        for _ in range(random.choice([0, 1, 2, 3])):
            world.at(random.uniform(0.0, CALM_S), self._negotiator_fails)
        for _ in range(30 if self.aimed else random.choice([0, 1, 2, 4])):
            world.at(random.uniform(0.0, CALM_S), self._worker_fails)
        for _ in range(random.choice([0, 1, 2]) if world.books else 0):
            world.at(random.uniform(0.0, CALM_S), self._ledger_fails)
        world.play(DEADLINE_S + 40.0)

    def check(self) -> None:
        """What must hold at the end."""
        self.world.check()
        for shell in self.shells:
            assert shell.dead or not shell.held, f"{shell.name} still holds {list(shell.held)}"
        for worker in self.workers.values():
            assert not list(worker.slots), f"{worker.name} still works"

    def ends(self) -> list[Final]:
        """The Final of each task."""
        return [entry for journal in self.world.journal.values() for _, entry in journal if isinstance(entry, Final)]

    def kinds(self) -> Counter[str]:
        """What became of attempts."""
        found = Counter[str](adopted=sum(shell.adopted for shell in self.shells)) + self.queued
        for worker in self.workers.values():
            found.update(worker.given_up, queued=worker.queued)
        settled = [one for final in self.ends() for one in final.settlements]
        found.update(settled=len(settled), lost_deposit=sum(one.price < 0 for one in settled))
        found.update("paid a part" for final in self.ends() if final.status == "cancelled" and final.price is not None)
        for journal in self.world.journal.values():
            awards = [entry for _, entry in journal if isinstance(entry, Awarded)]
            found.update("continued" if award.from_number else "reset" for award in awards[1:])
        return found

    # ------------------------------------------------------------------ the stream of tasks

    def _submit(self, name: str) -> None:
        world = self.world
        world.submit(Task(id=name, tenant="t", capability="a.b", input={}, deadline_s=DEADLINE_S))
        if world.random.random() < 0.25:
            world.at(world.random.uniform(0.0, 8.0), lambda: world.cancel(name))
        self._deliver(name)

    def _deliver(self, name: str) -> None:
        """To one of the negotiators; if it dies or stalls, to another."""
        alive = [shell for shell in self.shells if not shell.dead and shell.frozen_until <= self.world.now]
        if alive:
            shell = self.world.random.choice(alive)
            shell.reach(lambda: shell.take(name))
        self.world.at(REDELIVER_S if alive else 1.0, lambda: self._still_held(name, shell if alive else None))

    def _still_held(self, name: str, shell: Shell | None) -> None:
        """As the stream sees it: whoever holds a task says so every few seconds, else it is delivered again."""
        if self.world.ended(name) and (shell is None or name not in shell.held):
            return
        silent = shell is None or shell.dead or shell.frozen_until > self.world.now or name not in shell.held
        if silent:
            self._deliver(name)
        else:
            self.world.at(REDELIVER_S / 3, lambda: self._still_held(name, shell))

    def _cancelled(self, task: str, sequence: int) -> None:
        for shell in self.shells:
            self.world.send(shell, partial(shell.on_cancelled, task, sequence))

    # ------------------------------------------------------------------ processes come and go

    def _start_negotiator(self) -> None:
        shell = Shell(self.world, f"n{len(self.shells)}", self.workers, self.shells)
        self.shells.append(shell)
        for worker in self.workers.values():
            worker.shells = self.shells
            self.world.send(shell, partial(shell.on_beat, worker, worker.beat()))

    def _start_worker(self, name: str, count: int, backlog: int, *, continues: bool) -> None:
        worker = SimulatedWorker(
            self.world, name, count=count, backlog=backlog, continues=continues, instance=next(self.world.ids)
        )
        worker.shells = self.shells
        if (before := self.workers.get(name)) is not None:
            self.queued.update(before.given_up, queued=before.queued)
        self.workers[name] = worker

    def _beat(self) -> None:
        for worker in self.workers.values():
            worker.reach(partial(self._send_beat, worker))
        self.world.at(BEAT_S, self._beat)

    def _send_beat(self, worker: SimulatedWorker) -> None:
        worker.work_off()
        for shell in self.shells:
            if not worker.cut:
                self.world.send(shell, partial(shell.on_beat, worker, worker.beat()))

    def _negotiator_fails(self) -> None:
        shell, random = self.shells[-1], self.world.random
        self.takeovers += 1
        if random.random() < 0.5:
            shell.dead = True
        else:
            shell.frozen_until = self.world.now + random.uniform(0.5, 15.0)
        self.world.at(random.uniform(0.0, 5.0), self._start_negotiator)

    def _ledger_fails(self) -> None:
        assert self.world.books is not None
        self.world.books.outages += 1
        self.world.books.away_until_s = self.world.now + self.world.random.uniform(0.5, 10.0)

    def _worker_fails(self) -> None:
        """It dies or leaves and a new process takes its id, it freezes and goes on, or it is cut off for a while."""
        random = self.world.random
        at_work = [name for name, worker in self.workers.items() if list(worker.slots)]
        worker = self.workers[random.choice(sorted(at_work if at_work and self.aimed else self.workers))]
        if worker.dead:
            return
        back_s, kind = random.uniform(0.1, 8.0), random.choice(["dies", "leaves", "freezes", "is cut off"])
        if kind == "dies":
            self.deaths += 1
            worker.dead = True
            self.world.at(back_s, partial(self._replace, worker))
        elif kind == "leaves":
            self.drains += 1
            worker.reach(worker.drain)
            self.world.at(back_s, partial(self._replace, worker))
        elif kind == "is cut off":
            self.cuts += 1
            worker.disconnect(back_s)
        else:
            self.freezes += 1
            worker.frozen_until = self.world.now + back_s

    def _replace(self, worker: SimulatedWorker) -> None:
        if self.workers[worker.name] is worker:
            worker.dead = True
            self._start_worker(worker.name, worker.slots.count, worker.slots.backlog, continues=worker.continues)
