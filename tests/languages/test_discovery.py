"""The official services client for JavaScript, unchanged, sees the network."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import modelnet
from modelnet.bus.embedded import EmbeddedNats
from tests.network.stage import Network, fast

SCRIPT = Path(__file__).with_name("services.mjs")


async def test_the_services_client_for_node_lists_workers_and_their_statistics(
    nats_server: EmbeddedNats, node_examples: Path
) -> None:
    async with Network(fast(nats_server.url)) as network:
        await network.negotiator()
        worker = network.worker("lister")

        @worker.capability("list.one", price=3)
        async def one(ctx: modelnet.Context, input: dict[str, object]) -> dict[str, object]:
            return {}

        await network.join(worker)
        await (await network.client.submit("list.one", {})).result()
        script = node_examples / SCRIPT.name
        script.write_text(SCRIPT.read_text())
        process = await asyncio.create_subprocess_exec(
            "node", str(script), nats_server.url, "lister", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    found = json.loads(out)
    assert {one["name"] for one in found["ping"]} == {"modelnet-worker", "modelnet-negotiator"}
    (info,) = found["info"]
    assert info["id"] == "lister"
    assert [(one["name"], one["metadata"]["price"]) for one in info["endpoints"]] == [("list-one", "3")]
    (stats,) = found["stats"]
    assert stats["endpoints"][0]["num_requests"] == 1
    assert stats["endpoints"][0]["processing_time"] > 0
