"""A client as one writes it first: it shows what it hears, when it hears it, and asks no stream for anything."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import nats
from nats.aio.msg import Msg


async def main(verb: str, name: str, *more: str) -> int:
    """`submit CAPABILITY --input JSON --id ID`, `watch TASK`, `cancel TASK`."""
    tenant = os.environ["MODELNET_TENANT"]
    nc = await nats.connect(os.environ["MODELNET_URL"])
    options = dict(zip(more[::2], more[1::2], strict=False))
    if verb == "cancel":
        await nc.publish(
            f"journal.{tenant}.{name[-6:]}.{name}.cancel", json.dumps({"kind": "cancel", "task": name}).encode()
        )
        await nc.close()
        return 0
    task = options["--id"] if verb == "submit" else name
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def hear(msg: Msg) -> None:
        try:
            event = json.loads(msg.data)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        print(json.dumps(event), flush=True)
        if event.get("kind") == "final" and not ended.done():
            ended.set_result(event["status"])

    await nc.subscribe(f"result.{tenant}.{task[-6:]}.{task}.>", cb=hear)
    if verb == "submit":
        body = {"id": task, "tenant": tenant, "capability": name, "input": json.loads(options["--input"])}
        headers = {"Nats-Msg-Id": f"{tenant}/{task}"}
        await nc.publish(f"task.1.{tenant}.{task}.{name}", json.dumps(body).encode(), headers=headers)
    status = await ended
    await nc.close()
    return 0 if status == "completed" else 1


sys.exit(asyncio.run(main(*sys.argv[1:])))
