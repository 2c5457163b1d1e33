"""The packet memory (UMEM) of this process, as the kernel lists it.

This is how a test tells zero-copy from copying, without believing anybody: what the card writes
there itself shows up also if the program leaves it to the kernel.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

_PATTERN = 0xA5
_FRAME = 4096


def _mappings(size: int) -> Iterator[int]:
    """Go through the addresses of mappings that are not for forked children (``dc``), as it is."""
    address = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0\s*$", line)
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            address = None
        if found and int(found[2], 16) - int(found[1], 16) == size:
            address = int(found[1], 16)
        if line.startswith("VmFlags:") and address is not None and "dc" in line.split():
            yield address


class Umem:
    """Packet memory of `size` bytes, filled with a pattern when nothing is on its way."""

    def __init__(self, size: int) -> None:
        (self._address,) = _mappings(size)
        self._size = size
        ctypes.memset(self._address, _PATTERN, size)

    def frames_with(self, mark: bytes) -> int:
        """Return in how many frames these bytes are."""
        memory = ctypes.string_at(self._address, self._size)
        starts = range(0, self._size, _FRAME)
        return sum(mark in memory[start : start + _FRAME] for start in starts)
