"""LoRA adapters of one engine: loaded when they are first asked for, and no more of them than there is room for.

vLLM keeps the adapters that were used last and drops the others by itself. What is done here is to load one before
its first request, so that one that can't be loaded is an error of that request and not the end of the engine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from modelnet.engines.errors import Unsupported

__all__ = ["Adapters"]


class Adapters:
    """The adapters that an engine was opened with, by name."""

    def __init__(self, folders: Mapping[str, str], room: int, model: str) -> None:
        """`room`: how many are loaded at once at most."""
        self._folders, self._room, self._model = dict(folders), room, model
        self._numbers = {name: number for number, name in enumerate(self._folders, 1)}
        self._loaded: OrderedDict[str, None] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be asked for."""
        return tuple(self._folders)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Those in memory, the one used last at the end."""
        return tuple(self._loaded)

    def request(self, name: str | None) -> Any:
        """vLLM's LoRARequest; None for the bare model. Raises `Unsupported` for a name that is not there."""
        if name is None:
            return None
        if name not in self._folders:
            raise Unsupported(f"{self._model} has no adapter {name}")
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, self._numbers[name], self._folders[name])

    def is_loaded(self, name: str) -> bool:
        """Whether it is in memory; if so it counts as used now."""
        if name not in self._loaded:
            return False
        self._loaded.move_to_end(name)
        return True

    def note(self, name: str) -> None:
        """It was loaded: the one that was not used for longest made room."""
        self._loaded[name] = None
        self._loaded.move_to_end(name)
        if len(self._loaded) > self._room:
            self._loaded.popitem(last=False)
