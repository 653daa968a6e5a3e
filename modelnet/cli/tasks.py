"""Tasks from a terminal: submit, watch, result, cancel, tasks."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from modelnet.cli.session import (
    Json,
    Tenant,
    Url,
    configured,
    parse_duration,
    parse_input,
    parse_selector,
    print_json,
    run,
)
from modelnet.errors import ModelnetError, UsageError

if TYPE_CHECKING:
    from modelnet.handle import TaskHandle

__all__ = ["cancel", "result", "submit", "tasks", "watch"]

_GOODBYE_S = 5.0
"""Longest wait for the end of a task that Ctrl-C has cancelled."""

_STATUSES = ("queued", "waiting", "running", "completed", "failed", "expired", "cancelled")


def submit(
    capability: Annotated[str, typer.Argument(help="What is needed, such as normalize.date.de.")],
    input: Annotated[str, typer.Option("--input", "-i", help="The input: JSON, @FILE, or - for stdin.")],
    budget: Annotated[int | None, typer.Option(help="Most to pay, in micro-credits. Default 1000.")] = None,
    deadline: Annotated[str | None, typer.Option(help="5s, 500ms, 2m, or seconds. Default 300.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 (can wait) to 9 (urgent). Default 5.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Least expected quality, 0 to 1.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="model=…, worker=…, owner=…, labels.KEY=…")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="As --require, for what must not hold.")] = None,
    contract: Annotated[str | None, typer.Option(help="Digest of the contract to be kept.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="auction (default), spot, race, panel, cascade, or auto: the network chooses.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Workers in a race (2), a panel or a cascade (3).")] = None,
    check: Annotated[str | None, typer.Option(help="Capability that says whether a cascade's answer passes.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Without one: least `confidence` of an answer, 0.7.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="An id of your own: repeating the call is harmless.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the task's id and leave it running.")] = False,
    cancel_on_disconnect: Annotated[
        bool, typer.Option("--cancel-on-disconnect", help="Cancel the task if this command is killed.")
    ] = False,
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Publish a task and stream its answer. Exits 0 only if it is completed; Ctrl-C cancels it."""

    async def work() -> int:
        import modelnet
        from modelnet.cli.stream import follow
        from modelnet.messages import new_id

        config = configured(url, tenant)
        if detach and cancel_on_disconnect:
            raise UsageError("--cancel-on-disconnect needs this command to stay: leave out --detach")
        if strategy is None and (width, check, confidence) != (None, None, None):
            raise UsageError("--width, --check and --confidence say how a strategy works: name one with --strategy")
        value = parse_input(input)
        seconds = parse_duration(deadline)
        requirements, exclusions = parse_selector(require), parse_selector(exclude)
        named = {"kind": strategy, "width": width, "check": check, "confidence": confidence}
        how = {key: item for key, item in named.items() if item is not None}
        chosen = id or new_id()  # known before it is sent, so that Ctrl-C can cancel it however far it came
        async with modelnet.connect(config=config) as net:
            try:
                task = await net.submit(
                    capability,
                    value,
                    budget=budget,
                    deadline_s=seconds,
                    priority=priority,
                    min_quality=min_quality,
                    require=requirements,
                    exclude=exclusions,
                    contract=contract,
                    strategy=how,
                    id=chosen,
                    cancel_on_disconnect=cancel_on_disconnect,
                    follow=not detach,
                )
                if not detach:
                    return await follow(task.stream(), as_json=as_json)
            except asyncio.CancelledError:
                await _interrupted(net.task(chosen), as_json=as_json)
                raise
            if as_json:
                print_json({"kind": "submitted", "task": chosen, "attempt": None, "worker": None, "number": None})
            else:
                typer.echo(chosen)
            return 0

    run(work())


async def _interrupted(task: TaskHandle, *, as_json: bool) -> None:
    """Cancel what Ctrl-C has interrupted, and say how that went."""
    from modelnet.cli.stream import event_object

    try:
        async with asyncio.timeout(_GOODBYE_S):
            await task.cancel()
            final = await task.final()
    except (ModelnetError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        typer.echo(f"interrupted; whether {task.id} is cancelled is not known: {reason}", err=True)
        return
    if as_json:
        print_json(event_object(final))
    typer.echo(f"interrupted; {task.id} is {final.status}", err=True)


def watch(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    after: Annotated[int | None, typer.Option(min=0, help="Number of the last event that need not come again.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Only what comes from now on.")] = False,
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Follow a task's stream from its start, even after its end. Ctrl-C only stops watching."""

    async def work() -> int:
        import modelnet
        from modelnet.cli.stream import follow

        config = configured(url, tenant)
        async with modelnet.connect(config=config) as net:
            stream = net.task(task).stream(from_start=not live, resume_after=after)
            return await follow(stream, as_json=as_json)

    run(work())


def result(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Wait for a task's end and print its output."""

    async def work() -> int:
        import modelnet
        from modelnet.cli.stream import show_final

        config = configured(url, tenant)
        async with modelnet.connect(config=config) as net:
            return show_final(await net.task(task).final(), as_json=as_json)

    run(work())


def cancel(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Cancel a task. Harmless twice, or after its end."""

    async def work() -> int:
        import modelnet

        config = configured(url, tenant)
        async with modelnet.connect(config=config) as net:
            asked = await net.cancel(task)
            if as_json:
                print_json({"task": task, "cancelled": asked})
            else:
                typer.echo(f"cancel asked for {task}" if asked else f"{task} had ended already")
            return 0

    run(work())


def tasks(
    status: Annotated[str | None, typer.Option(help="Only tasks in this status.")] = None,
    since: Annotated[str | None, typer.Option(help="Only tasks that ended in this time, such as 10m.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List tasks: those under way, and those that ended in the last 48 hours."""

    async def work() -> int:
        import modelnet

        config = configured(url, tenant)
        if status is not None and status not in _STATUSES:
            raise UsageError(f"{status!r} is no status: one of {', '.join(_STATUSES)}")
        seconds = parse_duration(since)
        async with modelnet.connect(config=config) as net:
            found = await net.tasks(since_s=seconds)
        for one in found:
            if status is not None and one.status != status:
                continue
            final = one.final
            if as_json:
                print_json(
                    {
                        "task": one.task,
                        "capability": one.capability,
                        "status": one.status,
                        "submitted_at": one.submitted_at,
                        "worker": final.worker if final else None,
                        "price": final.price if final else None,
                    }
                )
            else:
                at = datetime.fromtimestamp(one.submitted_at or time.time()).strftime("%H:%M:%S")
                who = f"{final.worker or '-'}  {final.price if final.price is not None else '-'}" if final else ""
                typer.echo(f"{one.task}  {at}  {one.status:<9}  {one.capability}  {who}".rstrip())
        return 0

    run(work())
