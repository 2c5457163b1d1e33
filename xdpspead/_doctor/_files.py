"""Small files of the kernel, and lists of CPUs as it writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ._facts import KERNEL_SILENT, NEEDS_ROOT, Unknown

#: Where everything begins; tests have trees of their own.
ROOT: Final = Path("/")


def text(path: Path) -> str | Unknown:
    """Return what is in a file, without the end of the line."""
    try:
        return path.read_text(errors="replace").strip()
    except PermissionError:
        return NEEDS_ROOT
    except OSError:
        return KERNEL_SILENT


def number(path: Path) -> int | Unknown:
    """Return the number in a file."""
    found = text(path)
    if isinstance(found, Unknown):
        return found
    try:
        return int(found)
    except ValueError:
        return KERNEL_SILENT


def cpus(written: str) -> frozenset[int]:
    """Return the CPUs of a list like "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, written.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as a list like "0-3,8"."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and runs[-1][-1] == value - 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    return ",".join("-".join(map(str, run)) for run in runs)


def processes(root: Path) -> list[Path]:
    """Return the folders of the processes that can be seen."""
    proc = root / "proc"
    try:
        names = os.listdir(proc)
    except OSError:
        return []
    return [proc / name for name in names if name.isdecimal()]
