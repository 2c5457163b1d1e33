"""Which XDP programs are attached to an interface, and who holds them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Any, Final

from .. import _bpf
from .._bpf_holders import holders
from ._facts import KERNEL_SILENT, NEEDS_ROOT, Program, Unknown
from ._files import ROOT

_PROG_GET_FD_BY_ID: Final = 13
_OBJ_GET_INFO_BY_FD: Final = 15
#: struct bpf_prog_info up to `name`, and where that is.
_INFO_SIZE: Final = 80
_NAME: Final = slice(64, 80)

#: Attributes of IFLA_XDP by mode.
_MODES: Final = {
    "IFLA_XDP_DRV_PROG_ID": "native",
    "IFLA_XDP_SKB_PROG_ID": "generic",
    "IFLA_XDP_HW_PROG_ID": "offloaded",
}
#: Values of IFLA_XDP_ATTACHED of kernels and interfaces that have one program only.
_ATTACHED: Final = {1: "native", 2: "generic", 3: "offloaded"}


def programs_of(link: Any) -> tuple[Program, ...]:
    """Return the programs in what netlink says of an interface."""
    xdp = link.get("IFLA_XDP")
    if xdp is None:
        return ()
    found = {xdp.get_attr(name): mode for name, mode in _MODES.items() if xdp.get_attr(name)}
    only = xdp.get_attr("IFLA_XDP_PROG_ID")
    if only and only not in found:
        found[only] = _ATTACHED.get(xdp.get_attr("IFLA_XDP_ATTACHED"), "native")
    return tuple(
        Program(number, mode, _name(number), _holders(number)) for number, mode in found.items()
    )


def _name(number: int) -> str | Unknown:
    try:
        fd = _bpf.call(_PROG_GET_FD_BY_ID, struct.pack("=I", number))
    except OSError as error:
        return NEEDS_ROOT if error.errno == errno.EPERM else KERNEL_SILENT
    try:
        info = ctypes.create_string_buffer(_INFO_SIZE)
        ask = struct.pack("=IIQ", fd, _INFO_SIZE, ctypes.addressof(info))
        _bpf.call(_OBJ_GET_INFO_BY_FD, ask)
    except OSError:
        return KERNEL_SILENT
    finally:
        os.close(fd)
    return info.raw[_NAME].partition(b"\0")[0].decode(errors="replace")


def _holders(number: int, root: Path = ROOT) -> tuple[str, ...] | Unknown:
    found = holders(number, root / "proc")
    return found.processes if found.processes or found.complete else NEEDS_ROOT
