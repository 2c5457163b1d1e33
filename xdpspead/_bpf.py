"""The system call bpf(2), for the little that Python asks of it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import Final

_NUMBERS: Final = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
}
_SIZE: Final = 128  # enough of union bpf_attr, in linux/bpf.h


def call(command: int, attributes: bytes) -> int:
    """Make the system call and return what it returns.

    Parameters
    ----------
    command : int
        Which one, BPF_* in ``linux/bpf.h``.
    attributes : bytes
        The beginning of ``union bpf_attr``; the rest is zero.

    Raises
    ------
    OSError
        What the kernel says; ENOSYS also where the number of the call is not known.
    """
    number = _NUMBERS.get(platform.machine())
    if number is None or sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(attributes, _SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(_SIZE)
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)
