"""Reads the headers of safetensors files: enough to count a model's parameters without its weights or NumPy.

The format is 8 bytes of header length, a JSON header, and the data (https://huggingface.co/docs/safetensors).
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

__all__ = ["count_parameters", "read_header"]

# A header larger than this is no header; the format's own bound.
_MAX_HEADER_BYTES = 100_000_000


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors by name, and where the data begins. Raises ValueError."""
    with path.open("rb") as file:
        head = file.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def count_parameters(folder: Path) -> int | None:
    """Parameters in a model folder's safetensors, None if it has none. Raises ValueError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    return sum(int(math.prod(t["shape"])) for file in files for t in read_header(file)[0].values())
