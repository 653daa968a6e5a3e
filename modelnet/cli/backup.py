"""`modelnet backup` and `modelnet restore`: all that a network keeps, in a folder and back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelnet.cli.session import Json, Url, configured, print_json, run
from modelnet.errors import ModelnetError

if TYPE_CHECKING:
    from nats.aio.client import Client as Bus
    from redis.asyncio import Redis

    from modelnet.backup import Report
    from modelnet.settings import Settings

__all__ = ["backup", "restore"]

NoRedis = Annotated[bool, typer.Option("--no-redis", help="The streams only.")]


def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    no_redis: NoRedis = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Copy streams and Redis into a folder, while everything goes on."""

    async def work() -> int:
        from modelnet.backup import backup as copy

        config = configured(url)
        async with _servers(config, no_redis) as (nc, redis):
            await copy(nc, redis, folder, _report("copied", as_json))
        return 0

    run(work())


def restore(
    folder: Annotated[Path, typer.Argument(help="What `modelnet backup` has written.")],
    replace: Annotated[bool, typer.Option("--replace", help="Delete what is there already.")] = False,
    no_redis: NoRedis = False,
    data: Annotated[
        Path | None, typer.Option(help="Restore into this data folder of a network that does not run.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Put a backup back: onto servers without negotiators, or with --data into the folder of a later `modelnet up`."""

    async def work() -> int:
        from modelnet.backup import read_manifest
        from modelnet.backup import restore as put_back
        from modelnet.network import Network
        from modelnet.processes import StartFailed

        read_manifest(folder)  # before anything is started for it
        config = configured(url)
        async with contextlib.AsyncExitStack() as stack:
            if data is not None:
                alone = config.model_copy(update={"url": "", "redis_url": ""})
                try:
                    network = await stack.enter_async_context(
                        Network(data=data, negotiators=0, workers=(), config=alone)
                    )
                except StartFailed as failure:
                    raise ModelnetError(str(failure).strip(), code="start_failed") from None
                config = config.model_copy(update={"url": network.url, "redis_url": network.redis_url})
            nc, redis = await stack.enter_async_context(_servers(config, no_redis))
            report = _report("restored", as_json)
            await put_back(nc, redis, folder, report, replace=replace, replicas=config.replicas)
        return 0

    run(work())


@contextlib.asynccontextmanager
async def _servers(config: Settings, no_redis: bool) -> AsyncIterator[tuple[Bus, Redis | None]]:
    from redis.asyncio import Redis

    from modelnet.bus.connection import close, connect

    nc = await connect(config, "modelnet-backup")
    redis = None if no_redis else Redis.from_url(config.redis, socket_connect_timeout=config.connect_timeout_s)
    try:
        yield nc, redis
    finally:
        await close(nc)
        if redis is not None:
            await redis.aclose()


def _report(did: str, as_json: bool) -> Report:
    def report(part: str, entries: int, size: int) -> None:
        if as_json:
            print_json({"kind": did, "part": part, "entries": entries, "bytes": size})
        else:
            what = "keys" if part == "Redis" else "messages"
            typer.echo(f"{did} {part:<13} {entries:>8} {what}, {size / 1024:.0f} KiB")

    return report
