"""What was learned of a model's times, kept in a file between runs: a worker that starts again bids well at once."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import structlog

from modelnet.engines.base import EngineState
from modelnet.engines.prediction import Predictor

__all__ = ["Experience"]

log = structlog.get_logger(__name__)

_FORMAT = 1


class Experience:
    """The file of one worker's model. What cannot be read or written is logged, and nobody waits for it."""

    def __init__(self, folder: Path, worker: str, model: str, software: str) -> None:
        """`folder`: made when something is written. What was learned of another model or engine is not taken."""
        self._path = folder / f"{worker}.json"
        self._about = {"format": _FORMAT, "model": model, "software": software}

    def recall(self, predictor: Predictor) -> bool:
        """Whether an earlier run has left something, which the predictor then begins with."""
        try:
            found = json.loads(self._path.read_text())
            if {name: found[name] for name in self._about} != self._about:
                return False
            predictor.recall(found["learned"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("experience_unreadable", path=str(self._path), error=repr(error))
            return False
        return True

    def keep(self, predictor: Predictor, state: EngineState) -> None:
        """Write what is known now: whole, or not at all."""
        learned: dict[str, Any] = {**self._about, "learned": predictor.save(state)}
        fresh = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(learned, allow_nan=False))
            fresh.replace(self._path)
        except (OSError, ValueError) as error:
            log.warning("experience_not_kept", path=str(self._path), error=repr(error))
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
