"""The network from a terminal: up, work, workers, capabilities."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelnet.cli.outward import A2a, Header, Mcp, McpUrl, NatsAgent, outward_app
from modelnet.cli.session import (
    Json,
    Url,
    complete,
    configured,
    make_table,
    parse_duration,
    print_json,
    run,
    wide_console,
)
from modelnet.errors import ModelnetError, UsageError

if TYPE_CHECKING:
    from modelnet.network import Network

__all__ = ["capabilities", "drain", "up", "work", "workers"]


def up(
    data: Annotated[Path | None, typer.Option(help="Folder for streams and logs; else MODELNET_DATA.")] = None,
    negotiators: Annotated[int, typer.Option(min=1, max=16, help="Negotiator processes.")] = 1,
    worker: Annotated[
        list[str] | None, typer.Option(help="App path or file of a worker; instead of the default.")
    ] = None,
    no_models: Annotated[bool, typer.Option("--no-models", help="Start no model, only the calculator.")] = False,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Open no door for HTTP clients.")] = False,
    url: Url = None,
) -> None:
    """Run a network on this machine until Ctrl-C: servers, negotiators, workers, a gateway. State stays in --data."""
    for app in worker or ():
        if app.endswith(".py") and not Path(app).is_file():
            raise UsageError(f"no such file: {app}")

    async def work() -> int:
        from modelnet.network import DEFAULT_WORKERS, MODEL_WORKERS, Network, WorkerProcess
        from modelnet.processes import StartFailed

        chosen = [WorkerProcess(app) for app in worker or ()] or [
            one for one in DEFAULT_WORKERS if not (no_models and one in MODEL_WORKERS)
        ]
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        network = Network(
            data=data,
            negotiators=negotiators,
            workers=chosen,
            gateway=not no_gateway,
            config=configured(url),
            report=lambda line: typer.echo(line, err=True),
        )
        starting, stopping = asyncio.create_task(network.start()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
                return 130
            try:
                starting.result()
            except StartFailed as failure:
                raise ModelnetError(str(failure).strip(), code="start_failed") from None
            addresses = {"URL": network.url, "REDIS_URL": network.redis_url, "GATEWAY_URL": network.gateway_url}
            for line in (*(f"MODELNET_{name}={value}" for name, value in addresses.items() if value), "ready"):
                print(line, flush=True)
            await _until(stop, network)
            typer.echo("stopping", err=True)
            return 0
        finally:
            stopping.cancel()
            await network.stop()

    run(work())


async def _until(stop: asyncio.Event, network: Network) -> None:
    """Wait for `stop`, with a live summary where stderr is a terminal."""
    if not sys.stderr.isatty():
        await stop.wait()
        return
    import modelnet

    async with modelnet.connect(network.url) as net:
        while not stop.is_set():
            try:
                found = await net.workers()
                running = sum(len(w.beat.running) - w.beat.queued for w in found)
                slots = sum(w.card.slots for w in found)
                restarts = sum(process.restarts for process in network.processes)
                line = f"{len(found)} workers, {running} of {slots} slots busy, {restarts} restarts"
            except ModelnetError as error:
                line = error.message
            sys.stderr.write(f"\r\x1b[K{line}  (Ctrl-C stops)")
            sys.stderr.flush()
            try:
                async with asyncio.timeout(2.0):
                    await stop.wait()
            except TimeoutError:
                continue
        sys.stderr.write("\n")


_SERVER = "A server that runs"


def work(
    file: Annotated[
        Path | None, typer.Argument(help="A Python file that declares a Worker, or a TOML file of models.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The worker's id, instead of the one in the file.")] = None,
    openai: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Serve a model of this OpenAI-compatible server: http://host:port/v1. Key: MODELNET_OPENAI_API_KEY.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    mcp: Mcp = None,
    mcp_url: McpUrl = None,
    a2a: A2a = None,
    nats_agent: NatsAgent = None,
    header: Header = None,
    model: Annotated[
        str | None,
        typer.Option(help="Its name there; may be left out where it is the only one.", rich_help_panel=_SERVER),
    ] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            help="What it serves, several times for several; text.generate if it is a model. Of an MCP server or an "
            "A2A agent: what its capabilities' names begin with, else mcp.NAME or a2a.NAME.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Tasks at once.", rich_help_panel=_SERVER)] = 64,
    price: Annotated[int, typer.Option(min=0, help="Micro-credits per task.", rich_help_panel=_SERVER)] = 100,
    price_per_input_token: Annotated[
        float, typer.Option(min=0, help="And per token of the input.", rich_help_panel=_SERVER)
    ] = 0,
    price_per_output_token: Annotated[
        float, typer.Option(min=0, help="And per token that the answer may have.", rich_help_panel=_SERVER)
    ] = 0,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="As many as it may be sent; else it is busy.", rich_help_panel=_SERVER)
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Of prompts and answers together.", rich_help_panel=_SERVER)
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ABILITY", help="What it can't do: tools, logprobs, seed, usage, …", rich_help_panel=_SERVER
        ),
    ] = None,
    url: Url = None,
) -> None:
    """Run a worker until Ctrl-C or SIGTERM; what runs is finished first.

    The workers of a FILE, a model of a server (--openai), the tools of an MCP server (--mcp, --mcp-url), the skills of
    an A2A agent (--a2a), or an agent of the NATS agent protocol (--nats-agent).
    """
    if sum(one is not None for one in (file, openai, mcp, mcp_url, a2a, nats_agent)) != 1:
        raise UsageError(
            "name one thing to put on the network: a FILE, --openai, --mcp, --mcp-url, --a2a or --nats-agent"
        )
    if file is not None and not file.is_file():
        raise UsageError(f"no such file: {file}")
    if file is not None and (model or capability):
        raise UsageError("--model and --capability are of a server: name it with --openai, --mcp, --mcp-url or --a2a")
    config = configured(url)

    from modelnet.bus.connection import close, connect
    from modelnet.log import setup_logging
    from modelnet.run import check_server, load_file, load_server, run_app
    from modelnet.settings import settings

    table = {
        "engine": "openai",
        "url": openai,
        "model": model,
        "name": name,
        "capability": tuple(capability or ["text.generate"]),
        "slots": slots,
        "price": price,
        "price_per_input_token": price_per_input_token,
        "price_per_token": price_per_output_token,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "options": {"lacks": tuple(without or ())},
    }

    async def check() -> int:
        """A worker waits for its server for ever; a person would rather be told."""
        await close(await connect(config, "modelnet-work"))
        if openai is not None:
            table["model"] = model or await _only_model(openai)
            await check_server(table)
        return 0

    if url:  # a worker reads its settings when the file is imported
        os.environ["MODELNET_URL"] = url
        settings.cache_clear()
    if code := complete(check()):
        raise typer.Exit(code)
    if file is not None:
        app = load_file(file, name)
    elif openai is not None:
        app = load_server(table)
    else:
        app = outward_app(
            mcp=mcp,
            mcp_url=mcp_url,
            a2a=a2a,
            nats_agent=nats_agent,
            capability=capability or [],
            name=name,
            price=price,
            slots=slots,
            header=header,
        )
    setup_logging(settings())
    run_app(app)


async def _only_model(url: str) -> str:
    """The name of the one model that a server has."""
    from modelnet.engines.endpoint import Endpoint
    from modelnet.settings import settings

    endpoint = Endpoint(url, key=settings().openai_api_key)
    try:
        names = sorted(one.name for one in await endpoint.models())
    except ModelnetError as error:
        raise ModelnetError(f"{endpoint.url}: {error.message}", code=error.wire_code) from None
    finally:
        await endpoint.close()
    if len(names) != 1:
        raise UsageError(f"{endpoint.url} has {len(names)} models, name one with --model: {', '.join(names[:20])}")
    return names[0]


def drain(
    worker: Annotated[str, typer.Argument(help="The worker's id.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has left.")] = True,
    timeout: Annotated[str | None, typer.Option(help="Wait so long at most: 30s, 5m. Default: no end.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Have a worker leave: it takes no new awards, and finishes what it runs, or hands it on after MODELNET_DRAIN_S."""

    async def work() -> int:
        import modelnet

        limit_s = parse_duration(timeout)
        config = configured(url)
        async with modelnet.connect(config=config) as net:
            last = -1
            try:
                async with asyncio.timeout(limit_s if wait else None):
                    async for beat in net.drain(worker):
                        if as_json:
                            print_json({"kind": "drain", "worker": worker, "running": len(beat.running)})
                        elif len(beat.running) != last:
                            typer.echo(f"{worker} is draining, {len(beat.running)} running", err=True)
                        last = len(beat.running)
                        if not wait:
                            return 0
            except TimeoutError:
                raise ModelnetError(f"{worker} still runs {last} after {timeout}", code="timeout") from None
        if as_json:
            print_json({"kind": "left", "worker": worker})
        else:
            typer.echo(f"{worker} has left")
        return 0

    run(work())


def workers(as_json: Json = False, url: Url = None) -> None:
    """List the workers that live now."""

    async def work() -> int:
        import modelnet

        config = configured(url)
        async with modelnet.connect(config=config) as net:
            found = await net.workers()
        if as_json:
            for one in found:
                print_json(
                    {
                        "worker": one.card.worker,
                        "owner": one.card.owner,
                        "capabilities": [c.pattern for c in one.card.capabilities],
                        "slots": one.card.slots,
                        "running": len(one.beat.running) - one.beat.queued,
                        "queued": one.beat.queued,
                        "models": list(one.card.models),
                        "labels": one.card.labels,
                        "draining": one.beat.draining,
                    }
                )
            return 0
        if not found:
            typer.echo("no worker answers")
            return 0
        table = make_table("worker", "owner", "busy", "capabilities", "price", "quality", "runs on")
        for one in found:
            cards = one.card.capabilities
            queued = one.beat.queued
            busy = f"{len(one.beat.running) - queued}/{one.card.slots}" + (f" +{queued}" if queued else "")
            table.add_row(
                one.card.worker,
                one.card.owner,
                busy + (" draining" if one.beat.draining else ""),
                "\n".join(c.pattern for c in cards),
                "\n".join("by input" if c.price is None else str(c.price) for c in cards),
                "\n".join("" if c.quality is None else f"{c.quality:.3f}" for c in cards),
                one.card.software,
            )
        wide_console().print(table)
        return 0

    run(work())


def capabilities(as_json: Json = False, url: Url = None) -> None:
    """List every capability ever announced, with its contracts and who serves it now."""

    async def work() -> int:
        import modelnet

        config = configured(url)
        async with modelnet.connect(config=config) as net:
            contracts, found = await net.contracts(), await net.workers()
        serving = defaultdict(list)
        for one in found:
            for card in one.card.capabilities:
                serving[card.pattern, card.contract].append(card.price)
        for contract in contracts:
            prices = serving[contract.capability, contract.digest]
            fixed = [price for price in prices if price is not None]
            if as_json:
                print_json(
                    {
                        "capability": contract.capability,
                        "description": contract.description,
                        "workers": len(prices),
                        "price_min": min(fixed, default=None),
                        "price_max": max(fixed, default=None),
                        "contract": contract.digest,
                        "input": contract.input,
                        "output": contract.output,
                    }
                )
            else:
                alive = f"{len(prices)} worker{'' if len(prices) == 1 else 's'}"
                ends = sorted({min(fixed), max(fixed)}) if fixed else []
                span = " to ".join(map(str, ends)) or ("by input" if prices else "-")
                typer.echo(f"{contract.capability:<24} {alive:<10} price {span:<9} {contract.description}".rstrip())
        return 0

    run(work())
