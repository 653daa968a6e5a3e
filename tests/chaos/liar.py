"""A worker that lies about being alive: `python -m tests.chaos.liar MODE`, spoken on the bare wire.

It joins, beats, and bids less than anybody. Then, by mode: `mute` never answers an award; `forgetful` confirms, and its
beats do not list the attempt; `holder` confirms, its beats list the attempt for ever, and no event of it ever comes.
It takes a few tasks at a time and bids no more once it has had its fill.
"""

from __future__ import annotations

import asyncio
import os
import sys

import nats
from nats.aio.msg import Msg

from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.messages import (
    Award,
    Beat,
    Bid,
    BidRequest,
    CapabilityCard,
    Confirm,
    Contract,
    Refusal,
    RunningAttempt,
    WorkerCard,
    new_id,
)
from modelnet.settings import Settings

MODES = ("mute", "forgetful", "holder")
CAPABILITY = "chaos.echo"
FILL = 4
"""Awards that it takes in all."""


async def main(mode: str) -> None:
    """Lie until killed."""
    config, name, instance = Settings(), os.environ["CHAOS_NAME"], new_id()
    running: list[RunningAttempt] = []
    awards = 0
    nc = await nats.connect(config.servers, max_reconnect_attempts=-1)
    contract = Contract(capability=CAPABILITY)
    card = WorkerCard(
        worker=name,
        capabilities=(CapabilityCard(pattern=CAPABILITY, contract=contract.digest, price=0),),
        slots=FILL,
        instance=instance,
    )

    async def beat(msg: Msg | None = None) -> None:
        state = Beat(worker=name, instance=instance, slots=FILL, running=tuple(running)).encode()
        await nc.publish(msg.reply if msg is not None and msg.reply else subjects.beat(name), state)

    async def bid(msg: Msg) -> None:
        auction = BidRequest.decode(msg.data).auction
        offer = Bid(auction=auction, worker=name, price=0, p50_ms=1, p90_ms=2)
        busy = Refusal(auction=auction, worker=name, reason="busy")
        await nc.publish(f"{msg.reply}.{name}", (offer if awards < FILL else busy).encode())

    async def awarded(msg: Msg) -> None:
        nonlocal awards
        awards += 1
        if mode == "mute":
            return
        if mode == "holder":
            award = Award.decode(msg.data)
            running.append(RunningAttempt(tenant=award.tenant, task=award.task, attempt=award.attempt))
        await nc.publish(msg.reply, Confirm(worker=name).encode())

    await nc.subscribe(subjects.query(name), cb=beat)
    await nc.subscribe(subjects.ROLL_CALL, cb=beat)
    await nc.subscribe(subjects.award(name), cb=awarded)
    catalogue = Catalogue(nc)
    await catalogue.announce(contract)
    await catalogue.claim(card)
    await nc.subscribe(subjects.capability(CAPABILITY), cb=bid)
    await nc.flush()
    print("liar_joined", flush=True)
    while True:
        await beat()
        await asyncio.sleep(config.beat_s)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
