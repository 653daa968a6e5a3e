"""An engine process ends with the one that asked for it, as the plugin that vLLM loads in each of its processes.

A worker that is killed cannot end its engine, which would hold its memory, a GPU's perhaps, until somebody looks.
"""

from __future__ import annotations

import multiprocessing
import os
import threading

__all__ = ["apply"]


def apply() -> None:
    """Follow the parent, if multiprocessing has made this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="follow-parent", daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
