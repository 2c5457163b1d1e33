"""Sockets for readers: resolve, bind, join multicast groups, ask for buffer space."""

from __future__ import annotations

import contextlib
import ipaddress
import operator
import socket
import struct
import weakref
from typing import Any, Final

from .._errors import TransportError
from .._log import LOGGER
from ._reader import Begin

# From the kernel's headers; Python does not know the names.
_SO_RCVBUFFORCE: Final = 33
_IP_MULTICAST_ALL: Final = 49
_SO_BINDTOIFINDEX: Final = 62


def port_number(value: Any) -> int:
    """Return `value` as a port number.

    Raises
    ------
    TypeError
        If it is no integer from 0 to 65535.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"a port must be an integer, not {value!r}")
    port = int(value.__index__())
    if not 0 <= port <= 65535:
        raise TypeError(f"a port must be from 0 to 65535, not {port}")
    return port


def interface_number(value: Any) -> int:
    """Return `value` as the index of a network interface; 0 stands for none.

    Raises
    ------
    TypeError
        If it is no integer that can be one.
    """
    index = operator.index(value)
    if not 0 <= index < 1 << 31:
        raise TypeError(f"an interface index must be from 0 to 2**31 - 1, not {index}")
    return index


def resolve(host: str, family: int = socket.AF_UNSPEC) -> tuple[int, str]:
    """Return family and first address of a host name or address.

    The zone of a scoped address ("fe80::1%eth0") comes back as a number ("fe80::1%2").

    Raises
    ------
    TransportError
        If there is none.
    """
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_DGRAM)
    except OSError as error:
        raise TransportError(error.errno or 0, f"resolve: {host!r}: {error}", "resolve") from None
    name = found[0][4]
    zone = f"%{name[3]}" if len(name) == 4 and name[3] else ""
    return found[0][0], f"{name[0]!s}{zone}"


def is_multicast(address: str) -> bool:
    """Return whether an address is that of a multicast group."""
    return ipaddress.ip_address(address.partition("%")[0]).is_multicast


def set_buffer_size(sock: socket.socket, size: int) -> None:
    """Ask the kernel for room for `size` bytes; warn if there is less. 0 asks for nothing."""
    if not size:
        return
    # With CAP_NET_ADMIN the system's limit does not hold.
    for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, min(size, 0x3FFFFFFF))
        except OSError:
            continue
        # The kernel doubles the number, for its own bookkeeping, and tells the doubled one.
        got = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        if got >= size:
            return
    got = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    LOGGER.warning(
        "requested socket buffer size %d but only received %d: raise the limit with "
        "`sysctl -w net.core.rmem_max=%d`",
        size,
        got,
        size,
    )


def _ignore_other_interfaces(sock: socket.socket, family: int, index: int) -> None:
    # Otherwise the group would also be received from interfaces on which others have joined it.
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    elif index:
        # IPv6 looks at the group alone, not at where it was joined. Linux 5.7, or CAP_NET_RAW.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, index)


def _join(sock: socket.socket, family: int, group: str, interface: str | int) -> None:
    host, _, zone = group.partition("%")
    packed = socket.inet_pton(family, host)
    index = interface if isinstance(interface, int) else 0
    if family == socket.AF_INET6:
        index = index or int(zone or 0)
        membership = struct.pack("16si", packed, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    else:
        named = isinstance(interface, str) and interface != ""
        address = resolve(str(interface), socket.AF_INET)[1] if named else "0.0.0.0"
        membership = struct.pack("4s4si", packed, socket.inet_aton(address), index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    if interface or zone:
        _ignore_other_interfaces(sock, family, index)


def _name(family: int, address: str, port: int, interface: str | int) -> tuple[Any, ...]:
    """Return what :meth:`socket.socket.bind` takes."""
    if family != socket.AF_INET6:
        return address, port
    host, _, zone = address.partition("%")
    # The kernel wants to know the interface of a link-local address, and ignores it of others.
    return host, port, 0, int(zone or 0) or (interface if isinstance(interface, int) else 0)


def closing(begin: Begin, sock: socket.socket) -> Begin:
    """Return `begin` such that the socket it would read is closed with it, begun or not."""
    weakref.finalize(begin, sock.close)
    return begin


def open_socket(
    family: int, address: str, port: int, buffer_size: int, interface: str | int = ""
) -> socket.socket:
    """Return a socket bound to `address` and `port`, which has joined it if it is multicast.

    Parameters
    ----------
    family : int
        ``socket.AF_INET`` or ``socket.AF_INET6``.
    address : str
        Address to bind to; empty for all.
    port : int
        UDP port.
    buffer_size : int
        Bytes of kernel buffer to ask for; 0 for the system's default.
    interface : str or int
        IPv4 address, or index, of the interface on which to join; empty or 0 for the system's
        choice. If one is given, the group is received from that interface alone, even if
        somebody else has joined it on another.

    Raises
    ------
    TransportError
        If one of the steps fails.
    """
    step = "create socket"
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        set_buffer_size(sock, buffer_size)
        multicast = bool(address) and is_multicast(address)
        if multicast:
            # Several programs on one machine may receive one group.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        step = "bind"
        sock.bind(_name(family, address, port, interface))
        if multicast:
            step = "join multicast group"
            _join(sock, family, address, interface)
    except OSError as error:
        sock.close()
        raise _failed(step, address, port, error) from None
    return sock


def listen(family: int, address: str, port: int, buffer_size: int) -> socket.socket:
    """Return a TCP socket that listens for one connection.

    Parameters
    ----------
    family : int
        ``socket.AF_INET`` or ``socket.AF_INET6``.
    address : str
        Address to bind to; empty for all.
    port : int
        TCP port.
    buffer_size : int
        Bytes of kernel buffer to ask for, for the connection; 0 for the system's default.

    Raises
    ------
    TransportError
        If one of the steps fails.
    """
    step = "create socket"
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A connection inherits it, and only what is set before it is made counts for its window.
        set_buffer_size(sock, buffer_size)
        # What is left of earlier connections does not keep the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        step = "bind"
        sock.bind(_name(family, address, port, ""))
        step = "listen"
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise _failed(step, address, port, error) from None
    return sock


def _failed(step: str, address: str, port: int, error: OSError) -> TransportError:
    where = f"{address or 'any address'} port {port}"
    return TransportError(error.errno or 0, f"{step}: {where}: {error.strerror}", step)
