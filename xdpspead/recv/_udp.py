"""UDP sockets for readers: resolve, bind, join multicast groups, ask for buffer space."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, Final

from .._errors import TransportError
from .._log import LOGGER

# linux/socket.h; Python knows neither name.
_SO_RCVBUFFORCE: Final = 33


def port_number(value: Any) -> int:
    """Return `value` as a UDP port.

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


def resolve(host: str, family: int = socket.AF_UNSPEC) -> tuple[int, str]:
    """Return family and first address of a host name or address.

    Raises
    ------
    TransportError
        If there is none.
    """
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_DGRAM)
    except OSError as error:
        raise TransportError(error.errno or 0, f"resolve: {host!r}: {error}", "resolve") from None
    return found[0][0], str(found[0][4][0])


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


def _join(sock: socket.socket, family: int, group: str, interface: str | int) -> None:
    packed = socket.inet_pton(family, group.partition("%")[0])
    if family == socket.AF_INET6:
        membership = packed + int(interface or 0).to_bytes(4, "little")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    else:
        address = resolve(str(interface), socket.AF_INET)[1] if interface else "0.0.0.0"
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, packed + socket.inet_aton(address)
        )


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
        IPv4 address or IPv6 index of the interface on which to join; empty or 0 for the system's
        choice.

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
        sock.bind((address, port))
        if multicast:
            step = "join multicast group"
            _join(sock, family, address, interface)
    except OSError as error:
        sock.close()
        where = f"{address or 'any address'} port {port}"
        raise TransportError(error.errno or 0, f"{step}: {where}: {error.strerror}", step) from None
    return sock
