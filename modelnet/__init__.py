"""modelnet: an AI-model network on NATS. Models bid for tasks, answer them, and check each other."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelnet import sync
    from modelnet.attempt import Progress
    from modelnet.client import Client, connect
    from modelnet.deltas import Piece
    from modelnet.errors import ModelnetError, Reject, TaskCancelled, TaskError, TaskExpired, TaskFailed
    from modelnet.execution import Context
    from modelnet.handle import TaskHandle
    from modelnet.worker import Worker, worker_app

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Context",
    "ModelnetError",
    "Piece",
    "Progress",
    "Reject",
    "TaskCancelled",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskHandle",
    "Worker",
    "connect",
    "sync",
    "worker_app",
]

# Imported when first used: a client need not wait for the worker's dependencies, nor `modelnet --help` for either's.
_HOMES = {
    "Client": "client",
    "Context": "execution",
    "ModelnetError": "errors",
    "Piece": "deltas",
    "Progress": "attempt",
    "Reject": "errors",
    "TaskCancelled": "errors",
    "TaskError": "errors",
    "TaskExpired": "errors",
    "TaskFailed": "errors",
    "TaskHandle": "handle",
    "Worker": "worker",
    "connect": "client",
    "worker_app": "worker",
}


def __getattr__(name: str) -> Any:
    if name == "sync":
        return import_module("modelnet.sync")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"modelnet.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
