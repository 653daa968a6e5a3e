"""Runs a FastStream app as a process on uvloop: `python -m modelnet.run workers.negotiator:app`, or a worker's file."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import uvloop
from faststream import FastStream
from pydantic import ValidationError

from modelnet.errors import UsageError
from modelnet.processes import PARENT
from modelnet.ready import Readiness
from modelnet.settings import settings

__all__ = ["MODELS_APP", "check_server", "engine_cores", "load_app", "load_file", "load_server", "main", "run_app"]

MODELS_APP = "workers.vllm:app"
"""Serves the models of a workers file."""
EXIT_S = 5.0
ORPHAN_S = 8.0
"""A process whose parent is gone has this long to end by itself."""


def load_app(path: str) -> FastStream:
    """The app at `package.module:name`, or that of a file ending in `.py` or `.toml`. Raises `UsageError`."""
    if path.endswith((".py", ".toml")):
        return load_file(Path(path))
    name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, FastStream):
        raise UsageError(f"{path} is no FastStream app")
    return app


def load_server(model: Mapping[str, Any]) -> FastStream:
    """The app that serves a model which runs elsewhere, told as a table of a workers file. Raises `UsageError`."""
    made: FastStream = _model_workers().models_app([model])
    return made


async def check_server(model: Mapping[str, Any]) -> None:
    """Find the server of such a model, and out what it can do. Raises `EngineUnavailable`, `UsageError`."""
    await _model_workers().check_models([model])


def engine_cores(app: str) -> set[int]:
    """Cores that an app's engines have to themselves, as its workers file says. Raises `UsageError`, and `ImportError`
    where what serves models is not installed."""
    if not app.endswith(".toml") and app != MODELS_APP:
        return set()
    held: set[int] = _model_workers().cores_of(Path(app) if app.endswith(".toml") else None)
    return held


def _model_workers() -> ModuleType:
    """Who serves models. By its name, as every app: the library imports no process."""
    return importlib.import_module("workers.vllm")


def load_file(path: Path, name: str | None = None) -> FastStream:
    """The app of a worker's file: all its `Worker` objects, or the FastStream app that it makes itself; of a TOML file
    the models that it names (docs/models.md).

    `name`: the worker's id, instead of the one it gives itself. Raises `UsageError` if the file does not import or
    declares no worker.
    """
    from modelnet.worker import Worker, worker_app

    if path.suffix == ".toml":
        if name is not None:
            raise UsageError(f"{path} names its models itself: a name for each stands there")
        made: FastStream = _model_workers().make_app(path)
        return made
    found = list(vars(_import_file(path)).values())
    workers = list({id(value): value for value in found if isinstance(value, Worker)}.values())
    if name is not None:
        if len(workers) != 1:
            raise UsageError(f"{path} declares {len(workers)} workers: one name fits one worker")
        try:
            workers[0].rename(name)
        except ValidationError:
            raise UsageError(f"{name!r} is no worker id: use letters, digits, - and _, 64 at most") from None
    if workers:
        for worker in workers:
            if not worker.capabilities:
                raise UsageError(f"{path}: worker {worker.name} declares no capability")
        return worker_app(*workers)
    apps = [value for value in found if isinstance(value, FastStream)]
    if not apps:
        raise UsageError(f"{path} declares no Worker")
    return apps[0]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    sys.path.insert(0, str(path.resolve().parent))  # as `python FILE.py` does, for the modules beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that Pydantic and pickle find what the file defines
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        where = f"{path}:{line}" if line else str(path)
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from error
    return module


def run_app(app: FastStream) -> None:
    """Run until SIGINT or SIGTERM, or until the parent that asked to be followed is gone; then end the process."""
    parent = os.environ.get(PARENT)
    if parent is not None:
        threading.Thread(target=_follow, args=(int(parent),), name="follow-parent", daemon=True).start()
    uvloop.run(_run(app))
    busy = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if busy:  # handlers that never return: Python would wait for their threads for ever
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


async def _run(app: FastStream) -> None:
    readiness = Readiness.of(app, settings())
    app.after_startup(readiness.open)
    app.after_startup(_calm_collector)
    app.on_shutdown(readiness.close)
    await app.run()
    # The loop waits for threads of `asyncio.to_thread`, for ever if one never returns.
    threading.Thread(target=_exit_soon, name="exit-soon", daemon=True).start()


def _calm_collector() -> None:
    """What was imported stays, and what a message leaves behind has hardly ever a cycle: looking for some every 700
    objects took a tenth of a negotiator's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


def _exit_soon() -> None:
    time.sleep(EXIT_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _follow(parent: int) -> None:
    """Ask this process to end once its parent has, and end it if it does not."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_S)
    os._exit(1)


def main() -> None:
    """Run the app named on the command line."""
    try:
        app = load_app(sys.argv[1])
    except UsageError as error:
        sys.exit(f"error: {error}")
    run_app(app)


if __name__ == "__main__":
    main()
