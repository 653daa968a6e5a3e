"""Servers of one's own, and the ports that they listen on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import pytest

from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis, HeldPort
from modelnet.processes import StartFailed


@pytest.mark.skipif(sys.platform != "linux", reason="ports can be held on Linux alone")
def test_a_held_port_is_given_to_nobody_else() -> None:
    with contextlib.ExitStack() as held:
        ports = {held.enter_context(HeldPort()).number for _ in range(300)}
        assert len(ports) == 300
        # Of ports that are not held, some hundred of these would be among the 300.
        for _ in range(5_000):
            with HeldPort() as other:
                assert other.number not in ports


def test_the_preferred_port_unless_a_server_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, HeldPort(server.getsockname()[1]) as other:
        assert other.number != server.getsockname()[1]
    with HeldPort() as held, HeldPort(held.number) as again:  # also one that is held, but where nobody listens
        assert again.number == held.number


async def test_servers_listen_on_ports_that_are_held_until_they_stop(tmp_path: Path) -> None:
    servers = EmbeddedNats(tmp_path / "nats", monitored=True), EmbeddedRedis(tmp_path / "redis")
    ports = {servers[0].port, int(servers[0].monitor_url.rpartition(":")[2]), servers[1].port}
    assert len(ports) == 3
    await asyncio.gather(*(server.start() for server in servers))
    try:
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
            with HeldPort(port) as other:
                assert other.number != port
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def test_a_server_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", server.port))
        other.listen()
        with pytest.raises(StartFailed, match="address already in use"):
            await server.start()
