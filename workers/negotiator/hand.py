"""The tasks in one negotiator's hands: each with its message, its undertaking and its timers; who of them waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nats.aio.msg import Msg

from modelnet.bus.intake import Delivery
from modelnet.market import COMPOSITE, Composite, Line, Negotiation, Place, Undertaking
from modelnet.market.commands import Timer
from modelnet.messages import Task

__all__ = ["Hand", "Held", "Part"]

WAITING_SHARE = 0.5
"""Of the tasks held, those of one capability that may wait for a free worker; more go back to the stream."""

ASIDE_SHARE = 0.25
"""Of the tasks held, those that may wait for the ledger or a better bid; more go back to the stream, to let others' be
seen."""

TENANT_SHARE = 0.75
"""Of the tasks held, those of one tenant and class; more go back to the stream, to let others' be seen."""


@dataclass(slots=True)
class Part:
    """A part of a task, as far as it is followed."""

    follower: asyncio.Task[None] | None = None
    published: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is, or never will be."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its journal may have grown."""
    seen: int = 0
    """Sequence of the last entry of its journal that its task was told of."""


@dataclass(slots=True, eq=False)
class Held:
    """One task."""

    msg: Msg
    """Its message: the last, if it was delivered more than once."""
    undertaking: Undertaking
    accepts: Callable[[str], bool]
    """Whether its input satisfies the contract of this digest, one that was announced since too."""
    timers: dict[Timer, asyncio.TimerHandle] = field(default_factory=dict)
    """The last started of each kind: an older one means nothing any more."""
    late: str = ""
    """Auction whose time for bids is up: once our own word on that is read, it closes."""
    award: str = ""
    """Token of what was last asked about its award: the award itself, or whether its worker has it."""
    auction: str = ""
    """Id of the auction that is open."""
    suspect: int = 0
    """The attempt that its worker's last beat did not list."""
    fetching: int = 0
    """The attempt whose large output is being fetched."""
    place: Place | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    """Those that it is made of, by id."""
    cancels: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Those who cancel parts of it, by the part's id."""
    in_intake: bool = True
    """Whether it has one of the intake's places."""
    begun: bool = False
    """Whether a worker took it on: since then it is in nobody's way, and in no share of what is held."""
    called_for: str = ""
    """The worker for whose free slot it was called out of the line, until its auction is decided."""

    @property
    def negotiation(self) -> Negotiation:
        """The undertaking of a task that one worker answers; events that only such a one asked for are for it."""
        assert isinstance(self.undertaking, Negotiation)
        return self.undertaking

    @property
    def composite(self) -> Composite:
        """The undertaking of one that is made of parts."""
        assert isinstance(self.undertaking, Composite)
        return self.undertaking

    @property
    def is_composite(self) -> bool:
        """Whether it is made of parts."""
        return isinstance(self.undertaking, Composite)

    @property
    def task(self) -> Task:
        """The task itself."""
        return self.undertaking.task

    @property
    def key(self) -> tuple[str, str]:
        """What names it: ids are unique for each tenant."""
        return self.task.tenant, self.task.id

    @property
    def age(self) -> int:
        """Its sequence in the stream: smaller is older."""
        return Delivery.of(self.msg).sequence


class Hand:
    """All of them."""

    def __init__(self, most: int, most_at_work: int) -> None:
        """`most`: how many may be held that no worker is at; what waits and what one tenant has is bounded by shares of
        it. `most_at_work`: how many beside them."""
        self.waiting = Line[Held](max(int(most * WAITING_SHARE), 1))
        """Those that wait for a worker."""
        self._held: dict[tuple[str, str], Held] = {}
        self._by_auction: dict[str, Held] = {}
        self._called = set[Held]()
        self._aside = set[Held]()
        self._most_aside = max(int(most * ASIDE_SHARE), 1)
        self._by_tenant = Counter[tuple[str, int, bool]]()
        """How many are held of a tenant and class. Those made of parts count by themselves: else they could take all
        the places that their parts need."""
        self._most_of_a_tenant = max(int(most * TENANT_SHARE), 1)
        self._most_composites = most
        self._begun, self._most_begun = 0, most_at_work

    def all(self) -> list[Held]:
        """A list, so that it does not change under its reader."""
        return list(self._held.values())

    def get(self, tenant: str, task: str) -> Held | None:
        """The task, if it is in hand."""
        return self._held.get((tenant, task))

    def holds(self, held: Held) -> bool:
        """Whether a task is still in hand: what comes for one that was given back is void."""
        return self._held.get(held.key) is held

    def has_room_for(self, task: Task) -> bool:
        """Whether its tenant has fewer than its share in hand, or this one is among them already."""
        if (task.tenant, task.id) in self._held:
            return True
        kind = task.strategy.kind
        if kind in (*COMPOSITE, "auto"):
            composites = sum(count for (_, _, composite), count in self._by_tenant.items() if composite)
            mine = self._by_tenant[task.tenant, task.priority_class, True]
            if mine >= self._most_of_a_tenant or composites >= self._most_composites:
                return False
        return self._by_tenant[task.tenant, task.priority_class, False] < self._most_of_a_tenant

    def add(self, held: Held) -> None:
        """Take a task in hand."""
        self._held[held.key] = held
        self._by_tenant[_owner(held)] += 1

    def forget(self, held: Held) -> None:
        """It is in hand no longer."""
        if self.holds(held):
            del self._held[held.key]
            if held.begun:
                self._begun -= 1
            else:
                self._uncount(held)
        self.closed(held)
        self._stop_waiting(held)
        self._called.discard(held)
        for timer in held.timers.values():
            timer.cancel()
        held.timers.clear()
        for part in held.parts.values():
            if part.follower is not None:
                part.follower.cancel()
        held.parts.clear()
        held.cancels.clear()

    def begin(self, held: Held) -> bool:
        """A worker took it on. Whether there is room for it beside what waits: else it stays where it is."""
        if held.begun or not self.holds(held) or self._begun >= self._most_begun:
            return False
        self._uncount(held)
        held.begun = True
        self._begun += 1
        return True

    def _uncount(self, held: Held) -> None:
        owner = _owner(held)
        self._by_tenant[owner] -= 1
        if not self._by_tenant[owner]:
            del self._by_tenant[owner]

    # ------------------------------------------------------------------ auctions

    def opened(self, held: Held, auction: str) -> None:
        """An auction is open for it; it waits no longer."""
        self._stop_waiting(held)
        self.closed(held)
        held.auction = auction
        self._by_auction[auction] = held

    def closed(self, held: Held) -> None:
        """Its auction takes no more bids."""
        self._by_auction.pop(held.auction, None)
        held.auction = ""

    def in_auction(self, auction: str) -> Held | None:
        """The task whose open auction this is."""
        return self._by_auction.get(auction)

    # ------------------------------------------------------------------ waiting

    def wait(self, held: Held, *, aside: bool) -> Held | None:
        """It waits, in line for a worker or aside; returns whoever must go back to the stream for it."""
        self.closed(held)
        if not aside:
            return self.waiting.add(held)
        self.waiting.leave(held)  # a free slot is for those that could take it
        self._aside.add(held)
        return held if len(self._aside) > self._most_aside else None

    def _stop_waiting(self, held: Held) -> None:
        self.waiting.leave(held)
        self._aside.discard(held)

    def call(
        self, worker: str, serves: Callable[[str], bool], could_take: Callable[[Held], bool], count: int
    ) -> list[Held]:
        """The first `count` in line that this worker could take: each is to hold an auction."""
        called = self.waiting.call(serves, could_take, count)
        for held in called:
            held.called_for = worker
        self._called.update(called)
        return called

    def called_for(self, worker: str) -> int:
        """How many were called for this worker's free slots, and are not decided."""
        return sum(held.called_for == worker for held in self._called)

    def decided(self, held: Held) -> str:
        """The auction for which it was called is over; returns the worker for whose slot that was."""
        worker, held.called_for = held.called_for, ""
        self._called.discard(held)
        return worker


def _owner(held: Held) -> tuple[str, int, bool]:
    return held.task.tenant, held.task.priority_class, held.is_composite
