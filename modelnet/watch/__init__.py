"""Watching a network: a bounded view of it for the console and `modelnet top`, and the watcher that hears for it."""

from .view import View, task_key
from .watcher import TICK_S, Watcher

__all__ = ["TICK_S", "View", "Watcher", "task_key"]
