"""What all stores have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from modelnet.bus.embedded import EmbeddedRedis
from modelnet.store.ledger import Ledger
from modelnet.store.reputation import ReputationBook
from tests.network.stage import require_an_end

pytestmark = pytest.mark.asyncio(loop_scope="module")

TURNS = 40
"""Of the event loop: more than a first call takes that has a connection to make."""


@pytest.mark.parametrize("warm", [False, True], ids=["connecting", "connected"])
async def test_a_cancellation_ends_a_call_wherever_it_meets_it(redis_server: EmbeddedRedis, warm: bool) -> None:
    """redis-py has `asyncio.wait_for`, which before Python 3.12 swallows one that meets a result: whoever asks again
    and again, as the watcher does, did so for ever, and who had cancelled it waited as long."""

    async def ends(look: Callable[[], Awaitable[object]], turns: int) -> None:
        if warm:
            await look()
        await require_an_end(look, turns)

    for turns in range(TURNS):
        async with Ledger(redis_server.url) as ledger:
            await ends(ledger.books, turns)
        async with ReputationBook(redis_server.url) as book:
            await ends(partial(book.of, ["somebody"]), turns)
