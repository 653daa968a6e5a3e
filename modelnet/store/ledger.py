"""The ledger: accounts, holds and settlements in Redis, each operation one atomic script (`ledger.lua`).

Money is conserved: credits come from the mint, whose balance is negative by as much, so all balances and all holds
always add up to 0. Every operation may be repeated: a grant is known by its id, a hold and its end by tenant and task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelnet.errors import GrantConflict, LedgerAway, NoFunds, UnknownAccount, UsageError
from modelnet.messages import ErrorInfo

from .connection import ScriptedStore

__all__ = ["MAX_AMOUNT", "Account", "Books", "Entry", "Ledger", "Limit", "OpenHold", "Window"]

MAX_AMOUNT = 2**53 - 1
"""Largest sum of money anywhere, in micro-credits: what Lua, and most languages' JSON, still count exactly."""

MARGIN_S = 60.0
"""How long after its deadline a task may be without a Final before the sweep asks what became of it."""

Window = Literal["hour", "day"]

_PREFIX = "modelnet:{ledger}:"
_MINT = ":mint"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a tenant may spend in one window: from each full hour, or from midnight UTC."""

    window: Window
    amount: int | None
    """In micro-credits; None: no limit."""
    spent: int
    """In the window that runs now: paid, or held."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account as it stands. All money in micro-credits."""

    name: str
    balance: int
    """What it has beside its holds."""
    held: int
    holds: int
    """Tasks it has holds for, and deposits."""
    metered: bool
    """Whether its tasks are charged."""
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One movement of an account's statement."""

    at: float
    """Seconds since the epoch."""
    kind: Literal["grant", "withdrawal", "payment", "earning", "forfeit", "compensation"]
    """`forfeit`: of a deposit, for an answer that was worth less than nothing; to its tenant as `compensation`."""
    amount: int
    """In micro-credits; below 0 for what went out."""
    balance: int
    """Thereafter."""
    task: str
    """What was paid for; empty for a grant."""
    other: str
    """The other party's account, or the grant's id."""


@dataclass(frozen=True, slots=True)
class OpenHold:
    """Money set aside for a task that has not ended."""

    task: str
    amount: int
    taken_at: float
    """Seconds since the epoch."""
    tenant: str | None = None
    """For a deposit: whose task it was put up for."""
    worker: str | None = None
    """For a deposit: who put it up."""


@dataclass(frozen=True, slots=True)
class Books:
    """All accounts at one moment."""

    accounts: tuple[Account, ...]
    minted: int
    """Micro-credits ever granted, less those withdrawn."""

    @property
    def imbalance(self) -> int:
        """What the accounts and holds have more than was minted: 0, or the ledger is broken."""
        return sum(account.balance + account.held for account in self.accounts) - self.minted


class Ledger(ScriptedStore):
    """A connection to the ledger, made when first used. Every method raises `LedgerAway` while Redis is away."""

    away, is_away = LedgerAway, "the ledger is away"
    script, prefix = "ledger.lua", _PREFIX

    # ------------------------------------------------------------------ a task's money

    async def hold(self, tenant: str, task: str, amount: int, *, deadline_s: float) -> ErrorInfo | None:
        """Set `amount` aside for a task that ends within `deadline_s`: None, or why not.

        Not: `no_funds`, `over_limit`, or `task_ended` where its settlement or release came first.
        """
        due_in_ms = int((max(deadline_s, 0.0) + MARGIN_S) * 1e3)
        status, *facts = await self._call("hold", tenant, task, min(amount, MAX_AMOUNT), due_in_ms)
        if status == "held":
            return None
        if status == "no_funds":
            return ErrorInfo(code="no_funds", message=_no_funds(tenant, amount, *facts))
        if status == "over_limit":
            limit, spent, left_ms, window = facts
            message = (
                f"{tenant} may spend {limit} micro-credits per {window}; {spent} are spent or held, and this task's"
                f" budget is {amount}: lower it, wait {left_ms / 6e4:.0f} min for the next {window}, or raise the limit"
                f" with `modelnet limit {tenant} --per-{window} {spent + amount}`"
            )
            return ErrorInfo(code="over_limit", message=message)
        message = f"the account of task {task} is closed: it has ended, and its id cannot be used again for 7 days"
        return ErrorInfo(code="task_ended", message=message)

    async def deposit(
        self, tenant: str, task: str, amount: int, *, auction: str, worker: str, owner: str
    ) -> Literal["held", "no_hold", "not_allowed", "no_funds"]:
        """Set `amount` of a worker's owner aside until the task ends: `held`, or why not.

        `no_hold`: nothing is held for the task, or it has ended. `not_allowed`: the owner has not allowed this worker
        so much, see `allow_deposits`. `no_funds`: the owner has less. Once for each auction and worker.
        """
        said: Literal["held", "no_hold", "not_allowed", "no_funds"] = await self._call(
            "deposit", tenant, task, auction, worker, owner, min(amount, MAX_AMOUNT)
        )
        return said

    async def settle(
        self, tenant: str, task: str, owner: str, price: int, lost: Mapping[tuple[str, str], int] | None = None
    ) -> int:
        """End a task's hold: `price` of it to the account of the worker's owner, the rest back. What was paid.

        `lost`: by auction and worker, what the tenant gets of a deposit; all others go back, and what is more than was
        put up is not asked for. 0 for a task without a hold, and what was paid before if the hold had ended before.
        Never more than was held.
        """
        gone = [part for (auction, worker), sum in (lost or {}).items() for part in (f"{auction}:{worker}", sum)]
        return int((await self._call("close", tenant, task, "settled", owner, min(price, MAX_AMOUNT), *gone))[1])

    async def release(self, tenant: str, task: str) -> int:
        """End a task's hold and deposits: all back. What was paid, if it had been settled before."""
        return int((await self._call("close", tenant, task, "released", "", 0))[1])

    async def due(self, most: int = 100) -> list[tuple[str, str]]:
        """Tenant and task of the oldest holds that should have ended by now."""
        return [tuple(member.split(":")) for member in await self._call("due", most)]

    async def postpone(self, tenant: str, task: str, by_s: float) -> None:
        """Leave a hold that is due alone for a while."""
        await self._call("postpone", tenant, task, int(by_s * 1e3))

    # ------------------------------------------------------------------ accounts

    async def grant(self, account: str, amount: int, id: str) -> int:
        """Give an account credits from the mint, or take some back where `amount` is below 0; its balance.

        The account is metered from then on unless some were taken. Raises `GrantConflict` for an id used with another
        amount, `NoFunds` where it has less than should be taken, and `UsageError` for more than can be counted.
        """
        if abs(amount) > MAX_AMOUNT:
            raise UsageError(f"{amount} is more than can be counted: {MAX_AMOUNT} at most")
        status, *facts = await self._call("grant", account, amount, id)
        if status == "conflict":
            raise GrantConflict(f"grant {id!r} of {account} was made already, of {facts[1]} and not {amount}")
        if status == "no_funds":
            raise NoFunds(f"{account} has {facts[0]} micro-credits beside its holds: {-amount} cannot be taken")
        if status == "too_much":
            raise UsageError(f"{-facts[0]} are granted already: with {amount} more they could not be counted exactly")
        return int(facts[0])

    async def limit(self, tenant: str, window: Window, amount: int | None) -> None:
        """Bound what a tenant's tasks may spend in each hour or day; None: no bound. It is metered from then on."""
        if amount is not None and not 0 <= amount <= MAX_AMOUNT:
            raise UsageError(f"a limit is between 0 and {MAX_AMOUNT}, not {amount}")
        await self._call("limit", tenant, window, "" if amount is None else amount)

    async def allow_deposits(self, owner: str, worker: str, most: int | None) -> None:
        """Let a worker put up at most so much of its owner's money for one task; None: nothing.

        Who owns it a worker says itself: without this, anybody's could be put at risk.
        """
        if most is not None and not 0 <= most <= MAX_AMOUNT:
            raise UsageError(f"a deposit is between 0 and {MAX_AMOUNT}, not {most}")
        await self._call("depositor", owner, worker, "" if most is None else most)

    async def depositors(self, owner: str) -> dict[str, int]:
        """The workers that may put up an owner's money, and how much for one task."""
        found: dict[str, str] = await self._read(self._redis.hgetall(f"{_PREFIX}depositors"))
        return {name.partition(":")[2]: int(most) for name, most in found.items() if name.startswith(f"{owner}:")}

    async def free(self, tenant: str) -> None:
        """Charge a tenant nothing any more; what it has stays, what is held ends as it would."""
        await self._call("free", tenant)

    async def account(self, name: str) -> Account:
        """One account. Raises `UnknownAccount`."""
        known, metered, balance, held, holds, *limits = await self._call("account", name)
        if not known:
            raise UnknownAccount(
                f"no account {name!r}: `modelnet credit {name} AMOUNT` opens one; until then it is free"
            )
        windows: tuple[Window, ...] = ("hour", "day")
        found = zip(windows, limits[::2], limits[1::2], strict=True)
        kept = tuple(Limit(window, None if limit is None else int(limit), spent) for window, limit, spent in found)
        return Account(name, balance, held, holds, bool(metered), kept)

    async def holds(self, tenant: str, most: int = 20) -> list[OpenHold]:
        """An account's open holds and deposits, the newest first."""
        newest = await self._newest("holds", tenant, most)
        amounts = await self._transaction(("HGET", f"{_PREFIX}hold:{tenant}:{task}", "amount") for task, _ in newest)
        found = [OpenHold(task, int(a or 0), at / 1e3) for (task, at), a in zip(newest, amounts, strict=True)]
        put_up = [(member.split(":"), at) for member, at in await self._newest("deposits", tenant, most)]
        amounts = await self._transaction(
            ("HGET", f"{_PREFIX}hold:{payer}:{task}", f"deposit:{auction}:{worker}")
            for (payer, task, auction, worker), _ in put_up
        )
        for ((payer, task, _, worker), at), amount in zip(put_up, amounts, strict=True):
            found.append(OpenHold(task, int(amount or 0), at / 1e3, payer, worker))
        return sorted(found, key=lambda hold: -hold.taken_at)[:most]

    async def _newest(self, kind: str, account: str, most: int) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = await self._read(
            self._redis.zrange(f"{_PREFIX}{kind}:{account}", 0, most - 1, desc=True, withscores=True)
        )
        return found

    async def statement(self, account: str, most: int = 20) -> list[Entry]:
        """An account's last movements, the newest first. The last thousand are kept."""
        found = await self._read(self._redis.xrevrange(f"{_PREFIX}statement:{account}", count=most))
        return [
            Entry(
                at=int(fields["at"]) / 1e3,
                kind=fields["kind"],
                amount=int(fields["amount"]),
                balance=int(fields["balance"]),
                task=fields["task"],
                other=fields["other"],
            )
            for _, fields in found
        ]

    async def metered(self) -> set[str]:
        """Every tenant that is charged."""
        return set(await self._read(self._redis.smembers(f"{_PREFIX}metered")))

    async def books(self) -> Books:
        """All accounts, by name, at one moment. Without limits, which are each account's own."""
        ask = (("HGETALL", f"{_PREFIX}balances"), ("HGETALL", f"{_PREFIX}held"), ("SMEMBERS", f"{_PREFIX}metered"))
        balances, held, metered = await self._transaction(ask)
        names = sorted({*balances, *held, *metered} - {_MINT})
        kinds = ("holds", "deposits")
        counts = await self._transaction(("ZCARD", f"{_PREFIX}{kind}:{name}") for kind in kinds for name in names)
        accounts = tuple(
            Account(name, int(balances.get(name, 0)), int(held.get(name, 0)), holds + deposits, name in metered)
            for name, holds, deposits in zip(names, counts[: len(names)], counts[len(names) :], strict=True)
        )
        return Books(accounts, minted=-int(balances.get(_MINT, 0)))

    # ------------------------------------------------------------------ Redis

    async def _transaction(self, commands: Iterable[tuple[str, ...]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=True)
        for command in commands:
            pipeline.execute_command(*command)
        found: list[Any] = await self._read(pipeline.execute())
        return found


def _no_funds(tenant: str, amount: int, balance: int, held: int, holds: int) -> str:
    busy = f" and {held} more held for {holds} of its tasks" if holds else ""
    wait = ", wait for those to end" if holds else ""
    return (
        f"{tenant} has {balance} micro-credits{busy}; this task's budget is {amount}: lower it{wait}, or add to the"
        f" account with `modelnet credit {tenant} {amount - balance}`"
    )
