"""Questions to the kernel's generic netlink family "netdev" (``linux/netdev.h``), Linux 6.3.

Messages are made and read here, and not by pyroute2, which does not know this family.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

_NETLINK_GENERIC: Final = 16
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x001, 0x004, 0x300
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_GENERIC: Final = struct.Struct("=BBH")  # struct genlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_TIMEOUT_S: Final = 5.0
_MAX_MESSAGE: Final = 1 << 16

_CONTROL: Final = 16  # GENL_ID_CTRL
_CTRL_CMD_GETFAMILY: Final = 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2

_DEV_GET: Final = 1
_DEV_IFINDEX, _DEV_XDP_FEATURES, _DEV_XDP_ZC_MAX_SEGS = 1, 3, 4
#: NETDEV_XDP_ACT_*
_BASIC, _REDIRECT, _XSK_ZEROCOPY, _RX_SG = 1, 2, 8, 32

_NAPI_GET: Final = 11
_NAPI_IFINDEX, _NAPI_IRQ = 1, 3

_Answer: TypeAlias = dict[int, bytes]


def _message(family: int, command: int, attributes: Mapping[int, bytes], *, dump: bool) -> bytes:
    body = _GENERIC.pack(command, 1, 0)
    for kind, value in attributes.items():
        packed = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
        body += packed + b"\0" * (-len(packed) % 4)
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else _NLM_F_ACK)
    return _HEADER.pack(_HEADER.size + len(body), family, flags, 1, 0) + body


def _attributes(data: bytes) -> _Answer:
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            break
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def ask(message: bytes) -> list[_Answer]:
    """Send a request, in the network namespace of the calling thread, and return the answers.

    Raises
    ------
    OSError
        What the kernel says.
    """
    answers: list[_Answer] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.send(message)
        while True:
            for kind, body in _messages(sock.recv(_MAX_MESSAGE)):
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    number = -struct.unpack_from("=i", body)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return answers
                answers.append(_attributes(body[_GENERIC.size :]))


def _family() -> int:
    name = {_CTRL_ATTR_FAMILY_NAME: b"netdev\0"}
    answers = ask(_message(_CONTROL, _CTRL_CMD_GETFAMILY, name, dump=False))
    return int(struct.unpack("=H", answers[0][_CTRL_ATTR_FAMILY_ID])[0])


def request(command: int, attributes: Mapping[int, int], *, dump: bool = False) -> bytes:
    """Return a message to the family, with 32-bit attributes; without `dump` it is acknowledged.

    Raises
    ------
    OSError
        ENOENT if this kernel does not have the family.
    """
    packed = {kind: struct.pack("=I", value) for kind, value in attributes.items()}
    return _message(_family(), command, packed, dump=dump)


# ------------------------------------------------------------------ what a device can do


@dataclass(frozen=True)
class XdpFeatures:
    """What a driver says that it can do.

    Attributes
    ----------
    zero_copy : bool
        AF_XDP in zero-copy mode.
    max_segments : int
        In how many frames a packet can come in that mode; 0 if the kernel does not tell.
    native : bool
        Programs in native mode, and AF_XDP in copy mode.
    multi_buffer : bool
        Packets that take several buffers, in native mode.
    """

    zero_copy: bool
    max_segments: int
    native: bool = False
    multi_buffer: bool = False


def xdp_features(index: int) -> XdpFeatures | None:
    """Return what an interface can do, or None if this kernel does not tell (before 6.3)."""
    try:
        (answer,) = ask(request(_DEV_GET, {_DEV_IFINDEX: index}))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return None
        raise
    features = int.from_bytes(answer[_DEV_XDP_FEATURES], sys.byteorder)
    segments = int.from_bytes(answer.get(_DEV_XDP_ZC_MAX_SEGS, b""), sys.byteorder)
    return XdpFeatures(
        zero_copy=bool(features & _XSK_ZEROCOPY),
        max_segments=segments,
        native=features & (_BASIC | _REDIRECT) == _BASIC | _REDIRECT,
        multi_buffer=bool(features & _RX_SG),
    )


def queue_interrupts(index: int) -> frozenset[int]:
    """Return the numbers of the interrupts that serve an interface's queues (Linux 6.8).

    Returns
    -------
    frozenset of int
        Empty if kernel or driver do not tell.
    """
    try:
        answers = ask(request(_NAPI_GET, {_NAPI_IFINDEX: index}, dump=True))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return frozenset()
        raise
    irqs = (answer[_NAPI_IRQ] for answer in answers if _NAPI_IRQ in answer)
    return frozenset(int.from_bytes(irq, sys.byteorder) for irq in irqs)
