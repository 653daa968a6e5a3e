"""Models told as tables instead of a file, as `modelnet work --openai` tells of a server that runs: found out, and
served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from faststream import FastStream
from pydantic import ValidationError

from modelnet.bus.journal import first_error
from modelnet.errors import UsageError
from workers.vllm.config import ModelConfig
from workers.vllm.replicas import app_of
from workers.vllm.served import Served

__all__ = ["check_models", "models_app"]


def models_app(tables: Sequence[Mapping[str, Any]]) -> FastStream:
    """The app of models told as tables of a workers file. Raises `UsageError`."""
    return app_of([_table(table) for table in tables])


async def check_models(tables: Sequence[Mapping[str, Any]]) -> None:
    """Whether models could be served that run elsewhere: each is found and asked what it can do, and nothing joins.
    Raises `EngineUnavailable`, `UsageError`."""
    for table in tables:
        served = Served(_table(table))
        try:
            await served.start()
        finally:
            await served.close()


def _table(table: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(table)
    except ValidationError as error:
        raise UsageError(first_error(error)) from None
