"""Sockets for readers: resolve, bind, join multicast groups, ask for buffer space."""

from __future__ import annotations

import contextlib
import socket
import struct
import weakref
from collections.abc import Iterator, Sequence
from typing import Final

from .._addresses import is_multicast, resolve, set_buffer_size, socket_name
from .._errors import TransportError
from ._groups import join_source
from ._reader import Begin

# From the kernel's headers; Python does not know the names.
_IP_ADD_SOURCE_MEMBERSHIP: Final = 39
_IP_MULTICAST_ALL: Final = 49
_SO_BINDTOIFINDEX: Final = 62


def _ignore_other_interfaces(sock: socket.socket, family: int, index: int) -> None:
    # Otherwise the group would also be received from interfaces on which others have joined it.
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    elif index:
        # IPv6 looks at the group alone, not at where it was joined. Linux 5.7, or CAP_NET_RAW.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, index)


def _join(
    sock: socket.socket, family: int, group: str, interface: str | int, source: str = ""
) -> None:
    host, _, zone = group.partition("%")
    packed = socket.inet_pton(family, host)
    index = interface if isinstance(interface, int) else 0
    if source:
        _join_source(sock, family, packed, interface, socket.inet_pton(family, source))
        _ignore_other_interfaces(sock, family, index)
        return
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


def _join_source(
    sock: socket.socket, family: int, group: bytes, interface: str | int, source: bytes
) -> None:
    if isinstance(interface, str) and interface:
        address = socket.inet_aton(resolve(interface, socket.AF_INET)[1])
        membership = struct.pack("4s4s4s", group, address, source)
        sock.setsockopt(socket.IPPROTO_IP, _IP_ADD_SOURCE_MEMBERSHIP, membership)
    else:
        join_source(sock, family, group, source, int(interface or 0))


@contextlib.contextmanager
def _sharing(*socks: socket.socket) -> Iterator[None]:
    """Let them be bound to one address and port, and nobody else."""
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    yield
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def closing(begin: Begin, sock: socket.socket) -> Begin:
    """Return `begin` such that the socket it would read is closed with it, begun or not."""
    weakref.finalize(begin, sock.close)
    return begin


def open_socket(
    family: int,
    address: str,
    port: int,
    buffer_size: int,
    interface: str | int = "",
    source: str = "",
    beside: Sequence[socket.socket] = (),
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
    source : str
        If not empty, only packets from this address are received.
    beside : sequence of socket.socket
        Those that have the same address and port already, for other sources of it.

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
        index = interface if isinstance(interface, int) else 0
        with _sharing(sock, *beside) if beside and not multicast else contextlib.nullcontext():
            sock.bind(socket_name(family, address, port, index))
        if multicast:
            step = "join multicast group"
            _join(sock, family, address, interface, source)
        elif source:
            step = "connect"
            # To no port in particular: the kernel then compares the address only.
            sock.connect(socket_name(family, source, 0, index))
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
        sock.bind(socket_name(family, address, port))
        step = "listen"
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise _failed(step, address, port, error) from None
    return sock


def _failed(step: str, address: str, port: int, error: OSError) -> TransportError:
    where = f"{address or 'any address'} port {port}"
    return TransportError(error.errno or 0, f"{step}: {where}: {error.strerror}", step)
