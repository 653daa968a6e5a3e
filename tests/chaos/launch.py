"""Runs an app as `modelnet.run` does, in a process whose wall clock the campaign can set: `… tests.chaos.launch APP`.

`CHAOS_CLOCK` names a file of eight bytes, the seconds by which this process's `time.time()` is wrong; it is mapped, so
a change counts at once. Monotonic time is not touched: no clock jump moves it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

__all__ = ["CLOCK", "bend_clock", "set_clock"]

CLOCK = "CHAOS_CLOCK"
_OFFSET = struct.Struct("<d")


def set_clock(file: Path, offset_s: float) -> None:
    """Let the clock of whoever maps this file be wrong by so much."""
    if not file.exists():
        file.write_bytes(_OFFSET.pack(0.0))
    with file.open("r+b") as written:
        written.write(_OFFSET.pack(offset_s))


def bend_clock(file: Path) -> None:
    """Replace `time.time` and `time.time_ns` of this process."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), _OFFSET.size, prot=mmap.PROT_READ)
    real, real_ns = time.time, time.time_ns

    def offset_s() -> float:
        return float(_OFFSET.unpack_from(mapped)[0])

    time.time = lambda: real() + offset_s()
    time.time_ns = lambda: real_ns() + int(offset_s() * 1e9)


if __name__ == "__main__":
    if CLOCK in os.environ:
        bend_clock(Path(os.environ[CLOCK]))
    from modelnet.run import main

    main()
