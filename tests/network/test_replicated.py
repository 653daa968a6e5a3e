"""Three servers as one bus: each stream on all of them, and one killed under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import modelnet
from modelnet.bus.durability import verify_durability
from modelnet.bus.embedded import HeldPort, find_program
from modelnet.errors import ConnectionFailed
from modelnet.handle import TaskHandle
from modelnet.processes import ChildProcess
from tests.network.stage import Network, fast

Json = dict[str, Any]
TASKS = 300


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[str, list[ChildProcess]]]:
    """Three servers on loopback that have elected a leader: their URLs, and they themselves in the same order."""
    held = [HeldPort() for _ in range(6)]
    ports, routes = [port.number for port in held[:3]], [port.number for port in held[3:]]
    servers = []
    for number, (port, route) in enumerate(zip(ports, routes, strict=True), 1):
        config = folder / f"n{number}.conf"
        config.write_text(f"""
            server_name: n{number}
            listen: 127.0.0.1:{port}
            jetstream {{ store_dir: "{folder}/n{number}", max_file_store: 20GB }}
            cluster {{
              name: test, listen: 127.0.0.1:{route}
              routes: [{", ".join(f'"nats://127.0.0.1:{other}"' for other in routes)}]
            }}
        """)
        command = [find_program("nats-server"), "-c", str(config)]
        servers.append(ChildProcess(f"n{number}", command, log_dir=folder, ready=b"metadata leader", restart=False))
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield ",".join(f"nats://127.0.0.1:{port}" for port in ports), servers
    finally:
        await asyncio.gather(*(server.stop() for server in servers))
        for reserved in held:
            reserved.release()


async def test_streams_have_three_replicas_and_a_killed_server_loses_no_accepted_task(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (urls, servers), Network(fast(urls, durability="replicated")) as network:
        await network.negotiator()
        found = {one.what: one for one in await verify_durability(network.bus, network.config)}
        assert found["streams"].holds, found["streams"]

        worker = network.worker("echo")

        @worker.capability("echo")
        async def answer(ctx: modelnet.Context, input: Json) -> Json:
            return input

        await network.join(worker)
        reply = await network.bus.request("$JS.API.STREAM.INFO.TASKS", b"", timeout=5)
        leader = servers[int(json.loads(reply.data)["cluster"]["leader"].removeprefix("n")) - 1]
        gate = asyncio.Semaphore(16)

        async def submit(n: int) -> TaskHandle:
            """Until it is accepted, as a client would: the id makes that harmless."""
            async with gate:
                while True:
                    try:
                        task = await network.client.submit("echo", {"n": n}, id=f"t{n}", deadline_s=100, follow=False)
                    except ConnectionFailed:
                        continue
                    if n == TASKS // 3:
                        leader.kill()
                    return task

        tasks = await asyncio.gather(*(submit(n) for n in range(TASKS)))
        finals = await asyncio.gather(*(task.final() for task in tasks))
        assert [(final.status, final.output) for final in finals] == [("completed", {"n": n}) for n in range(TASKS)]
        assert leader.pid is None

        found = {one.what: one for one in await verify_durability(network.bus, network.config)}
        assert found["streams"].holds is False, "two of three is not what was named"
