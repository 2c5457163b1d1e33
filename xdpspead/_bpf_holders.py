"""Who holds a BPF program: for the error of whoever finds one in the way."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def _holds(process: Path, line: str) -> bool:
    for fd in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # it has just been closed
            if "bpf" not in str(fd.readlink()):
                continue
            if line in (process / "fdinfo" / fd.name).read_text().splitlines():
                return True
    return False


def holders(program: int) -> list[str]:
    """Return the processes that hold a BPF program, or a link that attaches it: "1234 (python3)".

    Those that this process may look at; a program that none holds was attached to stay.
    """
    found = []
    for process in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is not ours to look at
            if _holds(process, f"prog_id:\t{program}"):
                name = (process / "comm").read_text().strip()
                found.append(f"{process.name} ({name})")
    return found
