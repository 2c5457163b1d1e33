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


def _mappings(unit: int) -> Iterator[tuple[int, int]]:
    """Go through address and size of mappings like it, of a multiple of `unit` bytes.

    It is not for forked children (``dc``). That of several queues may be one mapping.
    """
    place = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0\s*$", line)
            place = (int(found[1], 16), int(found[2], 16)) if found else None
        if line.startswith("VmFlags:") and place is not None and "dc" in line.split():
            address, size = place[0], place[1] - place[0]
            if size % unit == 0:
                yield address, size


class Umem:
    """Packet memory of `n_queues` queues, filled with a pattern while nothing is on its way.

    Parameters
    ----------
    size : int
        Bytes in all.
    n_queues : int
        Among how many queues it is shared out.
    """

    def __init__(self, size: int, n_queues: int) -> None:
        self._mappings = list(_mappings(size // n_queues))
        found = sum(size for _, size in self._mappings)
        assert found == size, f"found {found} bytes of packet memory instead of {size}"
        for address, length in self._mappings:
            ctypes.memset(address, _PATTERN, length)

    def frames_with(self, mark: bytes) -> int:
        """Return in how many frames these bytes are."""
        memory = b"".join(ctypes.string_at(*mapping) for mapping in self._mappings)
        starts = range(0, len(memory), _FRAME)
        return sum(mark in memory[start : start + _FRAME] for start in starts)
