"""What a message off the task stream tells of its delivery, as nats-py reads it too."""

from __future__ import annotations

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from modelnet.bus.intake import Delivery

TOLD = "3.1234.77.1764200000123456789.5"


@pytest.mark.parametrize(
    "reply",
    [f"$JS.ACK.TASKS.takers.{TOLD}", f"$JS.ACK._.hash.TASKS.takers.{TOLD}", f"$JS.ACK.hub.hash.TASKS.takers.{TOLD}.x"],
)
def test_a_delivery_is_read_with_and_without_a_domain(reply: str) -> None:
    msg = Msg(_client=Client(), subject="task.1.acme.x.y", reply=reply)
    delivery = Delivery.of(msg)
    assert delivery == (3, 1234, 1764200000.1234567)
    assert (delivery.times, delivery.sequence) == (msg.metadata.num_delivered, msg.metadata.sequence.stream)
    assert delivery.queued_at == pytest.approx(msg.metadata.timestamp.timestamp(), abs=1e-6)
