"""Questions to the kernel's generic netlink family "netdev" (``linux/netdev.h``), Linux 6.3.

pyroute2 does not know this family.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from . import _netlink

_GENERIC: Final = struct.Struct("=BBH")  # struct genlmsghdr

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
    body = _GENERIC.pack(command, 1, 0) + _netlink.pack(attributes)
    return _netlink.request(family, body, dump=dump)


def ask(message: bytes) -> list[_Answer]:
    """Send a request, in the network namespace of the calling thread, and return the answers.

    Raises
    ------
    OSError
        What the kernel says.
    """
    answers = _netlink.ask(_netlink.NETLINK_GENERIC, message)
    return [_netlink.attributes(answer[_GENERIC.size :]) for answer in answers]


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


class XdpFeatures(NamedTuple):
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
