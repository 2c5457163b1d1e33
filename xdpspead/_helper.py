"""``xdpspead-helper``, which does what takes privileges for receivers that have none.

Where it is, and whether it serves this user. What readers ask of it is in ``csrc/xdp_remote.c``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

VARIABLE: Final = "XDPSPEAD_HELPER"
DEFAULT_SOCKET: Final = "/run/xdpspead/helper.sock"

_TIMEOUT_S: Final = 1.0

#: A request that asks for nothing (csrc/helper_protocol.h): kind PASSED, sequence number 1.
_REQUEST: Final = struct.pack("=II", 7, 1)
#: The head of a reply, and struct xps_fail: kind, sequence, result; errno, step, text.
_REPLY: Final = struct.Struct("=IIi4xi32s1024s")


def helper_socket() -> str:
    """Return where the helper listens, if there is one."""
    return os.environ.get(VARIABLE) or DEFAULT_SOCKET


def helper_is_there() -> bool:
    """Return whether there is, or should be, a helper."""
    return bool(os.environ.get(VARIABLE)) or os.path.exists(DEFAULT_SOCKET)


def ask_helper(path: str) -> str:
    """Return why the helper does not serve this user; empty if it does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(_TIMEOUT_S)
            sock.connect(path)
            reply = _exchange(sock)
    except (OSError, ValueError) as error:  # a path can be too long
        reason = getattr(error, "strerror", None) or str(error)
        return f"there is no xdpspead-helper at {path} ({reason})"
    if len(reply) < _REPLY.size:
        return f"xdpspead-helper at {path} has closed the connection"
    _, sequence, _, _, _, text = _REPLY.unpack_from(reply)
    # It says no to the request, because that comes before its turn; but it has listened.
    return "" if sequence else text.partition(b"\0")[0].decode(errors="replace").rstrip(".")


def _exchange(sock: socket.socket) -> bytes:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.send(_REQUEST)  # who is refused finds the reason all the same
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return sock.recv(65536)
