"""A fix of vLLM's LoRA on a CPU, as the plugin that vLLM loads in each of its processes.

A token without an adapter has the index -1. The GPU kernels leave such tokens alone; the ones for CPUs take -1 for the
last adapter, so a request to the bare model that shares a batch with one to an adapter gets the adapter's answer, and
no error (vllm-project/vllm#48421, open in November 2026, present in 0.32).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["apply"]

_OPS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def apply() -> None:
    """Put the fix in place; more than once is harmless."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops

    users = [lora_ops, torch_ops, sys.modules.get("vllm.lora.punica_wrapper.punica_cpu")]
    for name in _OPS:
        op = getattr(lora_ops, name)
        if not hasattr(op, "skips_bare"):
            op = _skipping(op)
        for user in users:
            if hasattr(user, name):
                setattr(user, name, op)


def _skipping(op: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(op)
    def skipping(inputs: Any, weights: Any, output: Any, indices: Any, *args: Any, **options: Any) -> Any:
        # No input makes no difference, whichever adapter it is put through.
        bare = (indices < 0).unsqueeze(1)
        return op(inputs.masked_fill(bare, 0), weights, output, indices.clamp(min=0), *args, **options)

    skipping.skips_bare = True  # type: ignore[attr-defined]
    return skipping
