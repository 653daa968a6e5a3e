"""`modelnet models`: what a file of models says, and whether this machine can do it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from modelnet.cli.session import Json, make_table, print_json, run, wide_console
from modelnet.errors import UsageError

__all__ = ["models"]

models = typer.Typer(
    help="Files of models for `modelnet work`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@models.callback()
def _group() -> None:
    """Files of models for `modelnet work`."""


@models.command()
def check(
    file: Annotated[Path, typer.Argument(help="A TOML file of [[models]].")],
    as_json: Json = False,
) -> None:
    """Say what the file serves; exit 2 and name what is wrong if this machine can't. Loads nothing."""

    async def work() -> int:
        # Named, not imported: the library does not know who serves models.
        config, possible = (importlib.import_module(f"workers.vllm.{name}") for name in ("config", "check"))
        if not file.is_file():
            raise UsageError(f"no such file: {file}")
        found = config.read_config(file)
        machine = possible.Machine.here()
        wrong = possible.problems(found, machine)
        rows = [_row(one, possible.need_of(one)) for one in found]
        if as_json:
            print_json({"models": rows, "gpus": list(machine.gpus), "memory": machine.memory, "problems": wrong})
            return 2 if wrong else 0
        table = make_table("model", "serves", "price", "engine", "slots", "weights", "devices")
        for row in rows:
            table.add_row(
                row["model"],
                "\n".join(row["capabilities"]),
                _price(row),
                " ".join(filter(None, [row["engine"], row["url"]])),
                str(row["slots"]),
                "" if row["weights"] is None else f"{row['weights'] / 1e6:,.1f} MB",
                "\n".join(",".join(map(str, devices)) for devices in row["devices"]),
            )
        wide_console().print(table)
        possible.require_possible(file, found, machine)
        return 0

    run(work())


def _price(row: dict[str, Any]) -> str:
    further = {"a token": row["price_per_token"], "an input token": row["price_per_input_token"]}
    return " + ".join([str(row["price"]), *(f"{price:g} {what}" for what, price in further.items() if price)])


def _row(config: Any, need: Any) -> dict[str, Any]:
    return {
        "model": config.model,
        "name": config.name,
        "capabilities": config.capabilities,
        "price": config.price,
        "price_per_token": config.price_per_token,
        "price_per_input_token": config.price_per_input_token,
        "engine": config.engine,
        "url": config.url,
        "slots": config.slots,
        "weights": need.weights,
        "parallel": need.parallel,
        "devices": [list(devices) for devices in config.processes],
    }
