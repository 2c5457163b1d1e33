"""Interfaces and their addresses, as the kernel tells them by rtnetlink (``linux/rtnetlink.h``).

All questions are about the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from . import _netlink
from ._errors import TransportError

_STEP: Final = "ask netlink"

_GETLINK, _GETADDR = 18, 22  # RTM_*
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg

_NAME, _MTU, _EXT_MASK = 3, 4, 29  # IFLA_*
_N_TX_QUEUES, _N_RX_QUEUES, _XDP, _ALT_NAME = 31, 32, 43, 53
_XDP_PROG_ID: Final = 4  # IFLA_XDP_PROG_ID
_SKIP_STATISTICS: Final = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

_IFF_LOWER_UP: Final = 1 << 16

#: Bytes of a name, with the zero at its end: IFNAMSIZ, ALTIFNAMSIZ.
_NAME_SIZE, _ALT_NAME_SIZE = 16, 128
_ADDRESS_SIZE: Final = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}


@dataclass(frozen=True)
class Link:
    """An interface.

    Attributes
    ----------
    index : int
        Its number.
    name : str
        Its name.
    mtu : int
        Longest IP packet, in bytes.
    has_link : bool
        Whether it is connected to something, if it has a way to tell.
    n_rx_queues, n_tx_queues : int
        How many queues there can be; at least 1.
    program : int
        Number of the XDP program on it; 0 if there is none, or several.
    """

    index: int
    name: str
    mtu: int
    has_link: bool
    n_rx_queues: int
    n_tx_queues: int
    program: int


def link_at(index: int) -> Link | None:
    """Return the interface of a number, None if there is none.

    Raises
    ------
    TransportError
        If the kernel does not answer.
    """
    return _one(index, {})


def link_named(name: str) -> Link | None:
    """Return the interface of a name, or alternative name; None if there is none.

    Raises
    ------
    TransportError
        If the kernel does not answer.
    """
    packed = os.fsencode(name) + b"\0"
    if b"\0" in packed[:-1] or not 1 < len(packed) <= _ALT_NAME_SIZE:
        return None
    return _one(0, {_NAME if len(packed) <= _NAME_SIZE else _ALT_NAME: packed})


def links() -> list[Link]:
    """Return all interfaces.

    Raises
    ------
    TransportError
        If the kernel does not answer.
    """
    return [parse_link(answer) for answer in _ask(_question(0, {}, dump=True))]


def addresses() -> list[tuple[int, bytes]]:
    """Return the IPv4 and IPv6 addresses of all interfaces: whose they are, and they, packed.

    Raises
    ------
    TransportError
        If the kernel does not answer.
    """
    body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    answers = _ask(_netlink.request(_GETADDR, body, dump=True))
    found = (parse_address(answer) for answer in answers)
    return [address for address in found if address is not None]


# ------------------------------------------------------------------ questions


def _question(index: int, about: Mapping[int, bytes], *, dump: bool = False) -> bytes:
    options = {_EXT_MASK: struct.pack("=I", _SKIP_STATISTICS)}
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _netlink.pack({**about, **options})
    return _netlink.request(_GETLINK, body, dump=dump)


def _one(index: int, about: Mapping[int, bytes]) -> Link | None:
    try:
        answers = _ask(_question(index, about))
    except TransportError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return parse_link(answers[0]) if answers else None


def _ask(message: bytes) -> list[bytes]:
    try:
        return _netlink.ask(_netlink.NETLINK_ROUTE, message)
    except OSError as error:
        raise TransportError(
            error.errno or errno.EIO,
            f"{_STEP}: the kernel does not tell about its interfaces: "
            f"{error.strerror or error}. Where a sandbox is in the way (systemd: "
            "RestrictAddressFamilies), allow AF_NETLINK",
            _STEP,
        ) from None


# ------------------------------------------------------------------ answers


def parse_link(body: bytes) -> Link:
    """Return what an RTM_NEWLINK message says, without its header.

    Raises
    ------
    TransportError
        EBADMSG if there is no interface in it.
    """
    if len(body) < _LINK.size:
        _reject("is cut short")
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = _netlink.attributes(body[_LINK.size :])
    name = found.get(_NAME, b"").partition(b"\0")[0]
    mtu = _number(found, _MTU)
    if not name or mtu is None:
        _reject(f"about interface {index} has no name or no MTU")
    return Link(
        index,
        os.fsdecode(name),
        mtu,
        bool(flags & _IFF_LOWER_UP),
        _number(found, _N_RX_QUEUES) or 1,
        _number(found, _N_TX_QUEUES) or 1,
        _number(_netlink.attributes(found.get(_XDP, b"")), _XDP_PROG_ID) or 0,
    )


def parse_address(body: bytes) -> tuple[int, bytes] | None:
    """Return whose address an RTM_NEWADDR message tells, and which; None if there is none in it."""
    if len(body) < _ADDRESS.size:
        return None
    family, _, _, _, index = _ADDRESS.unpack_from(body)
    found = _netlink.attributes(body[_ADDRESS.size :])
    # Of a point-to-point link, the other is the peer's.
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    if len(address) != _ADDRESS_SIZE.get(family):
        return None
    return index, address


def _number(found: Mapping[int, bytes], kind: int) -> int | None:
    """Return an attribute of 32 bits; None if there is none, or it has another length."""
    value = found.get(kind, b"")
    return int.from_bytes(value, sys.byteorder) if len(value) == 4 else None


def _reject(why: str) -> NoReturn:
    raise TransportError(errno.EBADMSG, f"{_STEP}: the kernel's answer {why}", _STEP)
