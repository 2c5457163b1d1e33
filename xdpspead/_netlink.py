"""Messages of netlink: made, exchanged with the kernel, and read (``linux/netlink.h``).

pyroute2 does that too, and much more, but takes 14 MiB of memory that a process which only receives
would never get rid of again. What the families of netlink mean is not known here.

Nothing that is read is trusted: what is cut short, or claims to be longer than there are bytes,
ends the reading, and what was complete before it counts.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

NETLINK_ROUTE: Final = 0
NETLINK_GENERIC: Final = 16

_ERROR, _DONE = 2, 3  # NLMSG_*
_REQUEST, _ACK, _DUMP = 0x001, 0x004, 0x300  # NLM_F_*
_DUMP_INTERRUPTED: Final = 0x10  # NLM_F_DUMP_INTR
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RESULT: Final = struct.Struct("=i")

_KERNEL: Final = 0  # port of who answers
_TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 1 << 16
#: How often a list is asked for that changes while the kernel tells it.
_ATTEMPTS: Final = 8


class Message(NamedTuple):
    """A message, without its header."""

    kind: int
    flags: int
    serial: int
    body: bytes


# ------------------------------------------------------------------ bytes


def pack(attributes: Mapping[int, bytes]) -> bytes:
    """Return attributes as they stand in a message."""
    packed = bytearray()
    for kind, value in attributes.items():
        packed += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
        packed += bytes(-len(value) % 4)
    return bytes(packed)


def request(kind: int, body: bytes, *, dump: bool = False, serial: int = 1) -> bytes:
    """Return a message that asks for one thing and an acknowledgement; for all with `dump`."""
    flags = _REQUEST | (_DUMP if dump else _ACK)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, serial, 0) + body


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes in bytes, by kind; of several of one kind the last."""
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages in what was received at once."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, serial, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            break
        yield Message(kind, flags, serial, data[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


# ------------------------------------------------------------------ the kernel


def connect(protocol: int, timeout_s: float = _TIMEOUT_S) -> socket.socket:
    """Return a socket of a protocol, in the network namespace of the calling thread."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    sock.settimeout(timeout_s)
    return sock


def exchange(sock: socket.socket, message: bytes) -> list[bytes]:
    """Send a request, and return the bodies of the answers.

    Raises
    ------
    OSError
        What the kernel says; TimeoutError if it says nothing for as long as the socket waits.
    """
    for _ in range(_ATTEMPTS):
        answers, complete = _exchange(sock, message)
        if complete:
            return answers
    raise OSError(errno.EINTR, "the list that the kernel was asked for changes all the time")


def _exchange(sock: socket.socket, message: bytes) -> tuple[list[bytes], bool]:
    """Return the answers, and whether nothing changed while they were told."""
    (wanted,) = messages(message)
    sock.send(message)
    answers: list[bytes] = []
    complete = True
    while True:
        for answer in messages(_receive(sock)):
            if answer.serial != wanted.serial:  # of an earlier request, that nobody waited for
                continue
            complete = complete and not answer.flags & _DUMP_INTERRUPTED
            if answer.kind in (_ERROR, _DONE):
                _check(answer.body)
                return answers, complete
            answers.append(answer.body)


def _receive(sock: socket.socket) -> bytes:
    while True:
        data, _, flags, (port, _) = sock.recvmsg(_MAX_ANSWER)
        if port != _KERNEL:  # a process may write to another's socket
            continue
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, f"the kernel's answer is longer than {_MAX_ANSWER} bytes")
        return data


def _check(body: bytes) -> None:
    """Raise what the end of the answers says."""
    if len(body) < _RESULT.size:
        raise OSError(errno.EBADMSG, "the kernel's answer to netlink ends without a result")
    number = -_RESULT.unpack_from(body)[0]
    if number:
        raise OSError(number, os.strerror(number))


def ask(protocol: int, message: bytes) -> list[bytes]:
    """Do as :func:`exchange`, with a socket for this once."""
    with connect(protocol) as sock:
        return exchange(sock, message)
