"""The workers of a file as one app: models side by side in this process, and those with devices of their own, or with
several replicas, each in a process that sees only its devices."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from faststream import FastStream

from modelnet.bus.broker import make_broker
from modelnet.cores import keep_off
from modelnet.errors import UsageError
from modelnet.processes import ChildProcess
from modelnet.settings import settings
from modelnet.worker import worker_app
from workers.vllm.check import require_possible
from workers.vllm.config import ModelConfig, held_cores, read_config
from workers.vllm.served import Served

__all__ = ["app_of", "make_app"]

log = structlog.get_logger("vllm_worker")

PART = "MODELNET_WORKERS_PART"
"""In the environment of a process for one replica: `MODEL/REPLICA`, both counted from 0."""
START_S = 1800.0
"""A large model takes minutes to load."""


def make_app(path: Path) -> FastStream:
    """All models of a workers file as one FastStream app. Raises `UsageError`, before anything is loaded, for what this
    machine cannot do."""
    models = read_config(path)
    part = os.environ.get(PART)
    if part is not None:
        return app_of([_of_part(models, part)])
    require_possible(path, models)
    keep_off(held_cores(models))
    children = [
        _child(path, model, replica, devices)
        for model, config in enumerate(models)
        for replica, devices in enumerate(config.processes)
    ]
    return app_of([config for config in models if not config.processes], children)


def _of_part(models: list[ModelConfig], part: str) -> ModelConfig:
    try:
        model, replica = (int(number) for number in part.split("/"))
        config, several = models[model], len(models[model].processes) > 1
    except (ValueError, IndexError):
        raise UsageError(f"{PART}={part} is no part of the workers file") from None
    return config.model_copy(update={"name": f"{config.worker}-{replica + 1}"}) if several else config


def app_of(models: Sequence[ModelConfig], children: Sequence[ChildProcess] = ()) -> FastStream:
    """Models in this process, and processes that serve others, as one FastStream app."""
    served = [Served(config) for config in models]

    async def start() -> None:
        # Side by side: each loads in a process of its own.
        await asyncio.gather(*(child.start(START_S) for child in children))
        for one in served:
            await one.start()

    async def close() -> None:
        await asyncio.gather(*(child.stop(settings().drain_s + 15.0) for child in children))
        for one in served:
            await one.close()

    if served:
        return worker_app(*(one.worker for one in served), before=start, after=close)
    app = FastStream(make_broker(settings(), "modelnet-models", on_reconnect=_nothing))
    app.on_startup(start)
    app.on_shutdown(close)

    @app.after_startup
    async def joined() -> None:
        log.info("workers_joined", processes=[child.name for child in children])

    return app


async def _nothing() -> None:
    """This process only looks after others."""


def _child(path: Path, model: int, replica: int, devices: tuple[int, ...]) -> ChildProcess:
    visible = ",".join(str(device) for device in devices)
    logs = settings().data.expanduser() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return ChildProcess(
        f"model-{model}-{replica}",
        [sys.executable, "-m", "modelnet.run", "workers.vllm:app"],
        log_dir=logs,
        env={
            "MODELNET_WORKERS_FILE": str(path),
            PART: f"{model}/{replica}",
            "CUDA_VISIBLE_DEVICES": visible,
            "MODELNET_READY_LISTEN": "",  # the parent answers for all
            "MODELNET_LOG_LEVEL": "info",  # its log says when it is ready
        },
        ready=b"workers_joined",
    )
