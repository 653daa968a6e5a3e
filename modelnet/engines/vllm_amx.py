"""Leave to use AMX, as the plugin that vLLM loads in each of its processes.

Linux lets a process use the tiles of an AMX processor once it has asked. vLLM's attention takes them for bfloat16
without asking, because the matrix products before it have: oneDNN does. Those of a small model go another way, and its
first request ends the process by an illegal instruction (seen with vLLM 0.32).
"""

from __future__ import annotations

__all__ = ["apply"]


def apply() -> None:
    """Ask; more than once, or where there is no AMX, is harmless."""
    import torch

    ask = getattr(torch.cpu, "_init_amx", None)
    if ask is not None:
        ask()
