"""Whatever is asked of the ledger, in whatever order and however often: money is conserved, nobody overdraws, and each
task is paid for once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from redis.asyncio import Redis

from modelnet.bus.embedded import EmbeddedRedis
from modelnet.errors import GrantConflict, LedgerAway, NoFunds
from modelnet.store.ledger import Ledger, Window

# Few, so that what is asked often concerns the same.
NAMES = ("a", "b")
names = st.sampled_from(NAMES)
TASKS = ("k0", "k1")
tasks = st.sampled_from(TASKS)
workers = st.sampled_from(["v", "w"])
amounts = st.integers(0, 400)
deposits = st.integers(0, 100)

Call = Callable[[Ledger], Awaitable[Any]]


class Servers:
    """One Redis for all examples, and the loop that talks to it."""

    def __init__(self) -> None:
        self.loop = asyncio.Runner()
        self._folder = Path(tempfile.mkdtemp(prefix="ledger-"))
        self.redis = EmbeddedRedis(self._folder)
        self.loop.run(self.redis.start())

    def kill(self) -> None:
        """Kill -9 it, and start it on what it has written."""
        assert self.redis.pid is not None
        os.kill(self.redis.pid, signal.SIGKILL)
        self.loop.run(self.redis.stop())
        self.redis = EmbeddedRedis(self._folder, port=self.redis.port)
        self.loop.run(self.redis.start())

    def close(self) -> None:
        """Stop it."""
        self.loop.run(self.redis.stop())
        self.loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)


servers: Servers


def setup_module() -> None:
    global servers
    servers = Servers()


def teardown_module() -> None:
    servers.close()


class LedgerMachine(RuleBasedStateMachine):
    """Negotiators, ledger workers and an operator, each of whom may die after asking, and ask again."""

    asked = Bundle("asked")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000.0
        self.client = Ledger(servers.redis.url, clock=lambda: self.now)
        self.kills = 0
        self.most = Counter[tuple[str, str]]()
        """The largest hold that was asked for each task."""
        self.put_up = defaultdict[tuple[str, str, str], dict[str, int]](dict)
        """By tenant, task and owner, the largest deposit that each worker asked for."""

    @initialize(credits=st.integers(0, 1_000))
    def begin(self, credits: int) -> None:
        async def flush() -> None:
            async with Redis.from_url(servers.redis.url) as redis:
                await redis.flushall()
            await self.client.grant("a", credits, "first")
            await self.client.grant("b", 60, "first")
            for owner in NAMES:
                await self.client.allow_deposits(owner, "w", 300)

        servers.loop.run(flush())

    def ask(self, call: Call) -> Call:
        async def tried() -> None:
            try:
                await call(self.client)
            except (GrantConflict, NoFunds):
                return

        servers.loop.run(tried())
        return call

    # ------------------------------------------------------------------ what is asked

    @rule(target=asked, account=names, amount=st.integers(-300, 1_000), id=st.sampled_from(["g0", "g1"]))
    def grant(self, account: str, amount: int, id: str) -> Call:
        return self.ask(lambda ledger: ledger.grant(account, amount, id))

    @rule(target=asked, tenant=names, task=tasks, amount=amounts)
    def hold(self, tenant: str, task: str, amount: int) -> Call:
        self.most[tenant, task] = max(self.most[tenant, task], amount)
        return self.ask(lambda ledger: ledger.hold(tenant, task, amount, deadline_s=30))

    @rule(target=asked, tenant=names, task=tasks, owner=names, worker=workers, amount=deposits)
    def deposit(self, tenant: str, task: str, owner: str, worker: str, amount: int) -> Call:
        put_up = self.put_up[tenant, task, owner]
        put_up[worker] = max(put_up.get(worker, 0), amount)
        return self.ask(lambda ledger: ledger.deposit(tenant, task, amount, auction="a1", worker=worker, owner=owner))

    @rule(task=tasks, amount=deposits, worker=workers)
    def trial(self, task: str, amount: int, worker: str) -> None:
        """A hold and deposits behind it, as an auction has it."""
        self.most["a", task] = max(self.most["a", task], amount)
        self.ask(lambda ledger: ledger.hold("a", task, amount, deadline_s=30))
        for owner in NAMES:
            self.deposit("a", task, owner, worker, amount)

    @rule(target=asked, owner=names, worker=workers, most=st.none() | amounts)
    def allow_deposits(self, owner: str, worker: str, most: int | None) -> Call:
        return self.ask(lambda ledger: ledger.allow_deposits(owner, worker, most))

    @rule(
        target=asked,
        tenant=names,
        task=tasks,
        owner=names,
        price=amounts,
        lost=st.dictionaries(st.tuples(st.just("a1"), workers), amounts),
    )
    def settle(self, tenant: str, task: str, owner: str, price: int, lost: dict[tuple[str, str], int]) -> Call:
        return self.ask(lambda ledger: ledger.settle(tenant, task, owner, price, lost))

    @rule(target=asked, tenant=names, task=tasks)
    def release(self, tenant: str, task: str) -> Call:
        return self.ask(lambda ledger: ledger.release(tenant, task))

    @rule(target=asked, tenant=names, window=st.sampled_from(["hour", "day"]), amount=st.none() | amounts)
    def limit(self, tenant: str, window: Window, amount: int | None) -> Call:
        return self.ask(lambda ledger: ledger.limit(tenant, window, amount))

    # ------------------------------------------------------------------ what befalls it

    @rule(call=asked)
    def again(self, call: Call) -> None:
        """A replay: of the journal, or of whoever did not hear the answer."""
        self.ask(call)

    @rule(calls=st.lists(asked, max_size=6))
    def at_once(self, calls: list[Call]) -> None:
        """Several parties, each on a connection of its own."""

        async def race() -> None:
            found = await asyncio.gather(*(call(self.client) for call in calls), return_exceptions=True)
            for error in found:
                if isinstance(error, BaseException) and not isinstance(error, GrantConflict | NoFunds):
                    raise error

        servers.loop.run(race())

    @rule(call=asked, steps=st.integers(0, 4))
    def die_while_asking(self, call: Call, steps: int) -> None:
        """The party is gone before it hears; what it asked may have been done."""

        async def die() -> None:
            asking = asyncio.ensure_future(call(self.client))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        servers.loop.run(die())

    @rule()
    def redis_is_killed(self) -> None:
        if self.kills == 0:  # it takes a while to start
            self.kills += 1
            servers.kill()

    @rule(seconds=st.sampled_from([1.0, 40.0, 3_600.0, 86_400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        async def due() -> None:
            for tenant, task in await self.client.due():
                await self.client.release(tenant, task)

        servers.loop.run(due())

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def conserved(self) -> None:
        servers.loop.run(self._check())

    async def _check(self) -> None:
        try:
            books = await self.client.books()
        except LedgerAway:  # the connection of before the kill
            books = await self.client.books()
        assert books.imbalance == 0
        paid = dict[tuple[str, str], int]()
        earned = dict[tuple[str, str], int]()
        forfeited, compensated = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
        granted = defaultdict[str, set[str]](set)
        for account in books.accounts:
            assert account.balance >= 0, "an overdraft"
            assert account.held == sum(hold.amount for hold in await self.client.holds(account.name))
            running = 0
            for entry in reversed(await self.client.statement(account.name, 1_000)):
                running += entry.amount
                if entry.kind == "payment":
                    assert (account.name, entry.task) not in paid, "settled twice"
                    paid[account.name, entry.task] = -entry.amount
                    assert -entry.amount <= self.most[account.name, entry.task], "paid more than was held"
                elif entry.kind == "earning":
                    assert (entry.other, entry.task) not in earned, "paid out twice"
                    earned[entry.other, entry.task] = entry.amount
                elif entry.kind == "forfeit":
                    forfeited[entry.other, entry.task, account.name] -= entry.amount
                elif entry.kind == "compensation":
                    compensated[account.name, entry.task, entry.other] += entry.amount
                elif entry.kind in ("grant", "withdrawal"):
                    assert entry.other not in granted[account.name], "granted twice"
                    granted[account.name].add(entry.other)
            assert running == account.balance + account.held, "the statement explains the balance"
        assert paid == earned
        assert forfeited == compensated
        for (tenant, task, owner), sum_lost in forfeited.items():
            assert sum_lost <= sum(self.put_up[tenant, task, owner].values()), "more lost than was put up"
        for tenant, task in paid:
            open_tasks = {(hold.tenant or tenant, hold.task) for hold in await self.client.holds(tenant)}
            assert (tenant, task) not in open_tasks

        await self._check_spending()

    async def _check_spending(self) -> None:
        """What limits are compared with: held in the window, or paid out of what was held in it; nothing else."""
        async with Redis.from_url(servers.redis.url, decode_responses=True, protocol=2) as redis:
            for tenant in NAMES:
                ended: list[Any] = [
                    await redis.hmget(f"modelnet:{{ledger}}:hold:{tenant}:{task}", "state", "amount", "paid", "taken")
                    for task in TASKS
                ]
                for limit in (await self.client.account(tenant)).limits:
                    window_s = {"hour": 3_600, "day": 86_400}[limit.window]
                    spent = sum(
                        int(amount if state == "held" else paid)
                        for state, amount, paid, taken in ended
                        if taken is not None and int(taken) // 1000 // window_s == int(self.now) // window_s
                    )
                    assert limit.spent == spent, f"{tenant} has spent {spent} in this {limit.window}"

    def teardown(self) -> None:
        """Every hold ends, and all is where it belongs."""

        async def end() -> None:
            for name in NAMES:
                for hold in await self.client.holds(name):
                    await self.client.release(hold.tenant or name, hold.task)
            books = await self.client.books()
            assert sum(account.balance for account in books.accounts) == books.minted
            assert not any(account.held or account.holds for account in books.accounts)
            await self.client.close()

        servers.loop.run(end())


TestConservation = LedgerMachine.TestCase
TestConservation.settings = settings(max_examples=75, stateful_step_count=30, deadline=None)
