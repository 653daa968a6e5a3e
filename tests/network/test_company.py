"""Negotiators know of one another, and tell their awards to those who are there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import modelnet
from modelnet.bus import subjects
from modelnet.messages import NegotiatorBeat
from tests.network.stage import PATIENCE_S, Ear, Network
from workers.negotiator import Negotiator
from workers.negotiator.company import Company

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def worker(network: Network) -> None:
    """One that does nothing at all."""
    worker = network.worker("company")

    @worker.capability("company.keep")
    async def keep(ctx: modelnet.Context, input: dict[str, Any]) -> dict[str, Any]:
        return {}

    await network.join(worker)


async def until_alone(negotiator: Negotiator, beats: Ear, *, alone: bool = True) -> None:
    """Look with each beat."""
    async with asyncio.timeout(PATIENCE_S):
        while negotiator._company.alone is not alone:
            await beats.next()


async def claims_of_a_task(network: Network, claims: Ear) -> int:
    """How many are heard of one."""
    known = len(claims.heard)
    await (await network.client.submit("company.keep", {})).result()
    end = network.bus.new_inbox()  # what was told of it was told before its Final
    async with network.ear(end) as over:
        await network.bus.publish(end, b"")
        await over.until(bool)
    return len(claims.heard) - known


async def test_who_is_alone_tells_nobody_and_who_is_not_tells_all(bare_network: Network) -> None:
    network = bare_network
    async with network.ear(subjects.negotiator_beat("*")) as beats, network.ear(subjects.claim("*", "*")) as claims:
        first = await network.negotiator()
        await worker(network)
        await until_alone(first, beats)
        assert await claims_of_a_task(network, claims) == 0
        second = await network.negotiator()
        await until_alone(first, beats, alone=False)
        assert await claims_of_a_task(network, claims) == 1
        await network.stop(second)
        await until_alone(first, beats)
        assert await claims_of_a_task(network, claims) == 0
    await network.clear()


async def test_as_it_starts_others_may_be_there_that_it_has_not_heard_yet(bare_network: Network) -> None:
    assert not Company(bare_network.bus, negotiator="n", beat_s=1.0, lost_after_s=60.0).alone


async def test_one_that_vanishes_is_forgotten(bare_network: Network) -> None:
    network = bare_network
    async with network.ear(subjects.negotiator_beat("*")) as beats:
        negotiator = await network.negotiator()
        await until_alone(negotiator, beats)
        beat = NegotiatorBeat(negotiator="vanished")
        await network.bus.publish(subjects.negotiator_beat("other"), beat.encode())  # not its own subject
        await network.bus.publish(subjects.negotiator_beat("vanished"), b"{")
        await beats.next()
        assert negotiator._company.alone
        await network.bus.publish(subjects.negotiator_beat("vanished"), beat.encode())
        await until_alone(negotiator, beats, alone=False)
        await until_alone(negotiator, beats)
