"""Process 1 of a guest: makes it a system, runs the cases and reports."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RESULTS = "/dev/ttyS1"
_MODULES = Path("/modules")
_RB_AUTOBOOT = 0x01234567
_SLOW_S = 60.0
_SYS_FINIT_MODULE = 313  # x86_64

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(kind: str, path: str) -> None:
    os.makedirs(path, exist_ok=True)
    if _libc.mount(kind.encode(), path.encode(), kind.encode(), 0, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {path}: {os.strerror(number)}")


def _load(module: Path) -> None:
    with module.open("rb") as file:
        if _libc.syscall(_SYS_FINIT_MODULE, file.fileno(), b"", 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{module.name}: {os.strerror(number)}")


def _set_up() -> None:
    _mount("proc", "/proc")
    _mount("sysfs", "/sys")
    with contextlib.suppress(OSError):  # the kernel may have done it
        _mount("devtmpfs", "/dev")
    _mount("tmpfs", "/tmp")
    _mount("tmpfs", "/run")
    os.environ.update(
        PATH="/usr/bin:/bin",
        HOME="/root",
        PYTHONPATH="/site:/tests",
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONSAFEPATH="1",
    )
    os.chdir("/")
    for name in (_MODULES / "order").read_text().split():
        _load(_MODULES / name)


def _report(**result: Any) -> None:
    with open(_RESULTS, "w") as file:
        file.write(json.dumps(result) + "\n")


def _run(names: Sequence[str]) -> None:
    from vm import cases
    from vm.network import Network

    network = Network()
    for argument in names:
        name, _, value = argument.partition(":")
        start = time.monotonic()
        print(f"case {argument}", flush=True)
        # Where it hangs, if it does.
        faulthandler.dump_traceback_later(_SLOW_S, repeat=True)
        try:
            said = cases.run(name, value, network)
            result = "ok"
        except Exception as error:  # noqa: BLE001 (whatever it is, it is reported)
            traceback.print_exc()
            result, said = "FAILED", f"{type(error).__name__}: {error}"
        faulthandler.cancel_dump_traceback_later()
        seconds = round(time.monotonic() - start, 1)
        _report(case=argument, result=result, said=said, seconds=seconds)


def main(arguments: Sequence[str]) -> None:
    """Run the cases that are named, report each, and end the machine."""
    try:
        faulthandler.enable()
        _set_up()
        _report(kernel=os.uname().release, booted=round(time.monotonic(), 1))
        _run(arguments)
        _report(end=True)
    except BaseException:  # noqa: BLE001 (process 1 must not end, or the kernel panics)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.sync()
        time.sleep(0.2)  # for the serial ports
        _libc.reboot(_RB_AUTOBOOT)
