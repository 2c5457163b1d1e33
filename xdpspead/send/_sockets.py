"""Sockets to send through: resolve, bind, choose interface and TTL, connect."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

from .._addresses import endpoint_pair, is_multicast, resolve, socket_name
from .._errors import TransportError

#: Pairs of host and port, as users give them.
Endpoints: TypeAlias = Sequence[tuple[str, int]]
#: Family, address and port.
Endpoint: TypeAlias = tuple[int, str, int]


def endpoints(given: Any) -> list[Endpoint]:
    """Return what a list of (host, port) pairs means.

    Raises
    ------
    TypeError
        If it is no such list.
    ValueError
        If it is empty, or IPv4 and IPv6 are mixed.
    TransportError
        If a host cannot be resolved.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"endpoints must be a list of (host, port) pairs, not {given!r}")
    if not given:
        raise ValueError("endpoints must have at least one (host, port) pair")
    pairs = [endpoint_pair(pair) for pair in given]
    resolved = [(*resolve(host), port) for host, port in pairs]
    if len({family for family, _, _ in resolved}) > 1:
        raise ValueError("endpoints of IPv4 and IPv6 cannot be mixed: make a stream for each")
    return resolved


def packed(endpoint: Endpoint) -> bytes:
    """Return the endpoint as a ``struct sockaddr_in`` or ``sockaddr_in6``."""
    family, address, port = endpoint
    host, _, zone = address.partition("%")
    name = struct.pack("=H", family) + struct.pack(">H", port)
    if family == socket.AF_INET:
        return name + socket.inet_aton(host)
    return name + bytes(4) + socket.inet_pton(family, host) + struct.pack("=I", int(zone or 0))


def any_multicast(wanted: Sequence[Endpoint]) -> bool:
    """Return whether one of them is a group."""
    return any(is_multicast(address) for _, address, _ in wanted)


def require_multicast(family: socket.AddressFamily | None, wanted: Sequence[Endpoint]) -> None:
    """Raise ValueError unless all endpoints are groups, of the family if one is given."""
    kind = {None: "a", socket.AF_INET: "an IPv4", socket.AF_INET6: "an IPv6"}[family]
    for found, address, _ in wanted:
        if not is_multicast(address) or family not in (None, found):
            raise ValueError(f"endpoint {address} is not {kind} multicast address")


def set_hops(sock: socket.socket, ttl: int) -> None:
    """Set the hop limit of multicast packets."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)


def use_interface(sock: socket.socket, interface: str | int, *, multicast: bool) -> None:
    """Send from an interface: its address, or its index for multicast over IPv6.

    Raises
    ------
    TransportError
        If it cannot be.
    """
    step = "bind"
    try:
        if isinstance(interface, int):
            if interface:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface)
            return
        address = resolve(interface, sock.family)[1]
        sock.bind(socket_name(sock.family, address, 0))
        if multicast and sock.family == socket.AF_INET:
            step = "choose interface"
            option = socket.inet_aton(address)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, option)
    except OSError as error:
        raise TransportError(
            error.errno or 0, f"{step}: {interface}: {error.strerror}", step
        ) from None


def connect_error(endpoint: Endpoint, error: OSError) -> OSError:
    """Return an error of the same errno that says where."""
    _, address, port = endpoint
    return OSError(error.errno, f"connect to {address} port {port}: {error.strerror}")
