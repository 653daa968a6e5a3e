"""Whether inputs and outputs keep their contracts, wherever they are stored."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import structlog

from modelnet.bus.bodies import Bodies
from modelnet.contracts import check, compile_schema, features_of
from modelnet.errors import ObjectLost, TooLarge, UsageError
from modelnet.market import Directory
from modelnet.messages import Contract, Done, Features, Reference, Task, digest_of
from modelnet.prefix import is_marked

from .prefixes import PrefixKeys

__all__ = ["Examined", "Examiner", "usable"]

log = structlog.get_logger("negotiator")

LARGE_AT_ONCE = 2
"""Large inputs and outputs in memory at once."""

Examined = tuple[dict[str, str | None], Features]
"""How an input breaks each contract that it might be worked on under, None if it does not; what bidders learn of it."""


class Examiner:
    """Checks values against the contracts in the directory; large ones in a thread, a few at once."""

    def __init__(self, directory: Directory, bodies: Bodies, keys: PrefixKeys) -> None:
        self._directory = directory
        self._bodies = bodies
        self._keys = keys
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._validators: dict[tuple[str, str], Any] = {}

    def examine(self, task: Task, value: dict[str, Any], size: int) -> Examined:
        """Check an input of `size` bytes."""
        contracts = self._directory.contracts_for(task.capability)
        violations = {c.digest: check(self._validator(c, "input"), value) for c in contracts}
        # All negotiators must hash by the same contract, whatever order they know them in.
        marked = min((c for c in contracts if is_marked(c.input)), key=lambda c: c.digest, default=None)
        if marked is not None:
            return violations, features_of(value, size, marked.input, self._keys.of(task.tenant))
        return violations, features_of(value, size, contracts[0].input if contracts else {})

    async def examine_stored(self, task: Task, reference: Reference) -> Examined:
        """Fetch an input, check and forget it. Raises `ObjectLost`, `TooLarge`, `ConnectionFailed`."""
        async with self._large:
            value = await self._bodies.fetch(reference)
            return await asyncio.to_thread(self.examine, task, value, reference.size)

    def accepts(self, digest: str, value: dict[str, Any]) -> bool | None:
        """Whether an input keeps the contract of this digest; None if that was never announced."""
        contract = self._directory.contract(digest)
        return check(self._validator(contract, "input"), value) is None if contract is not None else None

    def judge(self, done: Done, output: dict[str, Any] | None, digest: str | None) -> str | None:
        """How an output breaks the contract of this digest, if it does."""
        if output is None:
            return "no output"
        if done.digest is not None and done.digest != digest_of(output):
            return "the digest is not that of the output"
        contract = self._directory.contract(digest or "")
        return check(self._validator(contract, "output"), output) if contract is not None else None

    async def judge_stored(self, done: Done, reference: Reference, digest: str | None) -> str | None:
        """The same for an output that is fetched, judged and forgotten. Raises `ConnectionFailed`."""
        async with self._large:
            try:
                value = await self._bodies.fetch(reference)
            except (ObjectLost, TooLarge) as error:
                return error.message
            return await asyncio.to_thread(self.judge, done, value, digest)

    def _validator(self, contract: Contract, side: Literal["input", "output"]) -> Any:
        found = self._validators.get((contract.digest, side))
        if found is None:
            schema = contract.input if side == "input" else contract.output
            found = self._validators[contract.digest, side] = compile_schema(schema)
        return found


def usable(contract: Contract) -> bool:
    """Whether a contract's schemas are schemas: anybody may announce anything."""
    try:
        compile_schema(contract.input)
        compile_schema(contract.output)
    except UsageError as error:
        log.warning("contract_unusable", capability=contract.capability, digest=contract.digest, reason=str(error))
        return False
    return True
