"""The console: a page to watch the network on, one of the gateway's rooms. docs/console.md says who sees what."""

from .room import console

__all__ = ["console"]
