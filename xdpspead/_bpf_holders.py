"""Who holds a BPF program: for whoever finds one in the way."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")


class Holders(NamedTuple):
    """The processes that hold a program.

    Attributes
    ----------
    processes : tuple of str
        Those that this process may look at: "1234 (python3)".
    complete : bool
        Whether it might look at all processes. If so, and there are none, the program was attached
        to stay.
    """

    processes: tuple[str, ...]
    complete: bool


def _holds(process: Path, line: str) -> bool:
    for fd in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # it has just been closed
            if "bpf" not in str(fd.readlink()):
                continue
            if line in (process / "fdinfo" / fd.name).read_text().splitlines():
                return True
    return False


def holders(program: int, proc: Path = _PROC) -> Holders:
    """Return who has a descriptor of a program, by its id, or of a link that attaches it."""
    found, complete = [], True
    for process in proc.glob("[0-9]*"):
        try:
            if _holds(process, f"prog_id:\t{program}"):
                name = (process / "comm").read_text().strip()
                found.append(f"{process.name} ({name})")
        except PermissionError:
            complete = False
        except OSError:  # it has just ended
            pass
    return Holders(tuple(found), complete)
