"""The process that a :class:`xdpspead._guard.Guard` starts.

It is run as a file by a Python of its own, with the standard library only::

    python -I -S _guard_process.py SOCKET OWNER

SOCKET is its end of a pair, OWNER a descriptor of the owner's process (pidfd), or -1. Messages are
marshalled, as both ends are the same Python. First it tells its process id. Then it answers each
request ``(what, kind, arguments)`` with ``(errno, answer)``: it makes the setting, and knows how to
undo it. When the owner has closed its end, or is dead, it undoes all, the last one first, and ends;
what it could not undo it tells as ``(what, error)``.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import functools
import marshal
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

#: What the kernel answered when the setting was made, and what undoes it.
_Made: TypeAlias = tuple[bytes, Callable[[], object]]

_MAX_MESSAGE: Final = 1 << 16
_TIMEOUT_S: Final = 5.0

_SIOCETHTOOL: Final = 0x8946
_NETLINK_GENERIC: Final = 16
_NLMSG_ERROR: Final = 2

#: The interface, rule, queue or file is not there any more: nothing is left to undo.
_GONE: Final = (errno.ENODEV, errno.ENXIO, errno.ENOENT)
_IGNORED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

# ------------------------------------------------------------------ kinds of settings
#
# These know bytes only; what they mean is known by the module that asks.


def _ioctl(index: int, request: bytes) -> bytes:
    buffer = array.array("B", request)
    # By index: meanwhile the interface may have got another name, and another interface its name.
    name = socket.if_indextoname(index).encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", name, buffer.buffer_info()[0]))
    return buffer.tobytes()


def ethtool(index: int, make: bytes, check: bytes, undo: bytes, start: int, stop: int) -> _Made:
    """Add something to the interface through SIOCETHTOOL that has a key, and undo it by its key.

    The key stands from `start` to `stop` in all three requests; the kernel chooses it, and says so
    in the answer to `make`. It is undone only if `check` still answers what it did at first: or
    somebody else has put something of their own in that place.
    """
    answer = _ioctl(index, make)

    def keyed(request: bytes) -> bytes:
        return _ioctl(index, request[:start] + answer[start:stop] + request[stop:])

    def look() -> bytes | None:
        try:
            return keyed(check)
        except OSError:
            return None

    seen = look()
    return answer, lambda: keyed(undo) if look() == seen else None


def _send_netlink(message: bytes) -> bytes:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.send(message)
        while True:
            answer = sock.recv(_MAX_MESSAGE)
            if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
                break
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number:
        raise OSError(number, os.strerror(number))
    return answer


def netlink(new: bytes, old: bytes) -> _Made:
    """Send a message of generic netlink that asks for an acknowledgement; `old` undoes it."""
    return _send_netlink(new), functools.partial(_send_netlink, old)


def file(path: str, new: bytes, old: bytes) -> _Made:
    """Write to a file of sysfs or procfs; `old` undoes it, in the same file whatever its path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, new, 0)
    except BaseException:
        os.close(fd)
        raise
    return b"", functools.partial(os.pwrite, fd, old, 0)


KINDS: Final[dict[str, Callable[..., _Made]]] = {
    "ethtool": ethtool,
    "file": file,
    "netlink": netlink,
}

# ------------------------------------------------------------------ the process


def _requests(sock: socket.socket, owner: int) -> Iterator[tuple[str, str, tuple[object, ...]]]:
    """Yield requests until the owner has closed its end, or is dead."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    # A forked child that does not know of us may hold a copy of the owner's end.
    if owner >= 0:
        poll.register(owner, select.POLLIN)
    while owner not in dict(poll.poll()):
        try:
            message = sock.recv(_MAX_MESSAGE)
        except ConnectionError:
            return
        if not message:
            return
        yield marshal.loads(message)


def _tell(sock: socket.socket, message: int | tuple[int | str, bytes | str]) -> None:
    with contextlib.suppress(OSError):  # nobody is there
        sock.send(marshal.dumps(message))


def _undo_all(made: list[tuple[str, Callable[[], object]]], sock: socket.socket) -> None:
    for what, undo in reversed(made):
        try:
            undo()
        except Exception as error:  # noqa: BLE001 (the others have to be undone all the same)
            if getattr(error, "errno", None) not in _GONE:
                _tell(sock, (what, str(error)))


def serve(sock: socket.socket, owner: int) -> None:
    """Make settings until the owner ends, then undo them."""
    made: list[tuple[str, Callable[[], object]]] = []
    try:
        for what, kind, arguments in _requests(sock, owner):
            try:
                answer, undo = KINDS[kind](*arguments)
            except OSError as error:
                _tell(sock, (error.errno or errno.EIO, b""))
            else:
                made.append((what, undo))
                _tell(sock, (0, answer))
    finally:
        _undo_all(made, sock)


def main(socket_fd: int, owner: int) -> None:
    """Become a process that is nobody's child, and serve."""
    # Services are told to end by a signal to all their processes; the owner may have things to do
    # yet, and we end when it has.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # Whoever waits for any child of the owner must not find this one.
    if os.fork():
        os._exit(0)
    os.chdir("/")
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write("xdpspead-guard")
    with socket.socket(fileno=socket_fd) as sock:
        _tell(sock, os.getpid())
        serve(sock, owner)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
