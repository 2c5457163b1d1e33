"""Multicast groups: memberships of sockets, with and without sources.

AF_XDP cannot join groups: the kernel must, so that it answers queries, and the device and the
switch let the packets through. Helper sockets do it, which receive nothing, because they are not
bound.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from .._errors import XdpError
from ._endpoints import Endpoint

# From the kernel's headers; Python does not know the name.
_MCAST_JOIN_SOURCE_GROUP: Final = 46

_IP_LEVEL: Final = {
    int(socket.AF_INET): socket.IPPROTO_IP,
    int(socket.AF_INET6): socket.IPPROTO_IPV6,
}
#: What one socket may have is bounded; these are the errors that say so.
_FULL: Final = (errno.ENOBUFS, errno.ENOMEM)


def _storage(family: int, packed: bytes) -> bytes:
    """Return a ``struct sockaddr_storage``."""
    if family == socket.AF_INET:
        name = struct.pack("=H2x4s", family, packed)
    else:
        name = struct.pack("=H6x16s4x", family, packed)
    return name.ljust(128, b"\0")


def join_source(sock: socket.socket, family: int, group: bytes, source: bytes, index: int) -> None:
    """Join a group for what one source sends; on interface `index`, 0 for the system's choice."""
    request = struct.pack("@I0l", index) + _storage(family, group) + _storage(family, source)
    sock.setsockopt(_IP_LEVEL[family], _MCAST_JOIN_SOURCE_GROUP, request)


def _join(sock: socket.socket, family: int, group: bytes, source: bytes, index: int) -> None:
    if source:
        join_source(sock, family, group, source, index)
    elif family == socket.AF_INET:
        membership = struct.pack("4s4si", group, b"\0" * 4, index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    else:
        membership = struct.pack("16si", group, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)


def _fits(sock: socket.socket, family: int, group: bytes, source: bytes, index: int) -> bool:
    """Join, unless the socket has as many groups or sources as it may."""
    try:
        _join(sock, family, group, source, index)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return False
    return True


def _memberships(endpoints: Iterable[Endpoint], family: int) -> Iterator[tuple[bytes, bytes]]:
    """Give groups and sources, without a source where any is received, on whatever port."""
    groups: dict[bytes, dict[bytes, None]] = {}
    for endpoint in endpoints:
        if endpoint.family == family and endpoint.is_multicast:
            groups.setdefault(endpoint.packed, {})[endpoint.packed_source] = None
    for group, sources in groups.items():
        yield from ((group, source) for source in ([b""] if b"" in sources else sources))


def _failed(family: int, group: bytes, source: bytes, name: str, error: OSError) -> XdpError:
    what = socket.inet_ntop(family, group)
    if source:
        what += f" from {socket.inet_ntop(family, source)}"
    text = f"join multicast group: {what} on {name}: {error.strerror}"
    if error.errno in _FULL:
        # Not igmp_max_msf and mld_max_msf: no socket needs more than one source of a group.
        text += (
            "; not even one group fits a socket: raise net.ipv4.igmp_max_memberships and "
            "net.core.optmem_max with `sysctl -w`"
        )
    elif family == socket.AF_INET6 and error.errno in (errno.EINVAL, errno.ENODEV):
        text += f"; is IPv6 disabled there? See `sysctl net.ipv6.conf.{name}.disable_ipv6`"
    return XdpError(error.errno or 0, text, "join multicast group")


def join_groups(
    endpoints: Iterable[Endpoint], index: int, name: str, sockets: contextlib.ExitStack
) -> list[socket.socket]:
    """Join the multicast groups among the endpoints until the returned sockets are closed.

    Parameters
    ----------
    endpoints : iterable of Endpoint
        Those that are no groups are left out.
    index, name : int, str
        The interface.
    sockets : contextlib.ExitStack
        Owns the sockets, also if the function fails.

    Raises
    ------
    XdpError
        If the kernel refuses.
    """
    joined: list[socket.socket] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        last = None  # others are full
        for group, source in _memberships(endpoints, family):
            try:
                if last is None or not _fits(last, family, group, source, index):
                    last = sockets.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                    joined.append(last)
                    _join(last, family, group, source, index)
            except OSError as error:
                raise _failed(family, group, source, name, error) from None
    return joined
